//! The relay's service on the wire: tonic's, except for `WatchOutput`, whose messages are already encoded when they
//! come here, and are shared by all readers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use remoteprocess_proto::MAX_MESSAGE;
use remoteprocess_proto::metadata::UID;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_server::RelayServer;
use remoteprocess_proto::v1::{Heartbeat, OutputFrame, WatchOutputRequest};
use remoteprocess_proto::wire::{Endpoint, RELAY_WATCH_OUTPUT, WatchOutput, encode};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};
use tower::Service;

use super::brief::Brief;
use super::methods::{Method, Requests};
use super::peers::ATTEMPT;
use super::standard::Standard;
use super::{RelayService, admit};
use crate::relay::calls::{RefusalReason, Refused};
use crate::relay::core::output::{Events, OutputEvent};

/// Messages up to this size are combined: each piece of a body costs an HTTP/2 frame.
const TINY: usize = 2048;
/// Maximum number of bytes of combined messages.
const PACK: usize = 16 * 1024;

/// Serves every method of the relay, to its own callers: nobody else's request is read. Cheap to clone.
#[derive(Clone)]
pub struct RelayEndpoint {
    relay: Endpoint<RelayService, RelayServer<RelayService>>,
    standard: Standard,
}

pub(super) fn endpoint(service: RelayService) -> RelayEndpoint {
    let tonic = RelayServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE);
    RelayEndpoint {
        relay: Endpoint::new(service, tonic),
        standard: Standard::default(),
    }
}

impl<B> Service<http::Request<B>> for RelayEndpoint
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = Method::at(request.uri().path());
        let refusal = request.extensions().get::<RefusalReason>().cloned().unwrap_or_default();
        if let Some(Err(status)) = method.map(|method| method.admit(request.extensions())) {
            if status.code() == Code::PermissionDenied {
                refusal.refuse(Refused::NoRole);
            }
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let request = match method.map(|method| method.requests) {
            Some(Requests::One) => request.map(|body| Body::new(Brief::new(body, refusal))),
            Some(Requests::Many) | None => request.map(Body::new),
        };
        match Standard::serves(request.uri().path()) {
            true => self.standard.call(request),
            false => self.relay.call(request),
        }
    }
}

impl WatchOutput for RelayService {
    const PATH: &'static str = RELAY_WATCH_OUTPUT;
    type Request = WatchOutputRequest;
    type Messages = Messages;

    async fn watch_output(&self, request: Request<WatchOutputRequest>) -> Result<(MetadataMap, Messages), Status> {
        let (access, request) = admit(request)?;
        let output = self.core.output(access, request).await?;
        let mut metadata = MetadataMap::new();
        if let Ok(uid) = output.uid.parse() {
            metadata.insert(UID, uid);
        }
        if let Some(attempt) = output.attempt {
            metadata.insert(ATTEMPT, attempt.into());
        }
        let messages = Messages {
            events: output.events,
            ready: VecDeque::new(),
        };
        Ok((metadata, messages))
    }
}

/// The messages of all events.
pub struct Messages {
    events: Events,
    ready: VecDeque<Bytes>,
}

impl Stream for Messages {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(wire) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(wire)));
            }
            match ready!(self.events.poll_next_unpin(cx)) {
                Some(Ok(event)) => self.ready = messages(event),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// The messages of an event. Output is already encoded, once for all readers.
fn messages(event: OutputEvent) -> VecDeque<Bytes> {
    let frame = match event {
        OutputEvent::Output(frames) => return pack(frames.into_iter().map(|framed| framed.wire).collect()),
        OutputEvent::Position { offsets, attempt } => Frame::Heartbeat(Heartbeat { offsets, attempt }),
        OutputEvent::State(state) => Frame::State(state),
        OutputEvent::Exit(exit) => Frame::Exit(*exit),
    };
    VecDeque::from([encode(&OutputFrame { frame: Some(frame) })])
}

/// Combines tiny messages.
pub(in crate::relay) fn pack(wires: Vec<Bytes>) -> VecDeque<Bytes> {
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
