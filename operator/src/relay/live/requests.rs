//! A user's requests on their way to the agent, on a connection of their own: one that waits for the program to read must
//! not hold up commits.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use remoteprocess_proto::v1::executor_client::ExecutorClient;
use remoteprocess_proto::v1::{AttachRequest, AttachResponse, ExecRequest, ExecResponse};
use tokio::time::timeout;
use tonic::{Response, Status, Streaming};

use super::agent_calls::CALL;
use super::{ControlError, Session};

/// Requests as they go on. A user who lets go ends them; one whose connection breaks does not: it comes back. The answers
/// are dropped with the connection, and the call with them.
pub struct Requests<T> {
    first: Option<T>,
    rest: Streaming<T>,
    is_broken: bool,
}

impl<T> Requests<T> {
    /// `first`, then what came behind it.
    #[must_use]
    pub const fn new(first: T, rest: Streaming<T>) -> Self {
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

impl Session {
    /// Opens the program's input; the first request says for whom.
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses.
    pub async fn attach(&self, requests: Requests<AttachRequest>) -> Result<Streaming<AttachResponse>, ControlError> {
        let agent = self.agent.borrow().clone();
        let mut client = ExecutorClient::new(self.dial(&agent).await?);
        opened(client.attach(requests)).await
    }

    /// Begins a further command, or joins one; the first request says for whom.
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses.
    pub async fn exec(&self, requests: Requests<ExecRequest>) -> Result<Streaming<ExecResponse>, ControlError> {
        let agent = self.agent.borrow().clone();
        let mut client = ExecutorClient::new(self.dial(&agent).await?);
        opened(client.exec(requests)).await
    }
}

async fn opened<T>(
    call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
) -> Result<Streaming<T>, ControlError> {
    match timeout(CALL, call).await {
        Ok(Ok(answers)) => Ok(answers.into_inner()),
        Ok(Err(status)) => Err(ControlError::Refused(status)),
        Err(_) => Err(ControlError::Unreachable),
    }
}
