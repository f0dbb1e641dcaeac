//! The body of an answer with output.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::StreamExt;
use http_body::{Body, Frame};

use super::{Broken, Encode, End, Step};
use crate::relay::core::output::Events;
use crate::relay::error::{Code, Error};

/// What an encoder makes of the events of a stream.
pub(super) struct OutputBody {
    events: Events,
    encoder: Box<dyn Encode>,
    ready: VecDeque<Bytes>,
    end: Option<End>,
    is_over: bool,
}

impl OutputBody {
    /// The body that begins with `first`.
    pub(super) fn new(events: Events, encoder: Box<dyn Encode>, first: Step) -> Self {
        Self {
            events,
            encoder,
            ready: first.bytes.into(),
            end: first.end,
            is_over: false,
        }
    }
}

impl Body for OutputBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            if let Some(end) = self.end.take() {
                self.is_over = true;
                return Poll::Ready(match end {
                    End::Whole(trailers) if trailers.is_empty() => None,
                    End::Whole(trailers) => Some(Ok(Frame::trailers(trailers))),
                    End::Broken(Broken::Failed(error)) => Some(Err(error)),
                    End::Broken(Broken::Gap(_)) => Some(Err(Error::new(Code::OutOfRange, "bytes are missing"))),
                });
            }
            let event = ready!(self.events.poll_next_unpin(cx));
            let step = self.encoder.encode(event);
            self.ready = step.bytes.into();
            self.end = step.end;
        }
    }
}
