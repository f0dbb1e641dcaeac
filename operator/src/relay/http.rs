//! HTTP/JSON: the face of the relay for users with `curl`, a browser or a script.
//!
//! A route consists of a line in [`routes`], one use case of [`super::core`], and the encoding of the answer. What a
//! request means ([`output::query`], [`selector`]) and what the bytes of an answer are ([`output::record`],
//! [`output::raw`]) is decided by pure functions.

mod control;
mod measure;
mod openapi;
mod output;
mod problem;
mod process;
pub(crate) mod routes;
mod selector;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::Request;
use remoteprocess_proto::v1::ProcessKey;
use remoteprocess_tls::User;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt;
use tracing::Instrument;

use super::calls::{Call, CallLimit};
use super::core::Core;
use super::core::access::Access;
use super::core::authorize::Caller;
use super::error::{Code, Error};
use super::grpc::caller;
use problem::Problem;

/// Time until an answer begins.
const ANSWER: Duration = Duration::from_secs(30);

/// The service; cheap to clone.
#[derive(Clone)]
pub(super) struct HttpFace {
    router: Router,
    limit: CallLimit,
}

/// The user who calls, and over which connection.
#[derive(Clone)]
struct Client {
    user: User,
    access: Access,
}

/// The query of a route that only needs to know the process.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Uid {
    /// The object with this uid, also after its deletion.
    uid: String,
}

impl HttpFace {
    /// The HTTP face of these use cases.
    pub(super) fn new(core: Arc<Core>, limit: CallLimit) -> Self {
        let router = routes::router(core);
        Self { router, limit }
    }

    /// Answers one request.
    pub(super) fn call<B>(&self, request: Request<B>) -> impl Future<Output = Result<Response, Infallible>> + use<B>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let route = routes::name(request.method(), request.uri().path());
        let info = request.extensions().get::<TcpConnectInfo>();
        let source = info.and_then(|info| Some(info.remote_addr?.ip()));
        let call = Call::begin("http", route, request.extensions().get().cloned(), source);
        let router = self.router.clone();
        let is_admitted = self.limit.admits(&call);
        async move {
            let span = call.span().clone();
            let answer = match is_admitted {
                true => {
                    answer(router, request.map(|body| measure::received(body, &call)))
                        .instrument(span)
                        .await
                }
                false => {
                    CallLimit::penalty().await;
                    Err(Error::new(Code::ResourceExhausted, "too many calls; try again later").into())
                }
            };
            Ok(measure::answer(answer.unwrap_or_else(Problem::into_response), call))
        }
    }
}

async fn answer(router: Router, mut request: Request<axum::body::Body>) -> Result<Response, Problem> {
    let client = Client::of(request.extensions())?;
    request.extensions_mut().insert(client);
    let late = |_| Error::new(Code::DeadlineExceeded, "no answer after 30 s; try again");
    let Ok(answer) = timeout(ANSWER, router.oneshot(request)).await.map_err(late)?;
    Ok(answer)
}

impl Client {
    fn of(connection: &http::Extensions) -> Result<Self, Error> {
        let caller = caller::user_caller(connection)?;
        let user = caller.user.clone();
        let access = caller::access(Caller::User(caller), connection)?;
        Ok(Self { user, access })
    }
}

/// The process of a route.
fn key((namespace, name): (String, String), uid: String) -> ProcessKey {
    ProcessKey { namespace, name, uid }
}

/// The query of a request. An unknown parameter is an error.
fn parse<T: DeserializeOwned>(query: Option<String>) -> Result<T, Problem> {
    let parsed = serde_urlencoded::from_str(query.as_deref().unwrap_or_default());
    parsed.map_err(|error| Error::invalid(format!("the query: {error}")).into())
}
