//! The calls to the agent of an attempt.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::executor_client::ExecutorClient;
use remoteprocess_proto::v1::{
    AttachRequest, AttachResponse, CommitRequest, Cursor, ExecRequest, ExecResponse, ExecutorGetStateRequest,
    ExecutorGetStateResponse, ExecutorPauseRequest, ExecutorSetDeadlineRequest, ExecutorSignalRequest,
    ExecutorStopRequest, ExecutorWatchOutputRequest,
};
use remoteprocess_proto::wire::EXECUTOR_WATCH_OUTPUT;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::frames::Frames;
use super::requests::Requests;
use crate::relay::attempt::Agent;
use crate::relay::error::Error;

/// Time limit for one call, and for the connection before it.
const CALL: Duration = Duration::from_secs(5);

/// Why an agent could not be reached; for the log.
pub type ConnectError = Box<dyn std::error::Error + Send + Sync>;

/// Makes connections to agents.
pub trait Connect: Send + Sync + 'static {
    /// Opens a new connection; fails if the peer is not exactly this agent.
    fn connect<'a>(&'a self, agent: &'a Agent) -> BoxFuture<'a, Result<Channel, ConnectError>>;
}

/// Calls the agent of one attempt, wherever it is now. If the agent cannot be reached, the error is `Unavailable`;
/// every other error is the agent's own answer.
pub struct AgentClient {
    connect: Arc<dyn Connect>,
    agent: watch::Receiver<Agent>,
    /// The connection for short calls, opened when it is first needed. Streams have their own: one that waits for the
    /// program to read must not delay commits.
    channel: Mutex<Option<(Agent, Channel)>>,
}

impl AgentClient {
    /// Calls the agent that `agent` names.
    pub fn new(connect: Arc<dyn Connect>, agent: watch::Receiver<Agent>) -> Self {
        Self {
            connect,
            agent,
            channel: Mutex::default(),
        }
    }

    /// Opens the output from `cursor` on, as the attempt's home.
    pub async fn watch_output(&self, agent: &Agent, cursor: Cursor) -> Result<Frames, Error> {
        let channel = self.dial(agent).await?;
        let request = ExecutorWatchOutputRequest {
            protocol: PROTOCOL,
            cursor: Some(cursor),
            home: true,
        };
        let opened = Frames::open(channel, EXECUTOR_WATCH_OUTPUT, Request::new(request));
        timeout(CALL, opened)
            .await
            .unwrap_or_else(|_| Err(Error::agent_unreachable()))
    }

    /// Sends one signal, once per request id.
    pub async fn signal(&self, request: ExecutorSignalRequest) -> Result<(), Error> {
        let mut client = self.executor().await?;
        self.call(client.signal(request)).await.map(drop)
    }

    /// Starts the stop path.
    pub async fn stop(&self, request: ExecutorStopRequest) -> Result<(), Error> {
        let mut client = self.executor().await?;
        self.call(client.stop(request)).await.map(drop)
    }

    /// What the agent knows of its program.
    pub async fn get_state(&self) -> Result<ExecutorGetStateResponse, Error> {
        let mut client = self.executor().await?;
        let request = ExecutorGetStateRequest { protocol: PROTOCOL };
        self.call(client.get_state(request)).await
    }

    /// Tells the agent up to where the output is durable; `last`: that no more requests follow.
    pub async fn commit(&self, archived: Cursor, last: bool) -> Result<(), Error> {
        let mut client = self.executor().await?;
        let request = CommitRequest {
            archived: Some(archived),
            r#final: last,
        };
        self.call(client.commit(request)).await.map(drop)
    }

    /// Pauses the program, or resumes it.
    pub async fn pause(&self, request: ExecutorPauseRequest) -> Result<(), Error> {
        let mut client = self.executor().await?;
        self.call(client.pause(request)).await.map(drop)
    }

    /// Sets another run deadline.
    pub async fn set_deadline(&self, request: ExecutorSetDeadlineRequest) -> Result<(), Error> {
        let mut client = self.executor().await?;
        self.call(client.set_deadline(request)).await.map(drop)
    }

    /// Opens the program's input; the first request names the user.
    pub(super) async fn attach(&self, requests: Requests<AttachRequest>) -> Result<Streaming<AttachResponse>, Error> {
        opened(self.stream().await?.attach(requests)).await
    }

    /// Starts a further command, or joins one; the first request names the user.
    pub(super) async fn exec(&self, requests: Requests<ExecRequest>) -> Result<Streaming<ExecResponse>, Error> {
        opened(self.stream().await?.exec(requests)).await
    }

    /// A new connection to an agent.
    async fn dial(&self, agent: &Agent) -> Result<Channel, Error> {
        if agent.address.is_empty() {
            return Err(Error::agent_unreachable());
        }
        match timeout(CALL, self.connect.connect(agent)).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => {
                debug!(address = agent.address, error, "cannot connect to the agent");
                Err(Error::agent_unreachable())
            }
            Err(_) => Err(Error::agent_unreachable()),
        }
    }

    async fn stream(&self) -> Result<ExecutorClient<Channel>, Error> {
        let agent = self.agent.borrow().clone();
        Ok(ExecutorClient::new(self.dial(&agent).await?))
    }

    async fn executor(&self) -> Result<ExecutorClient<Channel>, Error> {
        let agent = self.agent.borrow().clone();
        let mut held = self.channel.lock().await;
        if let Some((_, channel)) = held.as_ref().filter(|(known, _)| *known == agent) {
            return Ok(ExecutorClient::new(channel.clone()));
        }
        let channel = self.dial(&agent).await?;
        *held = Some((agent, channel.clone()));
        Ok(ExecutorClient::new(channel))
    }

    async fn call<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Error> {
        match timeout(CALL, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) if status.code() != tonic::Code::Unavailable => Err(status.into()),
            // The next call opens a new connection.
            Ok(Err(_)) | Err(_) => {
                *self.channel.lock().await = None;
                Err(Error::agent_unreachable())
            }
        }
    }
}

async fn opened<T>(call: impl Future<Output = Result<Response<Streaming<T>>, Status>>) -> Result<Streaming<T>, Error> {
    match timeout(CALL, call).await {
        Ok(Ok(answers)) => Ok(answers.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(Error::agent_unreachable()),
    }
}
