//! What follows the end of an attempt: another one (`spec.retries`), or nothing.

use std::sync::Arc;
use std::time::Duration;

use remoteprocess_api::{Phase, Reason};
use remoteprocess_client::observe::{self, Seen};
use remoteprocess_client::output::Error;
use remoteprocess_client::{Cluster, Dial, Follower, Rule};
use remoteprocess_proto::v1::exit::Source;
use remoteprocess_proto::v1::{Exit, ProcessKey};
use tokio::time::Instant;

use crate::exit;
use crate::output::Output;
use crate::progress::Messages;

/// How long to wait for an API server that has not said yet whether there are further attempts at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the relay may not know an attempt that the API server has shown us.
const LAG: Duration = Duration::from_secs(15);

/// How long the status may lag behind the end that we know.
pub(super) const STATUS_LAG: Duration = Duration::from_secs(2);

/// Determines from the object what follows an attempt.
#[derive(Clone)]
pub struct NextAttempt {
    /// The cluster of the object.
    pub cluster: Arc<Cluster>,
    /// The process.
    pub key: ProcessKey,
    /// If an end is known, an API server that does not answer delays it at most this long.
    pub patience: Duration,
    /// False if the spec is known to have no retries: then the end of a program that ran is final.
    pub may_have_retries: bool,
}

/// What the object says about the time after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// That was the last.
    Nothing,
    /// This one.
    Attempt(u32),
    /// Another one will follow.
    Later(String),
}

/// Follows the attempt that the follower is set to and, if `next_attempt` is set, each later one. Returns the end of
/// the last one, which is also in the follower's ledger.
///
/// # Errors
/// As [`Follower::run`]; also if the object does not tell whether another attempt follows.
pub async fn follow<D: Dial>(
    follower: &mut Follower<D, Output, Messages>,
    next_attempt: Option<&NextAttempt>,
    is_quiet: bool,
) -> Result<Option<Exit>, Error> {
    loop {
        let end = follower.run().await?;
        let (next_attempt, exit, attempt) = match (next_attempt, end, follower.ledger.attempt()) {
            (Some(next_attempt), Some(exit), Some(attempt)) => (next_attempt, exit, attempt),
            (_, end, _) => return Ok(end),
        };
        // Without retries another attempt follows only one that ran nothing, or whose end was not seen.
        let has_run = exit.source() == Source::Entrypoint;
        // Nothing follows a success, whatever the object currently says.
        if exit::is_success(&exit) || (has_run && !next_attempt.may_have_retries) {
            return Ok(Some(next_attempt.confirmed(exit).await));
        }
        let name = &next_attempt.key.name;
        let said = exit::verdict(name, &exit, &follower.ledger).message;
        let said = said.unwrap_or_else(|| exit::ended(name, &exit));
        let said = (!is_quiet).then(|| format!("attempt {attempt}: {said}"));
        let Some(next) = next_attempt.after((attempt, has_run), &follower.sink, said).await? else {
            return Ok(Some(next_attempt.confirmed(exit).await));
        };
        if !is_quiet {
            follower.sink.line(&format!("attempt {next} of {name} begins")).await?;
        }
        follower.ledger = follower.ledger.of_attempt(next);
        follower.unknown_until = Instant::now() + LAG;
    }
}

impl NextAttempt {
    /// For this process.
    pub fn new(cluster: &Arc<Cluster>, key: &ProcessKey) -> Self {
        Self {
            cluster: cluster.clone(),
            key: key.clone(),
            patience: PATIENCE,
            may_have_retries: true,
        }
    }

    /// The end with the reason of the status, if there was a stop and the status has its final state soon.
    async fn confirmed(&self, exit: Exit) -> Exit {
        if exit.stop.is_none() {
            return exit;
        }
        let deadline = Some(Instant::now() + STATUS_LAG);
        let uid = Some(self.key.uid.as_str()).filter(|uid| !uid.is_empty());
        let ended = |seen: &Seen| match seen {
            Seen::There(object) => object.is_final().then(|| object.status.clone()),
            Seen::Gone => Some(None),
        };
        match observe::until(&self.cluster.processes(), &self.key.name, uid, deadline, ended).await {
            Ok(Some(status)) => exit::confirmed(exit, &status),
            _ => exit,
        }
    }

