//! The service on the wire: tonic's, but for `WatchOutput`, whose messages go out as the spool made them. Nobody but the
//! operator is served.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::future::BoxFuture;
use http::Extensions;
use remoteprocess_proto::v1::executor_server::ExecutorServer;
use remoteprocess_proto::wire::{EXECUTOR_WATCH_OUTPUT, answer, read_request};
use remoteprocess_tls::{PeerIdentity, Role};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tower::Service;

use super::ExecutorService;

/// Serves every method of the agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ExecutorEndpoint {
    service: Arc<ExecutorService>,
    tonic: ExecutorServer<ExecutorService>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl ExecutorEndpoint {
    pub(super) fn new(service: ExecutorService) -> Self {
        let service = Arc::new(service);
        Self {
            tonic: ExecutorServer::from_arc(service.clone()),
            service,
        }
    }
}

impl<B> Service<http::Request<B>> for ExecutorEndpoint
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if let Err(status) = require_operator(request.extensions()) {
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        if request.uri().path() != EXECUTOR_WATCH_OUTPUT {
            return self.tonic.call(request);
        }
        let service = self.service.clone();
        Box::pin(async move {
            let output = match read_request(request).await {
                Ok(request) => service.output(request.into_inner()),
                Err(status) => Err(status),
            };
            Ok(match output {
                Ok(output) => answer(MetadataMap::new(), output.into_stream().boxed()),
                Err(status) => status.into_http(),
            })
        })
    }
}

// tonic's own error type.
#[allow(clippy::result_large_err)]
fn require_operator(extensions: &Extensions) -> Result<(), Status> {
    match extensions.get::<Arc<PeerIdentity>>() {
        Some(peer) if peer.role == Role::Operator => Ok(()),
        Some(_) => Err(Status::permission_denied("only the operator may call an agent")),
        None => Err(Status::unauthenticated("a client certificate is required")),
    }
}
