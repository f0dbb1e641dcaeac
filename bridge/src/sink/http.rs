//! Events to a URL: `POST` in structured mode ("HTTP Protocol Binding for CloudEvents", 3.2).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::sanitize;
use remoteprocess_api::sink::HttpDestination;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::timeout;

use super::destination::Destination;
use crate::outcome::{CONTENT_TYPE as CLOUD_EVENT, CloudEvent};
use crate::source::{ANSWER_TIMEOUT, Secrets, SourceError, in_time, tls_config};

/// Most bytes of an answer that are read. The connection of a longer one is closed.
const MAX_ANSWER: usize = 64 << 10;
/// How long the body of an answer may take.
const BODY: Duration = Duration::from_secs(1);
/// Longest sentence of the server that is passed on, in characters.
const MAX_SENTENCE: usize = 256;

/// A URL.
struct Endpoint {
    url: Url,
    client: Client,
    authorization: Option<HeaderValue>,
}

/// Prepares calls. Whether the server is there is known when something is sent.
///
/// # Errors
/// [`BridgeReason::InvalidDestination`] and [`BridgeReason::InvalidSecret`].
pub(super) async fn open(
    destination: &HttpDestination,
    secrets: &Secrets,
) -> Result<Arc<dyn Destination>, SourceError> {
    let url = destination.url.parse::<Url>();
    let url = url.map_err(|error| {
        let message = format!("spec.destination.http.url: {error}");
        SourceError::new(BridgeReason::InvalidDestination, message)
    })?;
    let authorization = match &destination.credentials_secret_name {
        Some(_) => Some(bearer(&secrets.required_credential("token").await?)?),
        None => None,
    };
    let tls = tls_config(destination.tls.as_ref(), secrets).await?;
    let client = Client::builder()
        .tls_backend_preconfigured((*tls).clone())
        .redirect(Policy::none())
        .connect_timeout(ANSWER_TIMEOUT)
        .user_agent("remoteprocess-bridge")
        .build();
    Ok(Arc::new(Endpoint {
        url,
        client: client.map_err(SourceError::unreachable)?,
        authorization,
    }))
}

fn bearer(token: &str) -> Result<HeaderValue, SourceError> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
        let message = "token of the Secret has characters that no header can have";
        SourceError::new(BridgeReason::InvalidSecret, message)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

impl Destination for Endpoint {
    fn send<'a>(&'a self, event: &'a CloudEvent, _key: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let mut response = in_time("the destination", self.post(event)).await?;
            let status = response.status();
            // The status is the answer. What follows is read so that the connection can be used again, and for a sentence.
            let body = timeout(BODY, read(&mut response)).await.unwrap_or_default();
            match status.is_success() {
                true => Ok(()),
                false => Err(SourceError::new(reason(status), sentence(status, &body))),
            }
        })
    }
}

impl Endpoint {
    async fn post(&self, event: &CloudEvent) -> Result<Response, SourceError> {
        let mut request = self.client.post(self.url.clone());
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let request = request.header(CONTENT_TYPE, CLOUD_EVENT).body(event.to_json());
        request.send().await.map_err(|error| failed(&error))
    }
}

/// The beginning of an answer.
async fn read(response: &mut Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = MAX_ANSWER - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == MAX_ANSWER {
            break;
        }
    }
    body
}

/// Why there is no answer.
fn failed(error: &reqwest::Error) -> SourceError {
    let (mut cause, mut reason): (&(dyn Error + 'static), _) = (error, BridgeReason::Unreachable);
    while let Some(inner) = cause.source() {
        let tls = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = tls.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls.or_else(|| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(_)) => reason = BridgeReason::Untrusted,
            Some(rustls::Error::AlertReceived(_)) => reason = BridgeReason::Unauthorized,
            _ => {}
        }
        cause = inner;
    }
    SourceError::new(reason, format!("no answer from the destination: {cause}"))
}

fn reason(status: StatusCode) -> BridgeReason {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => BridgeReason::Unauthorized,
        StatusCode::NOT_FOUND | StatusCode::GONE => BridgeReason::NotFound,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => BridgeReason::Unreachable,
        status if status.is_client_error() || status.is_redirection() => BridgeReason::InvalidDestination,
        _ => BridgeReason::Unreachable,
    }
}

/// The status, and what the server says about it in its first line.
fn sentence(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * MAX_SENTENCE)]);
    let said = sanitize::plain(text.lines().next().unwrap_or_default(), MAX_SENTENCE);
    let hint = if status.is_redirection() {
        "; redirects are not followed"
    } else {
        ""
    };
    match said.trim() {
        "" => format!("the destination answers {status}{hint}"),
        said => format!("the destination answers {status}{hint}: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_their_meaning() {
        for (code, expected) in [
            (401, BridgeReason::Unauthorized),
            (403, BridgeReason::Unauthorized),
            (404, BridgeReason::NotFound),
            (302, BridgeReason::InvalidDestination),
            (413, BridgeReason::InvalidDestination),
            (429, BridgeReason::Unreachable),
            (503, BridgeReason::Unreachable),
        ] {
            assert_eq!(reason(StatusCode::from_u16(code).unwrap()), expected, "{code}");
        }
    }

    #[test]
    fn a_sentence_is_short_and_harmless() {
        let said = sentence(StatusCode::BAD_REQUEST, b"no \x1b[2Jthanks\nsecond line");
        assert_eq!(said, "the destination answers 400 Bad Request: no [2Jthanks");
        assert!(sentence(StatusCode::BAD_GATEWAY, &[0xff; 100_000]).len() < 2000);
        assert_eq!(
            sentence(StatusCode::NOT_FOUND, b""),
            "the destination answers 404 Not Found"
        );
    }

    #[test]
    fn a_token_that_is_no_header_is_refused() {
        assert_eq!(bearer("a\nb").unwrap_err().reason, BridgeReason::InvalidSecret);
        assert!(bearer("secret").unwrap().is_sensitive());
    }
}
