//! A service on the wire: tonic's, except for one method, whose messages are sent as they are.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use http::Extensions;
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::{BoxError, answer, read_request};

/// The method of a service whose messages are already encoded.
pub trait WatchOutput: Clone + Send + 'static {
    /// Path of the method.
    const PATH: &'static str;
    /// Its request.
    type Request: Message + Default;
    /// Its answer: messages with their prefixes.
    type Messages: Stream<Item = Result<Bytes, Status>> + Send + Unpin + 'static;

    /// Whether the peer of this connection may call any method at all.
    ///
    /// # Errors
    /// The status for the caller.
    // tonic's own error type.
    fn admit(&self, _connection: &Extensions) -> Result<(), Status> {
        Ok(())
    }

    /// Answers the method: metadata, then messages.
    fn watch_output(
        &self,
        request: Request<Self::Request>,
    ) -> impl Future<Output = Result<(MetadataMap, Self::Messages), Status>> + Send;
}

/// Serves every method of a service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoint<S, T> {
    service: S,
    tonic: T,
}

impl<S, T> Endpoint<S, T> {
    /// `service` answers the one method, `tonic` the others.
    pub const fn new(service: S, tonic: T) -> Self {
        Self { service, tonic }
    }
}

impl<S, T, B> Service<http::Request<B>> for Endpoint<S, T>
where
    S: WatchOutput,
    T: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    T::Future: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if let Err(status) = self.service.admit(request.extensions()) {
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        if request.uri().path() != S::PATH {
            return Box::pin(self.tonic.call(request));
        }
        let service = self.service.clone();
        Box::pin(async move {
            let output = match read_request(request).await {
                Ok(request) => service.watch_output(request).await,
                Err(status) => Err(status),
            };
            Ok(match output {
                Ok((metadata, messages)) => answer(metadata, messages),
                Err(status) => status.into_http(),
            })
        })
    }
}
