//! Start deadline: a process that is not started in time has failed, for the reason for which it waits.
//!
//! In: the situation. Out: a [`Decision`] once the deadline has passed, else the time at which to look again. Calls
//! [`Draft`] for the status and [`waiting`] for the reason.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use remoteprocess_api::{AttemptExit, AttemptStatus, ExitSource, Phase, Reason, RemoteProcess};

use super::draft::Draft;
use super::situation::{Action, Decision, Sight, Situation, clean_up, current, should_stop, should_wait};
use super::unstarted::ungranted;
use super::waiting::{self, Wait};

/// Until when the start must be granted; `None` if nothing is awaited or there is no limit.
fn due(process: &RemoteProcess) -> Option<Timestamp> {
    let seconds = process.spec.start_seconds()?;
    let created = || process.metadata.creation_timestamp.as_ref().map(|time| time.0);
    if process.is_final() {
        return None;
    }
    let since = match (current(process), ungranted(process).next_back()) {
        (None, _) => created()?,
        (Some(_), None) => return None,
        (Some(_), Some(first)) if first.number == 1 => created()?,
        (Some(_), Some(first)) => first.begun_at?,
    };
    since.checked_add(SignedDuration::from_secs(seconds.into())).ok()
}

/// When to look again at the latest.
pub(super) fn left(situation: &Situation<'_>) -> Option<Duration> {
    let left = due(situation.process)?.duration_since(situation.now);
    // A moment later, so that the deadline has passed by then.
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_millis(10))
}

/// The decision for a process whose start deadline has passed.
pub(super) fn passed(situation: &Situation<'_>) -> Option<Decision> {
    let process = situation.process;
    let due = due(process).filter(|due| *due <= situation.now && !should_stop(process))?;
    // A process that was paused from the beginning has no attempt.
    let none = AttemptStatus::default();
    let record = current(process).unwrap_or(&none);
    let (reason, why) = cause(situation);
    let seconds = process.spec.start_seconds().unwrap_or_default();
    let exit = AttemptExit {
        source: ExitSource::None,
        reason: Some(reason),
        message: Some(format!(
            "not started within {seconds} s (spec.deadlines.startSeconds): {why}"
        )),
        ..AttemptExit::default()
    };
    let mut draft = Draft::new(situation);
    draft.status.observed_generation = process.metadata.generation;
    if let Sight::Ours(pod) = situation.pod {
        // The recorded pod must not depend on whether it was observed before.
        draft.see_pod(pod);
        draft.wait(&waiting::of_pod(pod));
    }
    if record.exit.is_none() {
        draft.record_end(record, exit.clone());
    }
    // The process ended at its deadline, not when it was next reconciled.
    let mut record = record.clone();
    record.finished_at = Some(due);
    draft.finish(&record, &exit, None);
    Some(draft.decision(clean_up(situation), None, situation.memory.clone()))
}

fn cause(situation: &Situation<'_>) -> (Reason, String) {
    if should_wait(situation.process) {
        return (Reason::DeadlineExceeded, "it is paused (spec.desiredState)".to_owned());
    }
    let status = situation.process.status.as_ref();
    let Wait { reason, message, .. } = match situation.pod {
        Sight::Ours(pod) => waiting::of_pod(pod),
        Sight::Foreign(pod) => waiting::name_conflict(pod),
        Sight::Missing => Wait::problem(
            status.and_then(|status| status.reason).unwrap_or(Reason::Waiting),
            status.and_then(|status| status.message.clone()).unwrap_or_default(),
        ),
    };
    let reason = match reason {
        // It is not waiting or paused anymore, and nothing else is known to prevent the start.
        Reason::Waiting | Reason::Paused => Reason::DeadlineExceeded,
        reason => reason,
    };
    (reason, message)
}

/// Requeues the decision for the time at which the deadline passes.
pub(super) fn mind(mut decision: Decision, situation: &Situation<'_>) -> Decision {
    let is_final = decision.status.phase.is_some_and(Phase::is_final);
    if !is_final && decision.action != Action::DeleteProcess {
        decision.requeue_after = decision.requeue_after.into_iter().chain(left(situation)).min();
    }
    decision
}
