//! A stream that survives its connections: how to make them, what ends it, and what to send again.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use remoteprocess_proto::v1::WindowSize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::dial::{DIAL_LIMIT, Dial, DialError, SILENCE_LIMIT};
use crate::retry::{Backoff, Retry, cause};
use crate::sink::{Progress, SinkError, during};

#[doc(hidden)]
pub mod pending;

/// Time for the relay's last message when this side lets go.
const FAREWELL: Duration = Duration::from_secs(2);

/// An event on this side.
#[derive(Clone, Debug)]
pub enum Local {
    /// More input.
    Bytes(Bytes),
    /// No more input.
    End,
    /// The window has another size.
    Resize(WindowSize),
}

/// Why no other connection is tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The relay refused, for good.
    #[error("{}", .0.message())]
    Relay(#[from] Status),
    /// The relay cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// To continue would lose or duplicate bytes.
    #[error("the relay has accepted {accepted} bytes of input where between {from} and {to} were sent")]
    Inconsistent {
        /// The offset that it reports.
        accepted: u64,
        /// What it had accepted before.
        from: u64,
        /// What was sent.
        to: u64,
    },
    /// The same for output.
    #[error("the relay has sent output from byte {offset} on where byte {expected} comes next")]
    Misplaced {
        /// The offset that it sent.
        offset: u64,
        /// The offset that was expected.
        expected: u64,
    },
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] SinkError),
}

/// A unique name for what is opened, the same over all connections.
pub(crate) fn session_name() -> String {
    let now = jiff::Timestamp::now().as_nanosecond();
    format!("{now:x}-{:x}", std::process::id())
}

/// The requests of one connection.
pub(crate) struct Requests<T>(mpsc::UnboundedSender<T>);

/// The stream of these requests.
pub(crate) struct RequestStream<T>(mpsc::UnboundedReceiver<T>);

impl<T> Requests<T> {
    pub(crate) fn new() -> (Self, RequestStream<T>) {
        #[allow(
            clippy::disallowed_methods,
            reason = "the window of input that is not confirmed bounds it"
        )]
        let (requests, outgoing) = mpsc::unbounded_channel();
        (Self(requests), RequestStream(outgoing))
    }

    /// Fails only when the connection has broken, which its answers report.
    pub(crate) fn send(&self, request: T) {
        let _ = self.0.send(request);
    }
}

impl<T> Stream for RequestStream<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_recv(cx)
    }
}

/// Why one connection is of no more use.
pub(crate) enum Broken<E> {
    /// The relay cannot be reached.
    Dial(DialError),
    /// The relay's answer.
    Refused(Status),
    /// The connection ended, or nothing came in time.
    Cut(&'static str),
    /// A connection with the next certificate waits.
    Renewed,
    /// Another connection would not help.
    Failed(E),
}

impl<E: From<SinkError>> From<SinkError> for Broken<E> {
    fn from(error: SinkError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Error> for Broken<Error> {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What happens on this side of a stream.
pub(crate) struct Here {
    pub local: mpsc::Receiver<Local>,
    /// Becomes true when you leave.
    pub leaving: watch::Receiver<bool>,
    /// Becomes true when another connection should replace this one.
    pub renewed: watch::Receiver<bool>,
}

impl Here {
    pub(crate) fn new(local: mpsc::Receiver<Local>, leaving: watch::Receiver<bool>) -> Self {
        let renewed = watch::channel(false).1;
        Self {
            local,
            leaving,
            renewed,
        }
    }

    /// Nothing happens here.
    pub(crate) fn quiet() -> Self {
        Self::new(mpsc::channel(1).1, watch::channel(false).1)
    }
}

/// Returns when this has become true.
pub(crate) async fn came(it: &watch::Receiver<bool>) {
    if it.clone().wait_for(|has_come| *has_come).await.is_err() {
        // No one is left who could make it true.
        std::future::pending().await
    }
}

/// Prepares the next connection while the current one serves.
struct Renewal<D: Dial>(JoinSet<(D, Channel)>);

impl<D: Dial> Renewal<D> {
    fn begin(dial: &D) -> (Self, watch::Receiver<bool>) {
        let (sender, renewed) = watch::channel(false);
        let next = dial.renewed();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let next = next.await;
            sender.send_replace(true);
            next
        });
        (Self(tasks), renewed)
    }

    /// The next connection, if it is ready.
    async fn take(mut self) -> Option<(D, Channel)> {
        self.0.join_next().await?.ok()
    }
}

/// What a broken connection means for a session.
pub(crate) struct Policy {
    /// The relay has served it before: what is missing now may come back.
    pub has_begun: bool,
    /// The relay may not know the process yet.
    pub is_new: bool,
    /// A limit of the relay is no refusal: a place becomes free.
    pub waits_for_place: bool,
    /// Grows with everything that arrives. After that, the next try need not wait long.
    pub arrived: u64,
    /// Longest wait before the next try.
    pub longest_wait: Duration,
}

impl Policy {
    /// Why the connection broke, where another one may help.
    fn cause<E: From<Status> + From<DialError>>(&self, broken: Broken<E>, dial: &mut impl Dial) -> Result<String, E> {
        let status = match broken {
            Broken::Failed(error) => return Err(error),
            Broken::Cut(why) => return Ok(why.to_owned()),
            Broken::Dial(DialError::Unreachable(why)) => return Ok(why),
            Broken::Renewed => return Ok("the certificate has been renewed".to_owned()),
            Broken::Dial(DialError::Missing(why)) if self.has_begun => return Ok(why),
            Broken::Dial(error) => return Err(error.into()),
            Broken::Refused(status) => status,
        };
        match Retry::of(&status) {
            Retry::Never => return Err(status.into()),
            Retry::Held if !self.waits_for_place => return Err(status.into()),
            Retry::Unknown if !self.is_new => return Err(status.into()),
            Retry::NewCertificate => dial.discredit(),
            Retry::Reconnect | Retry::Unknown | Retry::Held => {}
        }
        Ok(cause(&status))
    }
}

/// A stream that survives its connections. [`run`] makes them.
pub(crate) trait Session: Send {
    type Over: Send;
    type Error: From<Status> + From<DialError> + From<SinkError> + Send;
    type Dial: Dial;
    type Progress: Progress;

