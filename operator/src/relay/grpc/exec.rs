//! A further command in the container of a running process.

use remoteprocess_proto::v1::exec_request::Request as Asked;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{ExecOpen, ExecRequest, ExecResponse, HangUp, ProcessKey};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::agent::AgentClient;
use super::interactive::Opening;
use super::requests::Requests;
use crate::audit::Action;
use crate::relay::attempt::{AttemptKey, Target};
use crate::relay::core::Core;
use crate::relay::error::Error;

impl Opening for ExecOpen {
    type Request = ExecRequest;
    type Answer = ExecResponse;

    fn of(request: ExecRequest) -> Option<Self> {
        match request.request {
            Some(Asked::Open(open)) => Some(open),
            _ => None,
        }
    }

    fn into_request(self) -> ExecRequest {
        let request = Some(Asked::Open(self));
        ExecRequest { request }
    }

    fn name(&self) -> &str {
        &self.session
    }

    fn meant(&self) -> (Option<ProcessKey>, u32) {
        (self.process.clone(), self.attempt)
    }

    fn meaning(self, process: Option<ProcessKey>, user: &str) -> Self {
        let user = user.to_owned();
        Self { process, user, ..self }
    }

    /// Not the command: any word of it may be secret.
    fn audited(&self) -> Action<'static> {
        Action::Exec { resumes: self.resume }
    }

    /// A connection of its own, without a place in the output: nothing that the client has sent is in front of it.
    fn hang_up(&self) -> Option<(Self, ExecRequest)> {
        let open = Self {
            resume: true,
            received: None,
            ..self.clone()
        };
        let request = Some(Asked::HangUp(HangUp {}));
        Some((open, ExecRequest { request }))
    }

    fn unreachable(core: &Core, target: &Target, key: &AttemptKey, _: Error) -> Error {
        let Some(process) = core.object(target) else {
            return Error::not_found("the process has been deleted");
        };
        let status = process.status.clone().unwrap_or_default();
        let attempt = status.attempt(key.attempt);
        let has_ended = attempt.is_some_and(|attempt| attempt.exit.is_some() || attempt.output.is_some());
        if process.is_final() || has_ended || status.current_attempt().is_some_and(|latest| key.attempt < latest) {
            return Error::failed_precondition(format!("attempt {} of the process has ended", key.attempt));
        }
        if core.may_live(key) {
            // It will have a home in a moment.
            return Error::agent_unreachable();
        }
        Error::failed_precondition("the process has not started yet")
    }

    async fn at_agent(agent: &AgentClient, requests: Requests<ExecRequest>) -> Result<Streaming<ExecResponse>, Error> {
        agent.exec(requests).await
    }

    async fn at_home(
        mut home: RelayClient<Channel>,
        requests: Request<Requests<ExecRequest>>,
    ) -> Result<Response<Streaming<ExecResponse>>, Status> {
        home.exec(requests).await
    }
}
