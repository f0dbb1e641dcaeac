//! Methods whose requests and answers are streams, from the user through the home to the agent.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use remoteprocess_proto::v1::ProcessKey;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_tls::User;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::agent::AgentClient;
use super::caller::caller;
use super::requests::Requests;
use super::{Versioned, check_protocol, peers};
use crate::relay::attempt::{AttemptKey, Target};
use crate::relay::core::Core;
use crate::relay::core::authorize::{Action, Caller};
use crate::relay::core::control::audit;
use crate::relay::core::home::Reached;
use crate::relay::core::watched::watched;
use crate::relay::error::{Code, Error};

/// Time limit for the first message, and for the answer of another replica.
const OPENING: Duration = Duration::from_secs(5);
/// Maximum length of the name that a client gives, in bytes.
const NAME: usize = 256;

/// Messages to a user.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The first request of such a stream.
pub(super) trait Opening: Versioned + Sized + Send {
    /// A request.
    type Request: Send + Unpin + 'static;
    /// An answer.
    type Answer: Send + 'static;
    /// The right that it requires.
    const ACTION: Action;

    /// The opening in a request, if there is one.
    fn of(request: Self::Request) -> Option<Self>;
    /// The reverse of [`Self::of`].
    fn into_request(self) -> Self::Request;
    /// The name that the client gave.
    fn name(&self) -> &str;
    /// The process and attempt of the request; attempt 0 is the latest.
    fn meant(&self) -> (Option<ProcessKey>, u32);
    /// The same request, for the agent of this process, on behalf of this user.
    fn meaning(self, process: Option<ProcessKey>, user: &str) -> Self;
    /// For the audit log: the action, and details.
    fn audited(&self) -> (&'static str, String);
    /// The error if the attempt cannot be reached now.
    fn unreachable(core: &Core, target: &Target, key: &AttemptKey, error: Error) -> Error;

    /// Opens it at the agent.
    fn at_agent(
        agent: &AgentClient,
        requests: Requests<Self::Request>,
    ) -> impl Future<Output = Result<Streaming<Self::Answer>, Error>> + Send;
    /// Opens it at the home.
    fn at_home(
        home: RelayClient<Channel>,
        requests: Request<Requests<Self::Request>>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Answer>>, Status>> + Send;
}

/// Opens what the first request asks for, for a user, or for a replica that has authorized the user.
pub(super) async fn open<O: Opening>(
    core: Arc<Core>,
    request: Request<Streaming<O::Request>>,
) -> Result<Answers<O::Answer>, Status> {
    let caller = caller(&request)?;
    let mut requests = request.into_inner();
    let open: O = first(&mut requests).await?;
    let (process, _) = open.meant();
    let (target, answers) = match &caller {
        Caller::User(user) => {
            let target = core.allow(user, O::ACTION, process).await?;
            let answers = open_for(&core, user, &target, open, requests).await?;
            (target, answers)
        }
        Caller::Replica(forwarded) => {
            let live = core.at_home(forwarded, process)?;
            let answers = open_here(live.agent(), &forwarded.user, open, requests).await?;
            (live.subject().target(), answers)
        }
    };
    let answers = answers.map(|answer| answer.map_err(broken));
    let watched = watched(core, caller, (O::ACTION, target), answers);
    Ok(Box::pin(watched.map(|answer| answer.map_err(Status::from))))
}

async fn first<O: Opening>(requests: &mut Streaming<O::Request>) -> Result<O, Status> {
    let Ok(first) = timeout(OPENING, requests.message()).await else {
        return Err(Status::deadline_exceeded("no message came"));
    };
    let open = first?.and_then(O::of);
    let open = open.ok_or_else(|| Status::invalid_argument("the first message must be open"))?;
    check_protocol(&open)?;
    if !(1..=NAME).contains(&open.name().len()) {
        return Err(Status::invalid_argument(format!("session must have 1 to {NAME} bytes")));
    }
    Ok(open)
}

async fn open_for<O: Opening>(
    core: &Core,
    user: &User,
    target: &Target,
    open: O,
    requests: Streaming<O::Request>,
) -> Result<Streaming<O::Answer>, Error> {
    let key = match open.meant() {
        (_, 0) => core.current(target)?,
        (_, attempt) => {
            core.check_attempt(target, attempt).await?;
            target.attempt(attempt)
        }
    };
    let reached = core.reach(target, &key).await;
    let reached = reached.map_err(|error| O::unreachable(core, target, &key, error))?;
    let (action, detail) = open.audited();
    audit(user, target, &key, action, &detail);
    let home = match reached {
        Reached::Here(live) => return open_here(live.agent(), &user.name, open, requests).await,
        Reached::There(home) => home,
    };
    let open = open.meaning(Some(peers::process(&key)), &user.name);
    let client = core.live.peers().connect(&home).await?;
    let requests = Requests::new(open.into_request(), requests);
    let opened = O::at_home(client, peers::forward(&key, &user.name, requests));
    match timeout(OPENING * 2, opened).await {
        Ok(answers) => Ok(answers?.into_inner()),
        Err(_) => Err(peers::silent()),
    }
}

/// Opens it at the agent, for a user who was already authorized.
async fn open_here<O: Opening>(
    agent: &AgentClient,
    user: &str,
    open: O,
    requests: Streaming<O::Request>,
) -> Result<Streaming<O::Answer>, Error> {
    let open = open.meaning(None, user);
    O::at_agent(agent, Requests::new(open.into_request(), requests)).await
}

/// The agent's own answers pass through unchanged; everything else is a broken connection.
fn broken(status: Status) -> Error {
    let error = Error::from(status);
    match error.code {
        Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::InvalidArgument
        | Code::OutOfRange
        | Code::PermissionDenied => error,
        _ => Error::agent_unreachable(),
    }
}
