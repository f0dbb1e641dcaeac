//! The relay's service on the wire: tonic's, but for `WatchOutput`, whose messages are encoded before they come here and
//! go out as they are, shared by all who read them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use remoteprocess_proto::MAX_MESSAGE;
use remoteprocess_proto::v1::WatchOutputRequest;
use remoteprocess_proto::v1::relay_server::RelayServer;
use remoteprocess_proto::wire::{Endpoint, RELAY_WATCH_OUTPUT, WatchOutput};
use tokio::sync::mpsc;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::RelayService;

/// Messages up to this size are put together: each piece of a body costs a frame of HTTP/2.
const TINY: usize = 2048;
/// Bytes of tiny messages in one.
const PACK: usize = 16 * 1024;

/// Serves every method of the relay. Cheap to clone.
pub type RelayEndpoint = Endpoint<RelayService, RelayServer<RelayService>>;

/// Encoded messages; or why the stream is over.
pub(crate) type Batch = Result<Vec<Bytes>, Status>;

pub(crate) fn endpoint(service: RelayService) -> RelayEndpoint {
    let tonic = RelayServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE);
    Endpoint::new(service, tonic)
}

impl WatchOutput for RelayService {
    const PATH: &'static str = RELAY_WATCH_OUTPUT;
    type Request = WatchOutputRequest;
    type Messages = Messages;

    async fn watch_output(&self, request: Request<WatchOutputRequest>) -> Result<(MetadataMap, Messages), Status> {
        let (metadata, batches) = self.output(request).await?;
        let ready = VecDeque::new();
        Ok((metadata, Messages { batches, ready }))
    }
}

/// The messages of all batches.
pub struct Messages {
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
