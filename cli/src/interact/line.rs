use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Status, Streaming};

use super::Error;
use crate::follow::{Dial, cause};

/// Time for the last word of the relay when this side lets go.
const FAREWELL: Duration = Duration::from_secs(2);

/// How one connection ended.
pub enum End<T> {
    Over(T),
    /// And why.
    Cut(String),
}

/// The requests of one connection.
pub struct Line<T>(mpsc::UnboundedSender<T>);

/// The same on their way.
pub struct Outgoing<T>(mpsc::UnboundedReceiver<T>);

impl<T> Line<T> {
    pub fn new() -> (Self, Outgoing<T>) {
        let (requests, outgoing) = mpsc::unbounded_channel();
        (Self(requests), Outgoing(outgoing))
    }

    /// Fails only when the connection has broken, which its answers tell.
    pub fn say(&self, request: T) {
        let _ = self.0.send(request);
    }
}

impl<T> Stream for Outgoing<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_recv(cx)
    }
}

/// Whether another connection can mend what the relay answered; with `is_early` also that it does not know the process.
pub fn judge(dial: &mut impl Dial, status: Status, is_early: bool) -> Result<(), Error> {
    match status.code() {
        Code::NotFound if is_early => {}
        Code::NotFound
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented => return Err(Error::Relay(status)),
        Code::Unauthenticated => dial.discredit(),
        // TLS 1.3 tells a client of its refusal only when it reads.
        _ if cause(&status).contains("fatal alert") => dial.discredit(),
        _ => {}
    }
    Ok(())
}

/// Returns when somebody here leaves.
pub async fn left(leaving: &watch::Receiver<bool>) {
    // Whoever may say it lives as long as there is something to leave.
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

/// The end of the requests is a word; then the relay ends its answers.
pub async fn farewell<T, A>(line: Line<T>, mut answers: Streaming<A>) {
    drop(line);
    let _ = timeout(FAREWELL, async { while let Ok(Some(_)) = answers.message().await {} }).await;
}