    /// The next attempt; `None` if there is none. If one follows, prints `said`, how the attempt ended, and then why the
    /// next one waits; with `None` prints nothing.
    ///
    /// # Errors
    /// You may not read the object, so it is not known whether another attempt follows.
    async fn after(&self, ended: Ended, output: &Output, said: Option<String>) -> Result<Option<u32>, Error> {
        let api = self.cluster.processes();
        let uid = Some(self.key.uid.as_str()).filter(|uid| !uid.is_empty());
        let later = |text: String| Error::NextAttempt(text);
        let look = |deadline| observe::until(&api, &self.key.name, uid, deadline, |seen| next(seen, ended));
        // First the reason for the wait, so that a long back-off is explained while it lasts.
        let mut first = look(Some(Instant::now() + self.patience)).await;
        if let Err(observe::Error::TimedOut(Some(_))) = first {
            first = look(None).await;
        }
        let told = match first {
            Ok(Next::Nothing) => return Ok(None),
            Ok(Next::Attempt(number)) => {
                if let Some(said) = said {
                    output.line(&said).await?;
                }
                return Ok(Some(number));
            }
            Ok(Next::Later(message)) => message,
            Err(observe::Error::TimedOut(_)) => {
                let message = "the API server does not say whether another attempt follows";
                output.line(&format!("{}: {message}", self.key.name)).await?;
                return Ok(None);
            }
            Err(error) => {
                if let Some(said) = said {
                    output.line(&said).await?;
                }
                return self.failed(error).map_err(later);
            }
        };
        if let Some(said) = said {
            output.line(&said).await?;
            output.line(&format!("{}: {told}", self.key.name)).await?;
        }
        let then = observe::until(&api, &self.key.name, uid, None, |seen| match next(seen, ended) {
            Some(Next::Later(_)) => None,
            decided => decided,
        });
        match then.await {
            Ok(Next::Attempt(number)) => Ok(Some(number)),
            Ok(_) => Ok(None),
            Err(error) => self.failed(error).map_err(later),
        }
    }

    fn failed(&self, error: observe::Error) -> Result<Option<u32>, String> {
        match error {
            observe::Error::Api(error) => {
                let rule = Rule::process("get, watch", "remoteprocess-view");
                Err(self
                    .cluster
                    .explain(&error, &rule, "see whether another attempt follows"))
            }
            // There is no time limit.
            observe::Error::TimedOut(_) => Ok(None),
        }
    }
}

/// The number of an attempt that has ended, and whether its program has run and reported its end.
type Ended = (u32, bool);

/// What follows an attempt, once the object says so.
fn next(seen: &Seen, (ended, has_run): Ended) -> Option<Next> {
    let Seen::There(object) = seen else {
        return Some(Next::Nothing);
    };
    let retries = object.spec.retries.as_ref().and_then(|retries| retries.limit);
    if has_run && retries.unwrap_or_default() == 0 {
        return Some(Next::Nothing);
    }
    let status = object.status.as_ref()?;
    let current = status.current_attempt().unwrap_or_default();
    if current > ended {
        // An attempt without a grant has run nothing; one that the status does not record may have run.
        let may_have_run = |number: &u32| {
            let record = status.attempt(*number);
            *number == current || record.is_none_or(|record| record.granted_at.is_some())
        };
        return (ended + 1..=current).find(may_have_run).map(Next::Attempt);
    }
    match (status.phase, status.reason) {
        (Some(phase), _) if phase.is_final() => Some(Next::Nothing),
        (Some(Phase::Pending), Some(Reason::Retrying)) => Some(Next::Later(status.message.clone().unwrap_or_default())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn seen(limit: u32, status: Value) -> Seen {
        let object = json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "job"},
            "spec": {"image": "i", "command": ["x"], "retries": {"limit": limit}}, "status": status,
        });
        Seen::There(serde_json::from_value(object).unwrap())
    }

    fn ran(number: u32) -> Value {
        json!({"number": number, "grantedAt": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn each_attempt_that_may_have_run_is_followed() {
        let status =
            |current: u32, attempts: &[Value]| json!({"phase": "Pending", "attempt": current, "attempts": attempts});
        let after = |ended, status| next(&seen(2, status), (ended, true));
        assert_eq!(
            after(1, status(2, &[ran(1), json!({"number": 2})])),
            Some(Next::Attempt(2))
        );
        assert_eq!(
            after(1, status(3, &[ran(1), json!({"number": 2}), ran(3)])),
            Some(Next::Attempt(3))
        );
        assert_eq!(
            after(1, status(3, &[ran(1), ran(2), ran(3)])),
            Some(Next::Attempt(2)),
            "it was short"
        );
        assert_eq!(
            after(9, status(30, &[ran(1)])),
            Some(Next::Attempt(10)),
            "no room in the status"
        );
    }

    #[test]
    fn the_object_says_whether_there_is_another() {
        let of = |phase: &str, reason: &str| json!({"phase": phase, "reason": reason, "message": "why", "attempt": 1, "attempts": [ran(1)]});
        let after = |status| next(&seen(2, status), (1, true));
        assert_eq!(after(of("Running", "Running")), None, "it has not heard of the end");
        assert_eq!(after(of("Pending", "Retrying")), Some(Next::Later("why".into())));
        assert_eq!(after(of("Failed", "NonZeroExit")), Some(Next::Nothing));
        assert_eq!(
            next(&seen(0, of("Pending", "Waiting")), (1, false)),
            None,
            "one that ran nothing is replaced, also without retries"
        );
        assert_eq!(
            next(&seen(0, of("Running", "Running")), (1, true)),
            Some(Next::Nothing),
            "a controller that is away holds up no end"
        );
        assert_eq!(next(&Seen::Gone, (1, false)), Some(Next::Nothing));
    }
}
