//! After the end of a process: its object is deleted when its time to live is over, and its pod if only a container that
//! is not ours keeps it alive.
//!
//! In: the situation of a process whose phase is final. Out: an [`Action`], and when to look again. Calls [`foreign`].

use std::time::Duration;

use remoteprocess_api::{Phase, RemoteProcess};

use super::foreign;
use super::situation::{Action, Sight, Situation, current, delete_held};
use super::timer::remaining;

/// Maximum length of a timer.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// What to delete after the end, and when to look again.
pub(super) fn clean_up_later(situation: &Situation<'_>) -> (Action, Option<Duration>) {
    let (action, again) = of_ttl(situation);
    let (Action::None, Some(record), Sight::Ours(pod)) = (&action, current(situation.process), situation.pod) else {
        return (action, again);
    };
    let Some(holder) = foreign::holder(pod, record) else {
        return (action, again);
    };
    let finished = record.finished_at.unwrap_or(situation.now);
    match remaining(finished, foreign::FOREIGN_WAIT, situation.now) {
        Some(left) => (Action::None, again.into_iter().chain([left]).min()),
        None => (delete_held(pod, holder), again),
    }
}

/// The effect of `spec.ttl` on a process that has ended.
fn of_ttl(situation: &Situation<'_>) -> (Action, Option<Duration>) {
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
