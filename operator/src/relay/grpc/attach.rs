//! Writing to the input of a process.

use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse, ProcessKey};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::agent::AgentClient;
use super::interactive::Opening;
use super::requests::Requests;
use crate::audit::{Action, Input};
use crate::relay::attempt::{AttemptKey, Target};
use crate::relay::core::Core;
use crate::relay::error::{Code, Error};

impl Opening for AttachOpen {
    type Request = AttachRequest;
    type Answer = AttachResponse;

    fn of(request: AttachRequest) -> Option<Self> {
        match request.request {
            Some(Asked::Open(open)) => Some(open),
            _ => None,
        }
    }

    fn into_request(self) -> AttachRequest {
        let request = Some(Asked::Open(self));
        AttachRequest { request }
    }

    fn name(&self) -> &str {
        &self.session
    }

    fn meant(&self) -> (Option<ProcessKey>, u32) {
        (self.process.clone(), 0)
    }

    fn meaning(self, process: Option<ProcessKey>, user: &str) -> Self {
        let user = user.to_owned();
        Self { process, user, ..self }
    }

    fn audited(&self) -> Action<'static> {
        Action::OpenInput(match (self.take_over, self.resume) {
            (true, _) => Input::TakesOver,
            (false, true) => Input::Continues,
            (false, false) => Input::Opens,
        })
    }

    fn hang_up(&self) -> Option<(Self, AttachRequest)> {
        None
    }

    fn unreachable(core: &Core, target: &Target, _: &AttemptKey, error: Error) -> Error {
        match core.object(target).is_some_and(|process| process.is_final()) {
            // Clients interpret this code as the end of the program.
            true => Error::new(Code::OutOfRange, error.message),
            // The program may still start: the writer retries.
            false => Error::unavailable(error.message),
        }
    }

    async fn at_agent(
        agent: &AgentClient,
        requests: Requests<AttachRequest>,
    ) -> Result<Streaming<AttachResponse>, Error> {
        agent.attach(requests).await
    }

    async fn at_home(
        mut home: RelayClient<Channel>,
        requests: Request<Requests<AttachRequest>>,
    ) -> Result<Response<Streaming<AttachResponse>>, Status> {
        home.attach(requests).await
    }
}
