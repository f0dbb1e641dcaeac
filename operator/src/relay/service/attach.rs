//! Writing into a process: from the user to the agent, through the home.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::stream;
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse};
use remoteprocess_tls::User;
use tokio::time::{Instant, Interval, interval_at, timeout};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};

use super::control::{Reached, audit, to_status};
use super::{RelayParts, Target, check_protocol};
use crate::relay::authorize::{Action, Caller};
use crate::relay::peers::{self, on_behalf};
use crate::relay::session::{Requests, Session};

/// Time for the first message, and for the answer of another replica.
const OPENING: Duration = Duration::from_secs(5);
/// How often the writer's right is asked for again.
const RECHECK: Duration = Duration::from_secs(60);
/// Longest name that a writer may give itself, in bytes.
const SESSION: usize = 256;

/// What a writer is told.
pub type Answers = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

/// Opens the input of a process for a user, or for a replica that has authorised one.
pub(super) async fn attach(
    parts: Arc<RelayParts>,
    caller: Caller,
    metadata: &MetadataMap,
    mut requests: Streaming<AttachRequest>,
) -> Result<Answers, Status> {
    let open = first(&mut requests).await?;
    let (answers, writer) = match caller {
        Caller::User(user) => {
            let target = parts.allow(&user, Action::Attach, open.process.clone()).await?;
            let answers = parts.open_input(&user, &target, open, requests).await?;
            (answers, Some((user, target)))
        }
        Caller::Replica => {
            let session = parts.at_home(metadata, open.process.clone())?;
            (attach_here(&session, &on_behalf(metadata), open, requests).await?, None)
        }
    };
    let watched = Watched {
        parts,
        writer,
        answers,
        recheck: interval_at(Instant::now() + RECHECK, RECHECK),
    };
    Ok(Box::pin(stream::unfold(Some(watched), |watched| async move {
        let mut watched = watched?;
        match watched.next().await? {
            Ok(answer) => Some((Ok(answer), Some(watched))),
            Err(status) => Some((Err(status), None)),
        }
    })))
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
                let request = peers::forward(&key, &user.name, Requests::new(open, requests));
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
    let attached = session.attach(Requests::new(open, requests)).await;
    attached.map_err(|error| to_status(&error))
}

/// Answers on their way to a writer whose right may be taken away.
struct Watched {
    parts: Arc<RelayParts>,
    /// Absent where another replica watches.
    writer: Option<(User, Target)>,
    answers: Streaming<AttachResponse>,
    recheck: Interval,
}

impl Watched {
    async fn next(&mut self) -> Option<Result<AttachResponse, Status>> {
        loop {
            tokio::select! {
                answer = self.answers.message() => return match answer {
                    Ok(answer) => answer.map(Ok),
                    Err(status) => Some(Err(broken(status))),
                },
                () = self.parts.shutdown.cancelled() => {
                    return Some(Err(Status::unavailable("this replica is going away")));
                }
                _ = self.recheck.tick() => if let Err(status) = self.check().await {
                    return Some(Err(status));
                },
            }
        }
    }

    async fn check(&self) -> Result<(), Status> {
        let Some((user, target)) = &self.writer else {
            return Ok(());
        };
        let authorizer = &self.parts.authorizer;
        match authorizer
            .authorize(user, Action::Attach, &target.namespace, &target.name)
            .await
        {
            Err(status) if status.code() == Code::PermissionDenied => Err(status),
            // An API server that does not answer cuts nothing.
            _ => Ok(()),
        }
    }
}

/// What the agent says goes on as it is; a line that broke is told as such.
fn broken(status: Status) -> Status {
    match status.code() {
        Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::InvalidArgument
        | Code::OutOfRange
        | Code::PermissionDenied => Status::new(status.code(), status.message()),
        _ => Status::unavailable("the agent of the process cannot be reached now"),
    }
}
