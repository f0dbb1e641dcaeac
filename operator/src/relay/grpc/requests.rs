//! Requests that arrive as a stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use tonic::Streaming;

/// The requests of a user, on their way to the agent. If the user ends them, they end here, too. If the connection
/// breaks, they do not end, because the user may come back. The answers, and the call with them, are dropped with the
/// connection.
pub(super) struct Requests<T> {
    first: VecDeque<T>,
    rest: Option<Streaming<T>>,
    is_broken: bool,
}

impl<T> Requests<T> {
    /// `first`, then what came behind it.
    pub(super) fn new(first: T, rest: Streaming<T>) -> Self {
        Self {
            first: [first].into(),
            rest: Some(rest),
            is_broken: false,
        }
    }

    /// These and no others.
    pub(super) fn only(all: [T; 2]) -> Self {
        Self {
            first: all.into(),
            rest: None,
            is_broken: false,
        }
    }
}

impl<T: Unpin> Stream for Requests<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(first) = self.first.pop_front() {
            return Poll::Ready(Some(first));
        }
        if self.is_broken {
            return Poll::Pending;
        }
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(None);
        };
        match rest.poll_next_unpin(cx) {
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
