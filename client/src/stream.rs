//! A stream of input that survives its connections: what to send, what to send again, and why it ends.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use remoteprocess_proto::v1::WindowSize;
use remoteprocess_proto::v1::relay_client::RelayClient;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::dial::{DIAL_LIMIT, Dial, DialError, SILENCE_LIMIT, client};
use crate::retry::{Retry, cause};
use crate::sink::SinkError;

pub(crate) mod pending;

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
    Relay(Status),
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

/// How one connection ended.
pub(crate) enum End<T> {
    Over(T),
    /// The connection broke, and why.
    Cut(String),
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
pub(crate) enum Broken {
    /// The relay cannot be reached.
    Dial(DialError),
    /// The relay's answer.
    Refused(Status),
    /// The connection ended, or nothing came in time.
    Cut(&'static str),
}

/// Connects to the relay.
pub(crate) async fn connect(dial: &mut impl Dial) -> Result<RelayClient<Channel>, Broken> {
    match timeout(DIAL_LIMIT, dial.dial()).await {
        Ok(Ok(channel)) => Ok(client(channel)),
        Ok(Err(error)) => Err(Broken::Dial(error)),
        Err(_) => Err(Broken::Cut("the relay cannot be reached in time")),
    }
}

/// The answers of a call, once the relay has accepted it.
pub(crate) async fn opened<A>(
    call: impl Future<Output = Result<Response<Streaming<A>>, Status>>,
) -> Result<Streaming<A>, Broken> {
    match timeout(SILENCE_LIMIT, call).await {
        Ok(answers) => answers.map(Response::into_inner).map_err(Broken::Refused),
        Err(_) => Err(Broken::Cut("the relay does not answer")),
    }
}

/// The next answer.
pub(crate) async fn next<A>(answers: &mut Streaming<A>) -> Result<A, Broken> {
    match timeout(SILENCE_LIMIT, answers.message()).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(Broken::Cut("the relay ended the stream")),
        Ok(Err(status)) => Err(Broken::Refused(status)),
        Err(_) => Err(Broken::Cut("nothing came for 30 s")),
    }
}

/// Whether another connection helps; prepares for it.
///
/// # Errors
/// Another connection would not help. `is_early`: the relay may still learn of an unknown process.
pub(crate) fn mend<T>(dial: &mut impl Dial, broken: Broken, is_early: bool) -> Result<End<T>, Error> {
    let status = match broken {
        Broken::Dial(error) => return Err(error.into()),
        Broken::Cut(why) => return Ok(End::Cut(why.to_owned())),
        Broken::Refused(status) => status,
    };
    match Retry::of(&status) {
        Retry::Never | Retry::Held => return Err(Error::Relay(status)),
        Retry::Unknown if !is_early => return Err(Error::Relay(status)),
        Retry::NewCertificate => dial.discredit(),
        Retry::Reconnect | Retry::Unknown => {}
    }
    Ok(End::Cut(cause(&status)))
}

/// Returns when the user leaves.
pub(crate) async fn left(leaving: &watch::Receiver<bool>) {
    // The sender lives as long as there is something to leave.
    if leaving.clone().wait_for(|is_leaving| *is_leaving).await.is_err() {
        std::future::pending().await
    }
}

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
