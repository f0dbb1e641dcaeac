//! How long an open stream may continue: while its caller has the right and a valid certificate.
//!
//! The checks run beside what serves the stream, not in it: a client that takes no answers, or that only sends, loses
//! its stream like any other.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use remoteprocess_tls::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::Core;
use super::authorize::{Action, Caller};
use crate::relay::attempt::Target;
use crate::relay::error::{Code, Error};

/// Answers that wait for a slow client.
const WAITING: usize = 2;
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
    answers: mpsc::Sender<Result<T, Error>>,
    cut: oneshot::Sender<Error>,
}

/// The side that is read. The reason of a cut comes before everything that still waits; it is the last answer.
pub(crate) struct Answers<T> {
    waiting: mpsc::Receiver<Result<T, Error>>,
    cut: Option<oneshot::Receiver<Error>>,
}

/// A stream of answers for this caller.
pub(crate) fn line<T>(access: Access) -> (Line<T>, Answers<T>) {
    let (answers, waiting) = mpsc::channel(WAITING);
    let (cut, reason) = oneshot::channel();
    let line = Line { access, answers, cut };
    let answers = Answers {
        waiting,
        cut: Some(reason),
    };
    (line, answers)
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
    pub(crate) fn answers(&self) -> mpsc::Sender<Result<T, Error>> {
        self.answers.clone()
    }

    /// Serves until `serve` has ended or the stream has to be cut; then `serve` is dropped. Returns the reason of a cut.
    pub(crate) async fn serve(
        self,
        core: &Core,
        action: Action,
        target: &Target,
        serve: impl Future<Output = Result<(), Error>>,
    ) -> Option<Code> {
        let reason = tokio::select! {
            served = serve => {
                if let Err(error) = served {
                    // The client may be gone.
                    let _ = self.answers.send(Err(error)).await;
                }
                return None;
            }
            reason = core.until_cut(&self.access, action, target) => reason,
        };
        let code = reason.code;
        let _ = self.cut.send(reason);
        let connection = self.access.connection;
        tokio::spawn(async move {
            sleep(LAST_WORD).await;
            connection.cut();
        });
        Some(code)
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
