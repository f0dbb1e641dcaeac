//! Methods whose requests and answers are streams, from the user to the agent, through the home.

use std::sync::Arc;
use std::time::Duration;

use remoteprocess_proto::v1::ProcessKey;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_tls::User;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::control::{Reached, audit, to_status};
use super::watched::{Answers, watched};
use super::{RelayParts, Target, check_protocol};
use crate::relay::attempt::AttemptKey;
use crate::relay::core::authorize::{Action, Caller};
use crate::relay::grpc::peers::{self, on_behalf};
use crate::relay::live::{ControlError, Requests, Session};

/// Time for the first message, and for the answer of another replica.
const OPENING: Duration = Duration::from_secs(5);
/// Longest name that a client may give to what it opens, in bytes.
const NAME: usize = 256;

/// The first request of such a stream.
pub(crate) trait Opening: Sized + Send {
    /// A request.
    type Request: Send + Unpin + 'static;
    /// What is told.
    type Answer: Send + 'static;
    /// What it takes.
    const ACTION: Action;

    /// The opening in a request, if it is one.
    fn of(request: Self::Request) -> Option<Self>;
    /// Back again.
    fn into_request(self) -> Self::Request;
    /// Version of the wire, and the client's own name for what it opens.
    fn head(&self) -> (u32, &str);
    /// What is meant; an attempt of 0 is the latest.
    fn meant(&self) -> (Option<ProcessKey>, u32);
    /// The same, for the agent of this process, on behalf of this user.
    fn meaning(self, process: Option<ProcessKey>, user: &str) -> Self;
    /// For the audit: what is done, and more about it.
    fn audited(&self) -> (&'static str, String);
    /// What to answer where the attempt cannot be reached now.
    fn unreachable(parts: &RelayParts, target: &Target, key: &AttemptKey, status: Status) -> Status;

    /// Opens it at the agent.
    fn at_agent(
        session: &Session,
        requests: Requests<Self::Request>,
    ) -> impl Future<Output = Result<Streaming<Self::Answer>, ControlError>> + Send;
    /// Opens it at the home.
    fn at_home(
        home: RelayClient<Channel>,
        requests: Request<Requests<Self::Request>>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Answer>>, Status>> + Send;
}

/// Opens what the first request asks for, for a user, or for a replica that has authorised one.
pub(crate) async fn open<O: Opening>(
    parts: Arc<RelayParts>,
    caller: Caller,
    metadata: &MetadataMap,
    mut requests: Streaming<O::Request>,
) -> Result<Answers<O::Answer>, Status> {
    let open: O = first(&mut requests).await?;
    let (process, _) = open.meant();
    let (target, answers) = match &caller {
        Caller::User(user) => {
            let target = parts.allow(user, O::ACTION, process).await?;
            let answers = parts.open(user, &target, open, requests).await?;
            (target, answers)
        }
        Caller::Replica => {
            let session = parts.at_home(metadata, process)?;
            let answers = open_here(&session, &on_behalf(metadata), open, requests).await?;
            (Target::of_session(&session), answers)
        }
    };
    Ok(watched(parts, caller, (O::ACTION, target), answers))
}

async fn first<O: Opening>(requests: &mut Streaming<O::Request>) -> Result<O, Status> {
    let Ok(first) = timeout(OPENING, requests.message()).await else {
        return Err(Status::deadline_exceeded("no message came"));
    };
    let open = first?.and_then(O::of);
    let open = open.ok_or_else(|| Status::invalid_argument("the first message must be open"))?;
    let (protocol, name) = open.head();
    check_protocol(protocol)?;
    if !(1..=NAME).contains(&name.len()) {
        return Err(Status::invalid_argument(format!("session must have 1 to {NAME} bytes")));
    }
    Ok(open)
}

impl RelayParts {
    async fn open<O: Opening>(
        &self,
        user: &User,
        target: &Target,
        open: O,
        requests: Streaming<O::Request>,
    ) -> Result<Streaming<O::Answer>, Status> {
        let key = match open.meant() {
            (_, 0) => self.current(target)?,
            (_, attempt) => {
                self.check_attempt(target, attempt).await?;
                let uid = target.uid.clone();
                AttemptKey { uid, attempt }
            }
        };
        let reached = self.reach(target, &key).await;
        let reached = reached.map_err(|status| O::unreachable(self, target, &key, status))?;
        let (action, detail) = open.audited();
        audit(user, target, &key, action, &detail);
        let home = match reached {
            Reached::Here(session) => return open_here(&session, &user.name, open, requests).await,
            Reached::There(home) => home,
        };
        let open = open.meaning(Some(peers::process(&key)), &user.name);
        let Ok(Ok(client)) = timeout(OPENING, self.sessions.peers().connect(&home)).await else {
            return Err(Status::unavailable("the home of the process cannot be reached now"));
        };
        let requests = Requests::new(open.into_request(), requests);
        let opened = O::at_home(client, peers::forward(&key, &user.name, requests));
        match timeout(OPENING * 2, opened).await {
            Ok(answers) => Ok(answers?.into_inner()),
            Err(_) => Err(Status::unavailable("the home of the process does not answer")),
        }
    }
}

/// Opens it at the agent of a session, for a user who has been authorised.
async fn open_here<O: Opening>(
    session: &Session,
    user: &str,
    open: O,
    requests: Streaming<O::Request>,
) -> Result<Streaming<O::Answer>, Status> {
    let open = open.meaning(None, user);
    let opened = O::at_agent(session, Requests::new(open.into_request(), requests)).await;
    opened.map_err(|error| to_status(&error))
}
