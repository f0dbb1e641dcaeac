//! Writing into a process.

use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse, ProcessKey};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::interactive::Opening;
use super::{RelayParts, Target};
use crate::relay::attempt::AttemptKey;
use crate::relay::core::authorize::Action;
use crate::relay::live::{ControlError, Requests, Session};

impl Opening for AttachOpen {
    type Request = AttachRequest;
    type Answer = AttachResponse;
    const ACTION: Action = Action::Attach;

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

    fn head(&self) -> (u32, &str) {
        (self.protocol, &self.session)
    }

    fn meant(&self) -> (Option<ProcessKey>, u32) {
        (self.process.clone(), 0)
    }

    fn meaning(self, process: Option<ProcessKey>, user: &str) -> Self {
        let user = user.to_owned();
        Self { process, user, ..self }
    }

    fn audited(&self) -> (&'static str, String) {
        let how = match (self.take_over, self.resume) {
            (true, _) => "takes over",
            (false, true) => "goes on",
            (false, false) => "opens",
        };
        ("attach", how.to_owned())
    }

    fn unreachable(parts: &RelayParts, target: &Target, _: &AttemptKey, status: Status) -> Status {
        match parts.object(target).is_some_and(|process| process.is_final()) {
            true => status,
            // It may come to life yet: the writer tries again.
            false => Status::unavailable(status.message()),
        }
    }

    async fn at_agent(
        session: &Session,
        requests: Requests<AttachRequest>,
    ) -> Result<Streaming<AttachResponse>, ControlError> {
        session.attach(requests).await
    }

    async fn at_home(
        mut home: RelayClient<Channel>,
        requests: Request<Requests<AttachRequest>>,
    ) -> Result<Response<Streaming<AttachResponse>>, Status> {
        home.attach(requests).await
    }
}
