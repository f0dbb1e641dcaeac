//! How long an open stream may continue: while its caller has the right and a valid certificate.
//!
//! The checks run beside what serves the stream, not in it: a client that takes no answers, or that only sends, loses
//! its stream like any other.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use remoteprocess_tls::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Core;
use super::authorize::{Action, Caller};
use super::streams::Open;
use crate::relay::attempt::Target;
use crate::relay::error::{Code, Error};

/// Answers that wait for a slow client.
const WAITING: usize = 2;
/// A reader that takes nothing for this long is stalled.
const STALLED: Duration = Duration::from_secs(1);
/// Time for a client to take the last word of a stream that was cut. Then its connection is cut: no other way ends a call
/// whose client grants no window, and what it takes cannot be seen.
const LAST_WORD: Duration = Duration::from_secs(10);

/// Who opened a stream, and over which connection.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// The user, or another replica, which checks the right of its user itself.
    pub(crate) caller: Caller,
    /// When the certificate of the connection expires.
    pub(crate) until: Instant,
    /// Cuts the connection.
    pub(crate) connection: Connection,
}

/// A stream of answers that can be cut: the side that answers.
pub(crate) struct Line<T> {
    access: Access,
    answers: Sender<T>,
    cut: oneshot::Sender<Error>,
}

/// Where the answers of a stream go.
pub(crate) struct Sender<T> {
    answers: mpsc::Sender<Result<T, Error>>,
    open: Arc<Open>,
}

/// The client has gone.
#[derive(Debug)]
pub(crate) struct Gone;

/// The side that is read. The reason of a cut comes before everything that still waits; it is the last answer.
pub(crate) struct Answers<T> {
    waiting: mpsc::Receiver<Result<T, Error>>,
    cut: Option<oneshot::Receiver<Error>>,
    /// The stream is open until its last answer was taken.
    _open: Arc<Open>,
}

/// A stream of answers for this caller.
pub(crate) fn line<T>(access: Access, open: Open) -> (Line<T>, Answers<T>) {
    let (answers, waiting) = mpsc::channel(WAITING);
    let (cut, reason) = oneshot::channel();
    let open = Arc::new(open);
    let taken = Answers {
        waiting,
        cut: Some(reason),
        _open: open.clone(),
    };
    let answers = Sender { answers, open };
    (Line { access, answers, cut }, taken)
}

impl Core {
    /// Returns when a stream has to end, with the reason.
    async fn until_cut(&self, access: &Access, action: Action, target: &Target) -> Error {
        let checks = async {
            loop {
                sleep(self.authorizer.memory()).await;
                if let Err(error) = self.check(&access.caller, action, target).await {
                    return error;
                }
            }
        };
        tokio::select! {
            error = checks => error,
            () = sleep_until(access.until) => Error::expired(),
            () = self.shutdown.cancelled() => Error::shutting_down(),
        }
    }
}

impl<T: Send + 'static> Line<T> {
    /// Where the answers go.
    pub(crate) fn answers(&self) -> Sender<T> {
        self.answers.clone()
    }

    /// Serves until `serve` has ended and the client has taken all answers, or the stream has to be cut; then `serve` is
    /// dropped. Returns the reason of a cut.
    pub(crate) async fn serve(
        self,
        core: &Core,
        action: Action,
        target: &Target,
        serve: impl Future<Output = Result<(), Error>>,
    ) -> Option<Code> {
        let served = async {
            if let Err(error) = serve.await {
                // The client may be gone.
                let _ = self.answers.tell(Err(error), || {}).await;
            }
            self.answers.all_taken().await;
        };
        let (reason, last_word) = tokio::select! {
            () = served => return None,
            reason = core.until_cut(&self.access, action, target) => (reason, LAST_WORD),
            // What is held for it is needed now.
            reason = self.answers.open.displaced() => (reason, STALLED),
        };
        let code = reason.code;
        let _ = self.cut.send(reason);
        let connection = self.access.connection;
        tokio::spawn(async move {
            sleep(last_word).await;
            connection.cut();
        });
        Some(code)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            answers: self.answers.clone(),
            open: self.open.clone(),
        }
    }
}

impl<T> Sender<T> {
    /// Bytes that the next answer may have, at most `most`.
    pub(crate) fn batch(&self, most: usize) -> usize {
        self.open.batch(most)
    }

    /// Waits for room, and sends. Calls `stalled` first if there is none for a while.
    pub(crate) async fn send(&self, answer: T, stalled: impl FnOnce()) -> Result<(), Gone> {
        self.tell(Ok(answer), stalled).await
    }

    async fn tell(&self, answer: Result<T, Error>, stalled: impl FnOnce()) -> Result<(), Gone> {
        let permit = self.taken(|| self.answers.reserve(), stalled).await;
        permit.map_err(|_| Gone)?.send(answer);
        Ok(())
    }

    /// Returns when the client has taken everything, or has gone.
    async fn all_taken(&self) {
        // An error means that the client has gone.
        let _ = self.taken(|| self.answers.reserve_many(WAITING), || {}).await;
    }

    /// Waits for room. Meanwhile the reader is stalled, if it takes nothing for a while.
    async fn taken<R>(&self, room: impl Fn() -> R, stalled: impl FnOnce()) -> R::Output
    where
        R: Future,
    {
        match timeout(STALLED, room()).await {
            Ok(room) => room,
            Err(_) => {
                let _stall = self.open.stall();
                stalled();
                room().await
            }
        }
    }

    /// Sends if there is room.
    pub(crate) fn offer(&self, answer: T) {
        // A reader that has something to take can wait for this.
        let _ = self.answers.try_send(Ok(answer));
    }

    /// Returns when the client has gone.
    pub(crate) async fn closed(&self) {
        self.answers.closed().await;
    }
}

impl<T> Stream for Answers<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(cut) = &mut self.cut
            && let Poll::Ready(reason) = Pin::new(cut).poll(cx)
        {
            self.cut = None;
            if let Ok(reason) = reason {
                self.waiting.close();
                while self.waiting.try_recv().is_ok() {}
                return Poll::Ready(Some(Err(reason)));
            }
        }
        self.waiting.poll_recv(cx)
    }
}
