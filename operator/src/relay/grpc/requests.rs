//! Requests that arrive as a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use tonic::Streaming;

/// The requests of a user, on their way to the agent. If the user ends them, they end here, too. If the connection
/// breaks, they do not end, because the user may come back. The answers, and the call with them, are dropped with the
/// connection.
pub(super) struct Requests<T> {
    first: Option<T>,
    rest: Streaming<T>,
    is_broken: bool,
}

impl<T> Requests<T> {
    /// `first`, then what followed it.
    pub(super) const fn new(first: T, rest: Streaming<T>) -> Self {
        Self {
            first: Some(first),
            rest,
            is_broken: false,
        }
    }
}

impl<T: Unpin> Stream for Requests<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.is_broken {
            return Poll::Pending;
        }
        match self.rest.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(request))) => Poll::Ready(Some(request)),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(_))) => {
                self.is_broken = true;
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
