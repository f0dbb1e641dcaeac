//! Writers' streams to the agent, each on a connection of its own: one that waits for the program to read must not hold
//! up commits.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::executor_client::ExecutorClient;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse};
use tokio::time::timeout;
use tonic::Streaming;
use tracing::debug;

use super::{ControlError, Session};

/// Time for the connection, and for the first answer.
const CALL: Duration = Duration::from_secs(5);

/// A writer's requests as they go on. One who lets go ends them; one whose connection breaks does not: it comes back.
/// The answers are dropped with the connection, and the call with them.
pub struct Requests {
    open: Option<AttachOpen>,
    rest: Streaming<AttachRequest>,
    is_broken: bool,
}

impl Requests {
    /// What came behind `open`, which is the first to go on.
    #[must_use]
    pub const fn new(open: AttachOpen, rest: Streaming<AttachRequest>) -> Self {
        Self {
            open: Some(open),
            rest,
            is_broken: false,
        }
    }
}

impl Stream for Requests {
    type Item = AttachRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AttachRequest>> {
        if let Some(open) = self.open.take() {
            let request = Some(Asked::Open(open));
            return Poll::Ready(Some(AttachRequest { request }));
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
    pub async fn attach(&self, requests: Requests) -> Result<Streaming<AttachResponse>, ControlError> {
        let agent = self.agent.borrow().clone();
        if agent.address.is_empty() {
            return Err(ControlError::Unreachable);
        }
        let connected = timeout(CALL, self.context.connect.connect(&agent)).await;
        let Ok(Ok(channel)) = connected else {
            debug!(address = agent.address, "cannot connect to the agent for its input");
            return Err(ControlError::Unreachable);
        };
        match timeout(CALL, ExecutorClient::new(channel).attach(requests)).await {
            Ok(Ok(answers)) => Ok(answers.into_inner()),
            Ok(Err(status)) => Err(ControlError::Refused(status)),
            Err(_) => Err(ControlError::Unreachable),
        }
    }
}
