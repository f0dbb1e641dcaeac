//! Writing into a process: from the user to the agent, through the home.

use std::sync::Arc;
use std::time::Duration;

use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse};
use remoteprocess_tls::User;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use super::control::{Reached, audit, to_status};
use super::watched::{Answers, watched};
use super::{RelayParts, Target, check_protocol};
use crate::relay::authorize::{Action, Caller};
use crate::relay::peers::{self, on_behalf};
use crate::relay::session::{Requests, Session};

/// Time for the first message, and for the answer of another replica.
const OPENING: Duration = Duration::from_secs(5);
/// Longest name that a writer may give itself, in bytes.
const SESSION: usize = 256;

/// Opens the input of a process for a user, or for a replica that has authorised one.
pub(super) async fn attach(
    parts: Arc<RelayParts>,
    caller: Caller,
    metadata: &MetadataMap,
    mut requests: Streaming<AttachRequest>,
) -> Result<Answers<AttachResponse>, Status> {
    let open = first(&mut requests).await?;
    let (target, answers) = match &caller {
        Caller::User(user) => {
            let target = parts.allow(user, Action::Attach, open.process.clone()).await?;
            let answers = parts.open_input(user, &target, open, requests).await?;
            (target, answers)
        }
        Caller::Replica => {
            let session = parts.at_home(metadata, open.process.clone())?;
            let answers = attach_here(&session, &on_behalf(metadata), open, requests).await?;
            (Target::of_session(&session), answers)
        }
    };
    Ok(watched(parts, caller, (Action::Attach, target), answers))
}

async fn first(requests: &mut Streaming<AttachRequest>) -> Result<AttachOpen, Status> {
    let Ok(first) = timeout(OPENING, requests.message()).await else {
        return Err(Status::deadline_exceeded("no message came"));
    };
    let Some(Asked::Open(open)) = first?.and_then(|request| request.request) else {
        return Err(Status::invalid_argument("the first message must be open"));
    };
    check_protocol(open.protocol)?;
    if !(1..=SESSION).contains(&open.session.len()) {
        return Err(Status::invalid_argument(format!(
            "session must have 1 to {SESSION} bytes"
        )));
    }
    Ok(open)
}

impl RelayParts {
    async fn open_input(
        &self,
        user: &User,
        target: &Target,
        open: AttachOpen,
        requests: Streaming<AttachRequest>,
    ) -> Result<Streaming<AttachResponse>, Status> {
        let key = self.current(target)?;
        let reached = match self.reach(target, &key).await {
            // It may come to life yet: the writer tries again.
            Err(status) if !self.object(target).is_some_and(|process| process.is_final()) => {
                return Err(Status::unavailable(status.message()));
            }
            reached => reached?,
        };
        let how = match (open.take_over, open.resume) {
            (true, _) => "takes over",
            (false, true) => "goes on",
            (false, false) => "opens",
        };
        audit(user, target, &key, "attach", how);
        match reached {
            Reached::Here(session) => attach_here(&session, &user.name, open, requests).await,
            Reached::There(home) => {
                let open = AttachOpen {
                    process: Some(peers::process(&key)),
                    ..open
                };
                let connected = timeout(OPENING, self.sessions.peers().connect(&home)).await;
                let Ok(Ok(mut client)) = connected else {
                    return Err(Status::unavailable("the home of the process cannot be reached now"));
                };
                let request = peers::forward(&key, &user.name, behind(open, requests));
                match timeout(OPENING * 2, client.attach(request)).await {
                    Ok(answers) => Ok(answers?.into_inner()),
                    Err(_) => Err(Status::unavailable("the home of the process does not answer")),
                }
            }
        }
    }
}

/// Opens the input of a session's process for a user who has been authorised.
async fn attach_here(
    session: &Session,
    user: &str,
    open: AttachOpen,
    requests: Streaming<AttachRequest>,
) -> Result<Streaming<AttachResponse>, Status> {
    let open = AttachOpen {
        process: None,
        user: user.to_owned(),
        ..open
    };
    let attached = session.attach(behind(open, requests)).await;
    attached.map_err(|error| to_status(&error))
}

fn behind(open: AttachOpen, requests: Streaming<AttachRequest>) -> Requests<AttachRequest> {
    let request = Some(Asked::Open(open));
    Requests::new(AttachRequest { request }, requests)
}
