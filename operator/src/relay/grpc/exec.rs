//! A further command in the container of a process that runs.

use remoteprocess_proto::v1::exec_request::Request as Asked;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{ExecOpen, ExecRequest, ExecResponse, ProcessKey};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::interactive::Opening;
use super::{RelayParts, Target};
use crate::relay::attempt::AttemptKey;
use crate::relay::core::authorize::Action;
use crate::relay::live::{ControlError, Requests, Session};

/// So much of a program's name is in the audit, in bytes.
const AUDITED: usize = 256;

impl Opening for ExecOpen {
    type Request = ExecRequest;
    type Answer = ExecResponse;
    const ACTION: Action = Action::Exec;

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

    fn head(&self) -> (u32, &str) {
        (self.protocol, &self.session)
    }

    fn meant(&self) -> (Option<ProcessKey>, u32) {
        (self.process.clone(), self.attempt)
    }

    fn meaning(self, process: Option<ProcessKey>, user: &str) -> Self {
        let user = user.to_owned();
        Self { process, user, ..self }
    }

    /// The program alone: arguments may be secret.
    fn audited(&self) -> (&'static str, String) {
        let program = self.command.first().map(|word| &word[..word.len().min(AUDITED)]);
        let program = String::from_utf8_lossy(program.unwrap_or_default());
        let how = if self.resume { "goes on with" } else { "runs" };
        ("exec", format!("{how} {program:?}"))
    }

    fn unreachable(parts: &RelayParts, target: &Target, key: &AttemptKey, _: Status) -> Status {
        let Some(process) = parts.object(target) else {
            return Status::not_found("the process has been deleted");
        };
        let status = process.status.clone().unwrap_or_default();
        let attempt = status.attempt(key.attempt);
        let has_ended = attempt.is_some_and(|attempt| attempt.exit.is_some() || attempt.output.is_some());
        if process.is_final() || has_ended || status.attempt.is_some_and(|latest| key.attempt < latest) {
            return Status::failed_precondition(format!("attempt {} of the process has ended", key.attempt));
        }
        if parts.may_live(key) {
            // It has a home in a moment.
            return Status::unavailable("the agent of the process cannot be reached now");
        }
        Status::failed_precondition("the process has not started yet")
    }

    async fn at_agent(
        session: &Session,
        requests: Requests<ExecRequest>,
    ) -> Result<Streaming<ExecResponse>, ControlError> {
        session.exec(requests).await
    }

    async fn at_home(
        mut home: RelayClient<Channel>,
        requests: Request<Requests<ExecRequest>>,
    ) -> Result<Response<Streaming<ExecResponse>>, Status> {
        home.exec(requests).await
    }
}
