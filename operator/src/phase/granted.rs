//! Attempts whose start was granted: the program runs at most this once, is stopped, or has ended.
//!
//! In: the situation, the attempt's record and its pod. Out: a [`Decision`]. Calls [`Draft`] for the status,
//! [`ending`] to interpret the pod, and [`retry`] once the attempt has ended.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use remoteprocess_api::{AttemptExit, AttemptStatus, ExitSource, Reason};

use super::draft::Draft;
use super::situation::{Action, Decision, Memory, RECORD_WAIT, STOP_RESERVE, Sight, Situation, delete, should_stop};
use super::timer::remaining;
use super::{ending, pod, retry, waiting};

/// The start was granted: from here on the program runs at most this once.
pub(super) fn granted(mut draft: Draft<'_>, situation: &Situation<'_>, record: &AttemptStatus, pod: &Pod) -> Decision {
    let mut memory = situation.memory.clone();
    if let Some(end) = ending::of_pod(pod, record).or_else(|| ending::unreported(record)) {
        return await_record(draft, situation, record, &end, &mut memory);
    }
    (memory.ended_since, memory.gone_since) = (None, None);
    if should_stop(situation.process) {
        draft.see_pod(pod);
        draft.stopping(
            record,
            Reason::Stopping,
            "the process was asked to stop and has not ended yet".into(),
        );
        let (action, again) = stop_backstop(situation, pod, &mut memory);
        return draft.decision(action, again, memory);
    }
    if pod.metadata.deletion_timestamp.is_some() {
        let (reason, message) = pod::disruption(pod).unwrap_or((
            Reason::Stopping,
            "the pod is being deleted and the program is asked to stop".into(),
        ));
        draft.see_pod(pod);
        draft.stopping(record, reason, message);
        return draft.decision(Action::None, None, memory);
    }
    let again = if record.started_at.is_some() {
        draft.see_pod(pod);
        draft.launched(record);
        None
    } else {
        // The grant names the pod: its node alone is not worth a write.
        draft.wait_unless_usual(&waiting::granted(record))
    };
    draft.decision(Action::None, again, memory)
}

/// The program of a granted attempt is gone. Its exit record may be on the way: as long as the agent lives, it may
/// still be sending output, and the record follows the output. [`RECORD_WAIT`] after the agent's end, the pod's status
/// is used. If the output is sealed without an exit, the agent knows of none, and only the kubelet's status is awaited.
pub(super) fn await_record(
    mut draft: Draft<'_>,
    situation: &Situation<'_>,
    record: &AttemptStatus,
    end: &AttemptExit,
    memory: &mut Memory,
) -> Decision {
    let ended = *memory.ended_since.get_or_insert(situation.now);
    let (since, span) = match situation.pod {
        _ if record.output.is_some() && end.source == ExitSource::Kubelet => (ended, Duration::ZERO),
        _ if record.output.is_some() => (ended, RECORD_WAIT),
        Sight::Ours(pod) if pod::has_agent(pod) => (ended, RECORD_WAIT + pod::grace(pod)),
        _ => (*memory.gone_since.get_or_insert(situation.now), RECORD_WAIT),
    };
    if let Some(left) = remaining(since, span, situation.now) {
        return draft.decision(Action::None, Some(left), memory.clone());
    }
    if let Sight::Ours(pod) = situation.pod {
        draft.see_pod(pod);
    }
    draft.record_end(record, end.clone());
    let memory = Memory {
        created: memory.created.clone(),
        ..Memory::default()
    };
    retry::conclude(draft, situation, record, end, memory)
}

/// Deletes the pod of a process that neither agent nor relay stopped in time: the kubelet's SIGTERM takes the same stop
/// path.
fn stop_backstop(situation: &Situation<'_>, pod: &Pod, memory: &mut Memory) -> (Action, Option<Duration>) {
    let since = *memory.stopping_since.get_or_insert(situation.now);
    let grace = Duration::from_secs(situation.process.spec.stop_grace_seconds().into());
    match remaining(since, grace + STOP_RESERVE, situation.now) {
        Some(left) => (Action::None, Some(left)),
        None => (delete(pod), None),
    }
}
