//! Calls to the agent beside the stream, on a connection of their own.

use std::time::Duration;

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::executor_client::ExecutorClient;
use remoteprocess_proto::v1::{
    CommitRequest, Cursor, ExecutorGetStateRequest, ExecutorGetStateResponse, ExecutorPauseRequest,
    ExecutorSetDeadlineRequest, ExecutorSignalRequest, ExecutorStopRequest,
};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;
use tracing::debug;

use super::{Agent, Session};

/// Time for one call, and for the connection before it.
pub(super) const CALL: Duration = Duration::from_secs(5);

/// The connection for calls, made when it is first needed.
#[derive(Default)]
pub struct Control {
    channel: Mutex<Option<(Agent, Channel)>>,
}

/// Why the agent did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be reached now.
    #[error("the agent cannot be reached")]
    Unreachable,
    /// It answered with an error.
    #[error("the agent refused: {0}")]
    Refused(Status),
}

impl Session {
    /// Sends one signal, once per request id.
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses.
    pub async fn signal(&self, request: ExecutorSignalRequest) -> Result<(), ControlError> {
        let mut client = self.executor().await?;
        self.call(client.signal(request)).await.map(drop)
    }

    /// Starts the stop path.
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses.
    pub async fn stop(&self, request: ExecutorStopRequest) -> Result<(), ControlError> {
        let mut client = self.executor().await?;
        self.call(client.stop(request)).await.map(drop)
    }

    pub(super) async fn agent_state(&self) -> Result<ExecutorGetStateResponse, ControlError> {
        let mut client = self.executor().await?;
        self.call(client.get_state(ExecutorGetStateRequest { protocol: PROTOCOL }))
            .await
    }

    pub(super) async fn commit(&self, archived: Cursor, last: bool) -> Result<(), ControlError> {
        let mut client = self.executor().await?;
        self.call(client.commit(CommitRequest {
            archived: Some(archived),
            r#final: last,
        }))
        .await
        .map(drop)
    }

    pub(super) async fn pause(&self, request: ExecutorPauseRequest) -> Result<(), ControlError> {
        let mut client = self.executor().await?;
        self.call(client.pause(request)).await.map(drop)
    }

    pub(super) async fn set_deadline(&self, request: ExecutorSetDeadlineRequest) -> Result<(), ControlError> {
        let mut client = self.executor().await?;
        self.call(client.set_deadline(request)).await.map(drop)
    }

    /// A new connection to the agent.
    pub(super) async fn dial(&self, agent: &Agent) -> Result<Channel, ControlError> {
        if agent.address.is_empty() {
            return Err(ControlError::Unreachable);
        }
        match timeout(CALL, self.context.connect.connect(agent)).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => {
                debug!(address = agent.address, error, "cannot connect to the agent");
                Err(ControlError::Unreachable)
            }
            Err(_) => Err(ControlError::Unreachable),
        }
    }

    async fn executor(&self) -> Result<ExecutorClient<Channel>, ControlError> {
        let agent = self.agent.borrow().clone();
        let mut held = self.control.channel.lock().await;
        if let Some((_, channel)) = held.as_ref().filter(|(known, _)| *known == agent) {
            return Ok(ExecutorClient::new(channel.clone()));
        }
        let channel = self.dial(&agent).await?;
        *held = Some((agent, channel.clone()));
        Ok(ExecutorClient::new(channel))
    }

    async fn call<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, ControlError> {
        match timeout(CALL, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) if status.code() == tonic::Code::Unavailable => Err(self.forget().await),
            Ok(Err(status)) => Err(ControlError::Refused(status)),
            Err(_) => Err(self.forget().await),
        }
    }

    /// The next call connects anew.
    async fn forget(&self) -> ControlError {
        *self.control.channel.lock().await = None;
        ControlError::Unreachable
    }
}
