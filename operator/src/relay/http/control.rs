//! Signals and stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Extension, Path, RawQuery, Request, State};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use remoteprocess_api::signal;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::{SignalRequest, SignalTarget, StopRequest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::problem::Problem;
use super::{Client, Uid, key, parse};
use crate::relay::calls::{REQUEST_SIZE, REQUEST_TIME};
use crate::relay::core::Core;
use crate::relay::error::Error;

/// The body of a signal.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Signal {
    /// Name or number.
    signal: String,
    #[serde(default)]
    target: Target,
    /// A second request with the same id does nothing.
    request_id: Option<String>,
}

/// Which processes of the container a signal goes to.
#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Target {
    #[default]
    Main,
    Group,
    All,
}

/// The body of a stop.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Stop {
    /// The first signal, by name or number; the spec's by default.
    signal: Option<String>,
    /// Seconds until SIGKILL; the spec's by default.
    grace_seconds: Option<u32>,
    #[serde(default)]
    message: String,
}

/// `POST /v1/namespaces/{namespace}/processes/{name}/signal`
pub(super) async fn signal(
    State(core): State<Arc<Core>>,
    Extension(client): Extension<Client>,
    Path(path): Path<(String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<StatusCode, Problem> {
    let Uid { uid } = parse(query)?;
    let asked: Signal = read(request).await?;
    let target = match asked.target {
        Target::Main => SignalTarget::Main,
        Target::Group => SignalTarget::Group,
        Target::All => SignalTarget::All,
    };
    let request = SignalRequest {
        protocol: PROTOCOL,
        process: Some(key(path, uid)),
        request_id: asked.request_id.unwrap_or_else(request_id),
        number: number(&asked.signal)?,
        target: target.into(),
    };
    core.signal(&client.access.caller, request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/namespaces/{namespace}/processes/{name}/stop`
pub(super) async fn stop(
    State(core): State<Arc<Core>>,
    Extension(client): Extension<Client>,
    Path(path): Path<(String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<StatusCode, Problem> {
    let Uid { uid } = parse(query)?;
    let asked: Stop = read(request).await?;
    let request = StopRequest {
        protocol: PROTOCOL,
        process: Some(key(path, uid)),
        signal: asked.signal.as_deref().map(number).transpose()?,
        grace_seconds: asked.grace_seconds,
        message: asked.message,
    };
    core.stop(&client.access.caller, request).await?;
    Ok(StatusCode::ACCEPTED)
}

fn number(text: &str) -> Result<i32, Error> {
    signal::parse(text).ok_or_else(|| {
        Error::invalid("signal: neither the name of a signal, such as SIGTERM, nor a number from 1 to 64")
    })
}

/// An id that no other request to this program has.
fn request_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = jiff::Timestamp::now().as_nanosecond();
    format!("http-{now}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The body of a request. JSON must be named: a page of another site can make a browser send anything else.
async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_json = kind.is_some_and(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    });
    if !is_json {
        let detail = "send JSON, with the header Content-Type: application/json";
        return Err(Problem::of_request(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let body = timeout(REQUEST_TIME, Limited::new(request.into_body(), REQUEST_SIZE).collect()).await;
    let body = body.map_err(|_| {
        let detail = "the body was not complete after 10 s";
        Problem::of_request(StatusCode::REQUEST_TIMEOUT, detail)
    })?;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => Problem::of_request(StatusCode::PAYLOAD_TOO_LARGE, "a body has at most 16 KiB"),
        false => Error::invalid("the body broke off").into(),
    })?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| Error::invalid(format!("the body: {error}")).into())
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_not_complete_in_time_is_refused() {
        let silent = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, axum::Error>>());
        let request = Request::builder().header(CONTENT_TYPE, "Application/JSON; charset=utf-8");
        let request = request.body(axum::body::Body::new(silent)).unwrap();
        let began = tokio::time::Instant::now();
        let refused = read::<Stop>(request).await.err().unwrap();
        assert_eq!(refused.into_response().status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(began.elapsed(), REQUEST_TIME);
    }
}
