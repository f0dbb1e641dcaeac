//! When the object of an ended process is deleted.

use std::time::Duration;

use remoteprocess_api::{Phase, RemoteProcess};

use super::{Action, Situation, remaining};

/// Maximum length of a timer.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The effect of `spec.ttl` on a process that has ended.
pub(super) fn of_ended(situation: &Situation<'_>) -> (Action, Option<Duration>) {
    let process = situation.process;
    let (Some(span), true) = (span(process), is_closed(process)) else {
        return (Action::None, None);
    };
    let finished = process.status.as_ref().and_then(|status| status.finished_at);
    match remaining(finished.unwrap_or(situation.now), span, situation.now) {
        Some(left) => (Action::None, Some(left.min(LONGEST_WAIT))),
        None => (Action::DeleteProcess, None),
    }
}

fn span(process: &RemoteProcess) -> Option<Duration> {
    let ttl = process.spec.ttl.as_ref()?;
    let seconds = match process.status.as_ref()?.phase? {
        Phase::Succeeded => ttl.seconds_after_success?,
        Phase::Failed => ttl.seconds_after_failure?,
        _ => return None,
    };
    Some(Duration::from_secs(seconds.into()))
}

/// Whether the output of every attempt is sealed, or closed with the missing ranges named.
fn is_closed(process: &RemoteProcess) -> bool {
    let mut attempts = process.status.iter().flat_map(|status| &status.attempts);
    attempts.all(|attempt| attempt.granted_at.is_none() || attempt.output.is_some())
}
