//! Decides from the observed state of a process what its status should be and what to do next. Pure: time and
//! everything remembered are part of the [`Situation`].
//!
//! Three rules always hold: a final phase never changes; an attempt whose start was granted is never run again, and
//! another follows it only after proof that it has ended; a pod is created only for an attempt that the status already
//! names.
//!
//! This file chooses the step; each file below is one step. The arrows between the files point one way: `granted` →
//! `retry` → `unstarted` → `draft` → `ending`, `waiting` → `foreign`, `situation` → `pod`, `timer`. `deadline` calls
//! `unstarted` and what follows it; `ended` calls `foreign` and `situation`.

mod deadline;
mod draft;
mod ended;
mod ending;
mod foreign;
mod granted;
pub(crate) mod pod;
mod retry;
mod situation;
mod timer;
mod unstarted;
mod waiting;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use remoteprocess_api::{AttemptExit, AttemptStatus, ExitSource, Phase, Reason, RemoteProcess, RemoteProcessStatus};

use draft::Draft;
use granted::{await_record, granted};
use pod::Refusal;
pub(crate) use situation::{Action, Decision, Memory, NodeSight, OUT_OF_SERVICE, Sight, Situation};
use situation::{clean_up, current, disruption, should_stop, should_wait};
use unstarted::{begin_first, end_before_start, not_granted, replace, stop_before_start};
use waiting::Wait;

/// Pause between two looks at a pod of the same name that has another owner.
const CONFLICT_RETRY: Duration = Duration::from_secs(10);

/// Decides what the status should say and what to do.
pub(crate) fn decide(situation: &Situation<'_>) -> Decision {
    deadline::mind(decide_now(situation), situation)
}

fn decide_now(situation: &Situation<'_>) -> Decision {
    let process = situation.process;
    let mut draft = Draft::new(situation);
    let mut memory = situation.memory.clone();
    if process.metadata.deletion_timestamp.is_some() {
        return draft.decision(Action::None, None, memory);
    }
    draft.status.observed_generation = process.metadata.generation;
    if draft.status.phase.is_some_and(Phase::is_final) {
        let (action, again) = match clean_up(situation) {
            Action::None => ended::clean_up_later(situation),
            action => (action, None),
        };
        return draft.decision(action, again, memory);
    }
    if let Some(decision) = deadline::passed(situation) {
        return decision;
    }
    let Some(record) = current(process) else {
        return begin_first(draft, process, memory);
    };
    if let Some(exit) = &record.exit {
        return if record.granted_at.is_some() || exit.source == ExitSource::Entrypoint {
            retry::conclude(draft, situation, record, exit, memory)
        } else {
            replace(draft, situation, record, exit, memory)
        };
    }
    match situation.pod {
        Sight::Foreign(pod) => {
            draft.wait(&waiting::name_conflict(pod));
            draft.decision(Action::None, Some(CONFLICT_RETRY), memory)
        }
        Sight::Missing if record.granted_at.is_some() => {
            await_record(draft, situation, record, &vanished(situation), &mut memory)
        }
        Sight::Missing if should_stop(process) => stop_before_start(draft, situation, record),
        Sight::Missing if was_created(record, &memory) => {
            end_before_start(draft, situation, record, &vanished(situation))
        }
        Sight::Missing if should_wait(process) => {
            draft.wait(&waiting::paused(process));
            draft.decision(Action::None, None, memory)
        }
        Sight::Missing => draft.decision(Action::CreatePod(record.number), None, memory),
        Sight::Ours(pod) if record.granted_at.is_some() => granted(draft, situation, record, pod),
        Sight::Ours(pod) => not_granted(draft, situation, record, pod),
    }
}

/// `learned`, the status after the relay has recorded a start, a pause or an end, with the phase and conditions that follow
/// from that record alone. Where they depend on the pod, or where another attempt may follow, they are the controller's
/// to say.
pub(crate) fn tell(process: &RemoteProcess, learned: RemoteProcessStatus, now: Timestamp) -> RemoteProcessStatus {
    let process = &RemoteProcess {
        status: Some(learned),
        ..process.clone()
    };
    let memory = Memory::default();
    let situation = Situation {
        process,
        pod: Sight::Missing,
        node: NodeSight::default(),
        memory: &memory,
        now,
    };
    let mut draft = Draft::new(&situation);
    let Some(record) = current(process) else {
        return draft.status;
    };
    if process.is_final() || process.metadata.deletion_timestamp.is_some() {
        return draft.status;
    }
    let runs = record.started_at.is_some() && record.output.is_none();
    let should_end = should_stop(process) || draft.status.phase == Some(Phase::Stopping);
    match &record.exit {
        Some(exit) if retry::is_last(process, exit) => draft.finish(record, exit, None),
        None if runs && !should_end => draft.launched(record),
        _ => return draft.status,
    }
    draft.status.observed_generation = process.metadata.generation;
    draft.decision(Action::None, None, Memory::default()).status
}

/// Decides after the API server refused the pod of the current attempt, or has another of its name. `requeue_after` is
/// when the next try is due.
pub(crate) fn decide_refused(situation: &Situation<'_>, refusal: &Refusal, requeue_after: Duration) -> Decision {
    let mut draft = Draft::new(situation);
    if refusal.is_final {
        return finish_invalid(draft, situation, refusal.reason, &refusal.message);
    }
    draft.wait(&Wait::problem(refusal.reason, refusal.message.clone()));
    let decision = draft.decision(Action::None, Some(requeue_after), situation.memory.clone());
    deadline::mind(decision, situation)
}

/// A pod with another owner has the name of ours.
pub(crate) fn name_conflict(pod: &Pod) -> Refusal {
    let Wait { reason, message, .. } = waiting::name_conflict(pod);
    Refusal {
        reason,
        message,
        is_final: false,
    }
}

/// Decides about a spec that cannot be turned into a pod.
pub(crate) fn decide_invalid(situation: &Situation<'_>, sentence: &str) -> Decision {
    let mut draft = Draft::new(situation);
    draft.status.observed_generation = situation.process.metadata.generation;
    finish_invalid(draft, situation, Reason::InvalidSpec, sentence)
}

fn finish_invalid(mut draft: Draft<'_>, situation: &Situation<'_>, reason: Reason, sentence: &str) -> Decision {
    let exit = AttemptExit {
        reason: Some(reason),
        message: Some(sentence.to_owned()),
        ..AttemptExit::default()
    };
    draft.finish(&AttemptStatus::default(), &exit, None);
    draft.decision(Action::None, None, situation.memory.clone())
}

fn was_created(record: &AttemptStatus, memory: &Memory) -> bool {
    record.pod_uid.is_some()
        || memory
            .created
            .as_ref()
            .is_some_and(|(attempt, _)| *attempt == record.number)
}

fn vanished(situation: &Situation<'_>) -> AttemptExit {
    let (reason, message) = disruption(situation).unwrap_or((
        Reason::Interrupted,
        "the pod vanished; another client deleted it".into(),
    ));
    AttemptExit {
        source: ExitSource::None,
        reason: Some(reason),
        message: Some(message),
        ..AttemptExit::default()
    }
}

#[cfg(test)]
mod tests;
