//! Answers of an agent on their way to a user whose right may be taken away.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use tokio::time::{Instant, Interval, interval_at};
use tonic::{Code, Status, Streaming};

use super::{RECHECK, RelayParts, Target};
use crate::relay::core::authorize::{Action, Caller};

/// What a user is told.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Watched<T> {
    parts: Arc<RelayParts>,
    /// Where it is another replica, that one watches.
    caller: Caller,
    action: Action,
    target: Target,
    answers: Streaming<T>,
    recheck: Interval,
}

/// Answers for as long as the caller may have them, and this replica is there.
pub(crate) fn watched<T: Send + 'static>(
    parts: Arc<RelayParts>,
    caller: Caller,
    (action, target): (Action, Target),
    answers: Streaming<T>,
) -> Answers<T> {
    let watched = Watched {
        parts,
        caller,
        action,
        target,
        answers,
        recheck: interval_at(Instant::now() + RECHECK, RECHECK),
    };
    Box::pin(stream::unfold(Some(watched), |watched| async move {
        let mut watched = watched?;
        match watched.next().await? {
            Ok(answer) => Some((Ok(answer), Some(watched))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

impl<T> Watched<T> {
    async fn next(&mut self) -> Option<Result<T, Status>> {
        loop {
            tokio::select! {
                answer = self.answers.message() => return match answer {
                    Ok(answer) => answer.map(Ok),
                    Err(status) => Some(Err(broken(status))),
                },
                () = self.parts.shutdown.cancelled() => {
                    return Some(Err(Status::unavailable("this replica is going away")));
                }
                _ = self.recheck.tick() => {
                    let checked = self.parts.check(&self.caller, self.action, &self.target).await;
                    if let Err(status) = checked {
                        return Some(Err(status));
                    }
                }
            }
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
