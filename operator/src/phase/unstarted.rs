//! Attempts without a grant: they have run nothing, so they are replaced, and a stop ends them at once.
//!
//! In: the situation and the attempt's record. Out: a [`Decision`]. Calls [`Draft`] for the status, [`waiting`] and
//! [`ending`] to interpret the pod.

use k8s_openapi::api::core::v1::Pod;
use remoteprocess_api::{AttemptExit, AttemptStatus, DesiredState, ExitSource, Reason, RemoteProcess, StopStatus};

use super::draft::Draft;
use super::situation::{
    Action, Decision, MAX_ATTEMPTS, Memory, Sight, Situation, clean_up, delete, should_stop, should_wait,
};
use super::timer::remaining;
use super::waiting::{self, Wait, back_off};
use super::{ending, pod};

/// The first reconcile of a process.
pub(super) fn begin_first(mut draft: Draft<'_>, process: &RemoteProcess, memory: Memory) -> Decision {
    match process.spec.desired_state {
        DesiredState::Stopped => {
            draft.finish(&AttemptStatus::default(), &stopped_before_start(process), None);
            draft.decision(Action::None, None, memory)
        }
        DesiredState::Paused => {
            draft.wait(&waiting::paused(process));
            draft.decision(Action::None, None, memory)
        }
        DesiredState::Running => {
            // Above 0 only if a user removed the record of an attempt: its name is not used again.
            let last = draft.status.attempt.unwrap_or_default();
            begin(draft, last.saturating_add(1), memory)
        }
    }
}

/// Records attempt `number`; its pod is created after that is written.
pub(super) fn begin(mut draft: Draft<'_>, number: u32, memory: Memory) -> Decision {
    let memory = Memory {
        created: memory.created,
        ..Memory::default()
    };
    draft.begin(number);
    draft.decision(Action::CreatePod(number), None, memory)
}

/// No program has been started yet.
pub(super) fn not_granted(
    mut draft: Draft<'_>,
    situation: &Situation<'_>,
    record: &AttemptStatus,
    pod: &Pod,
) -> Decision {
    if should_stop(situation.process) {
        return stop_before_start(draft, situation, record);
    }
    let taken_away = pod.metadata.deletion_timestamp.as_ref().map(|_| {
        let deleted = || {
            (
                Reason::Interrupted,
                "the pod was deleted before the program was started".into(),
            )
        };
        pod::disruption(pod).unwrap_or_else(deleted)
    });
    if let Some(mut end) = ending::of_pod(pod, record) {
        draft.see_pod(pod);
        if let Some((reason, message)) = taken_away {
            (end.reason, end.message) = (Some(reason), Some(message));
        }
        return end_before_start(draft, situation, record, &end);
    }
    if let Some((reason, message)) = taken_away {
        draft.see_pod(pod);
        draft.wait(&Wait::problem(reason, message));
        return draft.decision(Action::None, None, situation.memory.clone());
    }
    if should_wait(situation.process) {
        draft.see_pod(pod);
        draft.wait(&waiting::paused(situation.process));
        return draft.decision(Action::None, None, situation.memory.clone());
    }
    let wait = waiting::of_pod(pod);
    if wait.is_final {
        return end_for_good(draft, situation, record, pod, &wait);
    }
    if wait.is_worth_a_write(situation.now) {
        draft.see_pod(pod);
    }
    let again = draft.wait_unless_usual(&wait);
    draft.decision(Action::None, again, situation.memory.clone())
}

/// The program can never start: the process has failed at once. As with a stop, the final status is written first.
fn end_for_good(
    mut draft: Draft<'_>,
    situation: &Situation<'_>,
    record: &AttemptStatus,
    pod: &Pod,
    wait: &Wait,
) -> Decision {
    let exit = AttemptExit {
        source: ExitSource::None,
        reason: Some(wait.reason),
        message: Some(wait.message.clone()),
        ..AttemptExit::default()
    };
    draft.see_pod(pod);
    draft.wait(wait);
    draft.record_end(record, exit.clone());
    draft.finish(record, &exit, None);
    draft.decision(clean_up(situation), None, situation.memory.clone())
}

/// An attempt ended without a grant: it is recorded, and another follows.
pub(super) fn end_before_start(
    mut draft: Draft<'_>,
    situation: &Situation<'_>,
    record: &AttemptStatus,
    end: &AttemptExit,
) -> Decision {
    let exit = AttemptExit {
        source: ExitSource::None,
        code: None,
        signal: None,
        ..end.clone()
    };
    draft.record_end(record, exit.clone());
    let ended = ungranted(situation.process).count();
    draft.wait(&waiting::replacement(record.number, ended, &exit));
    let action = match situation.pod {
        Sight::Ours(pod) if !pod::is_terminal(pod) => delete(pod),
        _ => Action::None,
    };
    draft.decision(action, Some(back_off(ended)), situation.memory.clone())
}

pub(super) fn replace(
    mut draft: Draft<'_>,
    situation: &Situation<'_>,
    record: &AttemptStatus,
    exit: &AttemptExit,
    memory: Memory,
) -> Decision {
    if should_stop(situation.process) {
        draft.finish(record, &stopped_before_start(situation.process), None);
        return draft.decision(Action::None, None, memory);
    }
    let failed = ungranted(situation.process).count();
    if failed >= MAX_ATTEMPTS {
        draft.finish(record, &start_failed(exit), None);
        return draft.decision(Action::None, None, memory);
    }
    let ended = record.finished_at.unwrap_or(situation.now);
    match remaining(ended, back_off(failed), situation.now) {
        Some(left) => draft.decision(clean_up(situation), Some(left), memory),
        None if should_wait(situation.process) => {
            draft.wait(&waiting::paused(situation.process));
            draft.decision(clean_up(situation), None, memory)
        }
        None => begin(draft, record.number + 1, memory),
    }
}

/// The final status is written first, guarded by the version that shows no grant; only then is the pod deleted.
pub(super) fn stop_before_start(mut draft: Draft<'_>, situation: &Situation<'_>, record: &AttemptStatus) -> Decision {
    let exit = stopped_before_start(situation.process);
    draft.record_end(record, exit.clone());
    draft.finish(record, &exit, None);
    draft.decision(clean_up(situation), None, situation.memory.clone())
}

pub(super) fn stopped_before_start(process: &RemoteProcess) -> AttemptExit {
    let asked = process.requester();
    AttemptExit {
        source: ExitSource::None,
        reason: Some(Reason::Stopped),
        message: Some("stopped before the program was started".into()),
        stop: Some(StopStatus {
            requested_by: asked.requested_by(),
            message: asked.why,
        }),
        ..AttemptExit::default()
    }
}

fn start_failed(last: &AttemptExit) -> AttemptExit {
    let last = last.message.as_deref().unwrap_or("no reason is known");
    AttemptExit {
        reason: Some(Reason::StartFailed),
        message: Some(format!(
            "{MAX_ATTEMPTS} pods ended before the program was started; the last: {last}"
        )),
        ..AttemptExit::default()
    }
}

/// The newest attempts, latest first, as far back as none was granted.
pub(super) fn ungranted(process: &RemoteProcess) -> impl DoubleEndedIterator<Item = &AttemptStatus> {
    let attempts = process.status.iter().flat_map(|status| &status.attempts);
    let mut newest: Vec<_> = attempts.collect();
    newest.sort_by_key(|attempt| std::cmp::Reverse(attempt.number));
    let run = newest.iter().take_while(|attempt| attempt.granted_at.is_none()).count();
    newest.truncate(run);
    newest.into_iter()
}
