//! The body of a call with one request: short, and complete within seconds.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;

use crate::relay::calls::{REQUEST_SIZE, REQUEST_TIME, RefusalReason, Refused};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that fails where it is longer, or takes longer.
pub(super) struct Brief<B> {
    body: Pin<Box<B>>,
    left: usize,
    late: Pin<Box<Sleep>>,
    refusal: RefusalReason,
}

impl<B> Brief<B> {
    pub(super) fn new(body: B, refusal: RefusalReason) -> Self {
        Self {
            body: Box::pin(body),
            left: REQUEST_SIZE,
            late: Box::pin(sleep(REQUEST_TIME)),
            refusal,
        }
    }
}

impl<B> Body for Brief<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.late.as_mut().poll(cx).is_ready() {
            self.refusal.refuse(Refused::TooLate);
            let late = Status::deadline_exceeded("the request was not complete after 10 s");
            return Poll::Ready(Some(Err(late.into())));
        }
        let frame = match ready!(self.body.as_mut().poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let length = frame.data_ref().map_or(0, Buf::remaining);
        match self.left.checked_sub(length) {
            Some(left) => self.left = left,
            None => {
                self.refusal.refuse(Refused::TooLarge);
                let long = Status::out_of_range("a request has at most 16 KiB");
                return Poll::Ready(Some(Err(long.into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full, StreamBody};

    #[tokio::test(start_paused = true)]
    async fn a_long_or_slow_request_fails() {
        let short = Brief::new(Full::new(Bytes::from(vec![0; REQUEST_SIZE])), RefusalReason::default());
        assert_eq!(short.collect().await.unwrap().to_bytes().len(), REQUEST_SIZE);
        let code = |error: BoxError| error.downcast::<Status>().unwrap().code();
        let refusal = RefusalReason::default();
        let long = Brief::new(Full::new(Bytes::from(vec![0; REQUEST_SIZE + 1])), refusal.clone());
        assert_eq!(code(long.collect().await.unwrap_err()), tonic::Code::OutOfRange);
        assert_eq!(refusal.reason(), Some(Refused::TooLarge));
        let silent = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Status>>());
        let began = tokio::time::Instant::now();
        let refusal = RefusalReason::default();
        let late = Brief::new(silent, refusal.clone()).collect().await.unwrap_err();
        assert_eq!(
            (code(late), began.elapsed()),
            (tonic::Code::DeadlineExceeded, REQUEST_TIME)
        );
        assert_eq!(refusal.reason(), Some(Refused::TooLate));
    }
}
