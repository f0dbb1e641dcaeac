//! Counts what a call receives and sends, and notices how it ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use super::problem::Outcome;
use crate::relay::calls::Call;
use crate::relay::error::Error;

/// The body of an answer, which ends its call.
struct Measured {
    body: Body,
    call: Call,
}

/// The body of a request, counted.
pub(super) fn received<B>(body: B, call: &Call) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let bytes = call.received();
    Body::new(body.map_frame(move |frame| {
        bytes.inc_by(frame.data_ref().map_or(0, Buf::remaining) as u64);
        frame
    }))
}

/// The answer, with a body that ends the call.
pub(super) fn answer(answer: Response, mut call: Call) -> Response {
    if let Some(Outcome { code, refused }) = answer.extensions().get().copied() {
        call.end(code, refused);
    }
    answer.map(|body| Body::new(Measured { body, call }))
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.call.send(frame.data_ref().map_or(0, Buf::remaining));
                if frame.is_trailers() {
                    self.call.end("OK", None);
                }
            }
            Some(Err(error)) => self.call.end(code(error), None),
            None => self.call.end("OK", None),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        // A body without a byte, or one of a known length, is not read to its end.
        if http_body::Body::is_end_stream(&self.body) {
            self.call.end("OK", None);
        }
    }
}

fn code(error: &axum::Error) -> &'static str {
    let source = std::error::Error::source(error);
    let cause = source.and_then(|source| source.downcast_ref::<Error>());
    cause.map_or("Unknown", |error| error.code.name())
}
