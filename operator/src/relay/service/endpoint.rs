//! The relay's service on the wire: tonic's, but for `WatchOutput`, whose messages are encoded before they come here and
//! go out as they are, shared by all who read them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::future::BoxFuture;
use remoteprocess_proto::MAX_MESSAGE;
use remoteprocess_proto::v1::relay_server::RelayServer;
use remoteprocess_proto::wire::{RELAY_WATCH_OUTPUT, answer, read_request};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tower::Service;

use super::RelayService;

/// Messages up to this size are put together: each piece of a body costs a frame of HTTP/2.
const TINY: usize = 2048;
/// Bytes of tiny messages in one.
const PACK: usize = 16 * 1024;

/// Serves every method of the relay. Cheap to clone.
#[derive(Clone)]
pub struct RelayEndpoint {
    service: RelayService,
    tonic: RelayServer<RelayService>,
}

/// Encoded messages; or why the stream is over.
pub(super) type Batch = Result<Vec<Bytes>, Status>;

/// What `WatchOutput` answers: metadata, then messages.
pub(super) type Output = (MetadataMap, mpsc::Receiver<Batch>);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl RelayEndpoint {
    pub(super) fn new(service: RelayService) -> Self {
        Self {
            tonic: RelayServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE),
            service,
        }
    }
}

impl<B> Service<http::Request<B>> for RelayEndpoint
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
        if request.uri().path() != RELAY_WATCH_OUTPUT {
            return self.tonic.call(request);
        }
        let service = self.service.clone();
        Box::pin(async move {
            let output = match read_request(request).await {
                Ok(request) => service.output(request).await,
                Err(status) => Err(status),
            };
            Ok(match output {
                Ok((metadata, batches)) => {
                    let ready = VecDeque::new();
                    answer(metadata, Messages { batches, ready })
                }
                Err(status) => status.into_http(),
            })
        })
    }
}

/// The messages of all batches.
struct Messages {
    batches: mpsc::Receiver<Batch>,
    ready: VecDeque<Bytes>,
}

impl Stream for Messages {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(wire) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(wire)));
            }
            match ready!(self.batches.poll_recv(cx)) {
                Some(Ok(batch)) => self.ready = pack(batch),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Puts tiny messages together.
fn pack(wires: Vec<Bytes>) -> VecDeque<Bytes> {
    let mut packed = VecDeque::with_capacity(wires.len());
    let mut tiny = BytesMut::new();
    let mut wires = wires.into_iter().peekable();
    while let Some(wire) = wires.next() {
        let is_alone = tiny.is_empty() && wires.peek().is_none_or(|next| next.len() > TINY);
        if wire.len() > TINY || is_alone {
            if !tiny.is_empty() {
                packed.push_back(tiny.split().freeze());
            }
            packed.push_back(wire);
            continue;
        }
        tiny.extend_from_slice(&wire);
        if tiny.len() >= PACK {
            packed.push_back(tiny.split().freeze());
        }
    }
    if !tiny.is_empty() {
        packed.push_back(tiny.freeze());
    }
    packed
}
