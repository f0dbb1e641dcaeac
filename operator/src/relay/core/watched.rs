//! Passes on the answers of an agent to a caller whose right may be revoked.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use tokio::time::{Instant, Interval, interval_at};

use super::authorize::{Action, Caller};
use super::{Core, RECHECK};
use crate::relay::attempt::Target;
use crate::relay::error::Error;

struct Watched<S> {
    core: Arc<Core>,
    /// If it is another replica, that one checks the right.
    caller: Caller,
    action: Action,
    target: Target,
    answers: S,
    recheck: Interval,
}

/// Passes answers on while the caller has the right to them, and this replica is not shutting down.
pub(crate) fn watched<T, S: Stream<Item = Result<T, Error>> + Unpin>(
    core: Arc<Core>,
    caller: Caller,
    (action, target): (Action, Target),
    answers: S,
) -> impl Stream<Item = Result<T, Error>> {
    let watched = Watched {
        core,
        caller,
        action,
        target,
        answers,
        recheck: interval_at(Instant::now() + RECHECK, RECHECK),
    };
    stream::unfold(Some(watched), |watched| async move {
        let mut watched = watched?;
        match watched.next().await? {
            Ok(answer) => Some((Ok(answer), Some(watched))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

impl<S> Watched<S> {
    async fn next<T>(&mut self) -> Option<Result<T, Error>>
    where
        S: Stream<Item = Result<T, Error>> + Unpin,
    {
        loop {
            tokio::select! {
                answer = self.answers.next() => return answer,
                () = self.core.shutdown.cancelled() => return Some(Err(Error::shutting_down())),
                _ = self.recheck.tick() => {
                    let checked = self.core.check(&self.caller, self.action, &self.target).await;
                    if let Err(error) = checked {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}
