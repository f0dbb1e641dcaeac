//! Methods whose requests and answers are streams, from the user through the home to the agent.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use remoteprocess_proto::v1::ProcessKey;
use remoteprocess_proto::v1::relay_client::RelayClient;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, warn};

use super::agent::AgentClient;
use super::caller::Who;
use super::methods::Opens;
use super::peers::Home;
use super::requests::Requests;
use super::{check_protocol, peers};
use crate::audit::Action;
use crate::relay::attempt::{AttemptKey, Target};
use crate::relay::core::Core;
use crate::relay::core::access::{Access, Sender, line};
use crate::relay::core::authorize::{Authorized, Caller, UserCaller};
use crate::relay::core::home::Reached;
use crate::relay::error::{Code, Error};
use crate::relay::live::LiveAttempt;

/// Time limit for the first message, and for the answer of another replica.
const OPENING: Duration = Duration::from_secs(5);
/// Maximum length of the name that a client gives, in bytes.
const NAME: usize = 256;

/// Messages to a user.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The first request of such a stream.
pub(super) trait Opening: Opens<Caller = Access> + Authorized + Sized + Send + 'static {
    /// A request.
    type Request: Send + Unpin + 'static;
    /// An answer.
    type Answer: Send + 'static;

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
    /// For the audit log.
    fn audited(&self) -> Action<'static>;
    /// The first and the last request of a stream that ends it at the agent. `None` if nothing runs after a cut.
    fn hang_up(&self) -> Option<(Self, Self::Request)>;
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
    let access = Access::of(&request)?;
    let mut requests = request.into_inner();
    let open: O = first(&mut requests).await?;
    let (process, _) = open.meant();
    let (user, target, way) = match &access.caller {
        Caller::User(caller) => {
            let target = core.allow::<O>(&caller.user, process).await?;
            let way = find_way(&core, caller, &target, &open).await?;
            (caller.user.name.clone(), target, way)
        }
        Caller::Replica(forwarded) => {
            let live = core.at_home(forwarded, process)?;
            (forwarded.user.clone(), live.subject().target(), Way::Here(live))
        }
    };
    let open_stream = core.streams.open(&access.caller)?;
    let hang_up = open.hang_up();
    let requests = |open: O| Requests::new(open.into_request(), requests);
    let answers = way.open(&core, &user, open, requests).await?;
    let (line, told) = line(access, open_stream);
    let serve = async move {
        let passed = pass(answers, line.answers());
        let cut = line.serve(&core, O::ACTION, &target, passed).await;
        if let (Some(Code::PermissionDenied), Some((open, last))) = (cut, hang_up) {
            let requests = |open: O| Requests::only([open.into_request(), last]);
            let ended = async {
                let mut answers = way.open(&core, &user, open, requests).await?;
                while answers.message().await?.is_some() {}
                Ok::<_, Error>(())
            };
            let ended = timeout(OPENING * 3, ended).await;
            if let Err(error) = ended.unwrap_or_else(|_| Err(Error::agent_unreachable())) {
                warn!(uid = target.uid, %error, "a session of a user without the right cannot be ended now");
            }
        }
    };
    tokio::spawn(serve.in_current_span());
    Ok(Box::pin(told.map(|answer| answer.map_err(Status::from))))
}

/// Passes on what the agent answers, until it ends or the client has gone.
async fn pass<T>(mut answers: Streaming<T>, told: Sender<T>) -> Result<(), Error> {
    loop {
        let answer = tokio::select! {
            answer = answers.next() => answer,
            () = told.closed() => return Ok(()),
        };
        let Some(answer) = answer else { return Ok(()) };
        let answer = answer.map_err(broken)?;
        if told.send(answer, || {}).await.is_err() {
            return Ok(());
        }
    }
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

/// Where the agent of an attempt is reached from here.
enum Way {
    /// This replica is its home.
    Here(Arc<LiveAttempt>),
    /// Another replica is.
    There(Box<Home>, AttemptKey),
}

/// Finds the agent for a user who has been authorized, and writes the audit.
async fn find_way<O: Opening>(core: &Core, caller: &UserCaller, target: &Target, open: &O) -> Result<Way, Error> {
    let key = match open.meant() {
        (_, 0) => core.current(target)?,
        (_, attempt) => {
            core.check_attempt(target, attempt).await?;
            target.attempt(attempt)
        }
    };
    let reached = core.reach(target, &key).await;
    let reached = reached.map_err(|error| O::unreachable(core, target, &key, error))?;
    caller.audit(target, &key, open.audited());
    Ok(match reached {
        Reached::Here(live) => Way::Here(live),
        Reached::There(home) => Way::There(home, key),
    })
}

impl Way {
    /// Opens a stream to the agent, on behalf of a user who has been authorized.
    async fn open<O: Opening>(
        &self,
        core: &Core,
        user: &str,
        open: O,
        requests: impl FnOnce(O) -> Requests<O::Request>,
    ) -> Result<Streaming<O::Answer>, Error> {
        let (home, key) = match self {
            Self::Here(live) => return O::at_agent(live.agent(), requests(open.meaning(None, user))).await,
            Self::There(home, key) => (home, key),
        };
        let client = core.live.peers().connect(home).await?;
        let requests = requests(open.meaning(Some(peers::process(key)), user));
        let opened = O::at_home(client, peers::forward(key, user, requests));
        match timeout(OPENING * 2, opened).await {
            Ok(answers) => Ok(answers?.into_inner()),
            Err(_) => Err(peers::silent()),
        }
    }
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
