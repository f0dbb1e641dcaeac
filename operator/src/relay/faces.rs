//! The two faces of the relay at one listener: gRPC, told by its content type, and HTTP/JSON.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response};
use remoteprocess_tls::{PeerIdentity, Role};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::calls::CallLimit;
use super::core::Core;
use super::error::Error;
use super::grpc::{Guard, RelayEndpoint, RelayService};
use super::http::HttpFace;

/// The faces that users can use. Agents and other replicas always have gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// gRPC, which `rproc` uses.
    pub grpc: bool,
    /// HTTP/JSON.
    pub http: bool,
}

/// The service of the main listener. Cheap to clone.
#[derive(Clone)]
pub struct Faces {
    grpc: Guard<RelayEndpoint>,
    http: HttpFace,
    switches: Switches,
}

impl Default for Switches {
    fn default() -> Self {
        Self { grpc: true, http: true }
    }
}

impl Faces {
    /// The faces of these use cases.
    #[must_use]
    pub fn new(core: Core, switches: Switches) -> Self {
        let (core, limit) = (Arc::new(core), CallLimit::default());
        Self {
            grpc: RelayService::new(core.clone()).limited(limit.clone()),
            http: HttpFace::new(core, limit),
            switches,
        }
    }
}

/// Whether a request is a gRPC call ("gRPC over HTTP2", Requests).
fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

impl<B> Service<Request<B>> for Faces
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if self.switches.http && !is_grpc(request.headers()) {
            let answer = self.http.call(request);
            return Box::pin(async move { Ok(answer.await?.map(Body::new)) });
        }
        let peer = request.extensions().get::<Arc<PeerIdentity>>();
        if !self.switches.grpc && peer.is_some_and(|peer| peer.role == Role::User) {
            let off = Error::failed_precondition(
                "gRPC is off at this operator (Helm value faces.grpc: false), and rproc needs it. Set faces.grpc to \
                 true, or use HTTP, see docs/http.md",
            );
            return Box::pin(ready(Ok(Status::from(off).into_http())));
        }
        self.grpc.call(request)
    }
}