    /// Serves one connection until the stream is over, or the connection breaks.
    fn serve(
        &mut self,
        channel: Channel,
        here: &mut Here,
    ) -> impl Future<Output = Result<Self::Over, Broken<Self::Error>>> + Send;

    /// How it is over if you leave while there is no connection.
    fn left(&self) -> Self::Over;

    fn policy(&self) -> Policy;

    /// The connection broke, or could not be made; another one is made.
    fn broke(&mut self, cause: String) {
        self.parts().1.cut(cause);
    }

    fn parts(&mut self) -> (&mut Self::Dial, &mut Self::Progress);
}

/// Serves a session over as many connections as it takes.
///
/// # Errors
/// An error that another connection would not fix.
pub(crate) async fn run<S: Session>(session: &mut S, here: &mut Here) -> Result<S::Over, S::Error> {
    let mut backoff = Backoff::default();
    loop {
        let before = session.policy().arrived;
        let (dial, progress) = session.parts();
        let broken = match unless_left(progress, here, timeout(DIAL_LIMIT, dial.dial())).await? {
            None => return Ok(session.left()),
            Some(Ok(Ok(channel))) => match serve(session, channel, here).await {
                Ok(over) => return Ok(over),
                Err(broken) => broken,
            },
            Some(Ok(Err(error))) => Broken::Dial(error),
            Some(Err(_)) => Broken::Cut("the relay cannot be reached in time"),
        };
        let policy = session.policy();
        let cause = policy.cause(broken, session.parts().0)?;
        if policy.arrived != before {
            backoff = Backoff::default();
        }
        session.broke(cause);
        let wait = sleep(backoff.wait().min(policy.longest_wait));
        if unless_left(session.parts().1, here, wait).await?.is_none() {
            return Ok(session.left());
        }
    }
}

/// Serves a session over one connection, and over those that replace it because its certificate ends.
async fn serve<S: Session>(
    session: &mut S,
    mut channel: Channel,
    here: &mut Here,
) -> Result<S::Over, Broken<S::Error>> {
    loop {
        let (renewal, renewed) = Renewal::begin(&*session.parts().0);
        here.renewed = renewed;
        match session.serve(channel, here).await {
            Err(Broken::Renewed) => {}
            over => return over,
        }
        match renewal.take().await {
            Some((dial, next)) => (*session.parts().0, channel) = (dial, next),
            None => return Err(Broken::Renewed),
        }
    }
}

/// Waits for `future`, and tells meanwhile what is due. `None`: you leave.
pub(crate) async fn unless_left<F: Future>(
    progress: &mut impl Progress,
    here: &Here,
    future: F,
) -> Result<Option<F::Output>, SinkError> {
    tokio::select! {
        done = during(progress, future) => done.map(Some),
        () = came(&here.leaving) => Ok(None),
    }
}

/// The answers of a call, once the relay has accepted it.
pub(crate) async fn opened<A, E>(call: impl Future<Output = Result<A, Status>>) -> Result<A, Broken<E>> {
    match timeout(SILENCE_LIMIT, call).await {
        Ok(answers) => answers.map_err(Broken::Refused),
        Err(_) => Err(Broken::Cut("the relay does not answer")),
    }
}

/// The next answer; `None` at the end of the stream.
pub(crate) async fn next<A, E>(
    answer: impl Future<Output = Result<Option<A>, Status>>,
) -> Result<Option<A>, Broken<E>> {
    match timeout(SILENCE_LIMIT, answer).await {
        Ok(answer) => answer.map_err(Broken::Refused),
        Err(_) => Err(Broken::Cut("nothing came for 30 s")),
    }
}

/// Why a stream that must not end has no next answer.
pub(crate) const ENDED: &str = "the relay ended the stream";

/// Returns at this time; never for `None`.
pub async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Ends the requests, after which the relay ends its answers.
pub(crate) async fn finish<T, A>(requests: Requests<T>, mut answers: Streaming<A>) {
    drop(requests);
    let _ = timeout(FAREWELL, async { while let Ok(Some(_)) = answers.message().await {} }).await;
}
