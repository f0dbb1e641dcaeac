//! Decides from the observed state of a process what its status should be and what to do next. Pure: time and
//! everything remembered are part of the [`Situation`].
//!
//! Three rules always hold: a final phase never changes; an attempt whose start was granted is never run again, and
//! another follows it only after proof that it has ended; a pod is created only for an attempt that the status already
//! names.

mod conditions;
mod deadline;
mod ending;
mod foreign;
pub(crate) mod pod;
mod renewal;
mod retry;
mod ttl;
mod unstarted;
mod waiting;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use remoteprocess_api::{
    AttemptExit, AttemptStatus, DesiredState, ExitSource, Phase, Reason, RemoteProcess, RemoteProcessStatus,
};

use conditions::Draft;
use pod::Refusal;
use renewal::Renewal;
use unstarted::{begin, begin_first, end_before_start, not_granted, replace, stop_before_start};
use waiting::Wait;

/// Maximum number of attempts in a row that end before a start was granted. They have run nothing, so they do not count
/// as retries, but a pod that never starts is not retried forever.
pub(crate) const MAX_ATTEMPTS: usize = 5;
/// How long to wait for the exit record after the agent is gone, before the kubelet's status is used instead.
pub(crate) const RECORD_WAIT: Duration = Duration::from_secs(10);
/// Waits that are part of every start are recorded only when they last longer than this.
const USUAL_WAIT: Duration = Duration::from_secs(3);
/// Added to the stop grace before the pod of a process that should stop is deleted.
const STOP_RESERVE: Duration = Duration::from_secs(30);
/// Pause between two looks at a pod of the same name that has another owner.
const CONFLICT_RETRY: Duration = Duration::from_secs(10);

/// What is observed of the pod of the current attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sight<'a> {
    /// It does not exist, and the API server was asked if that matters.
    Missing,
    /// The pod of this process.
    Ours(&'a Pod),
    /// A pod of that name has another owner.
    Foreign(&'a Pod),
}

/// What the controller remembers of a process in addition to its status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Attempt and UID of the pod that was last created or adopted.
    pub created: Option<(u32, String)>,
    /// Since when a granted attempt has neither a running program nor an exit record.
    pub ended_since: Option<Timestamp>,
    /// Since when its agent is gone too.
    pub gone_since: Option<Timestamp>,
    /// Since when an ended attempt is not known to have left its node.
    pub lingers_since: Option<Timestamp>,
    /// Since when a granted attempt should stop.
    pub stopping_since: Option<Timestamp>,
    /// How often the message of the current wait was renewed.
    renewal: Renewal,
}

/// What is observed of the node of a granted attempt whose pod is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NodeSight {
    /// It may still run the program: it does not answer, was not asked about, or may not be read.
    #[default]
    Silent,
    /// It has answered since then: its kubelet ends what the API server does not know.
    Ready {
        /// According to the node's own condition.
        since: Timestamp,
    },
    /// It was deleted, or its taint [`OUT_OF_SERVICE`] says that it is off.
    Gone,
}

/// Taint of a node that is known to be off (Kubernetes, "Non-graceful node shutdown handling").
pub(crate) const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Everything a decision depends on.
#[derive(Clone, Debug)]
pub(crate) struct Situation<'a> {
    /// The object.
    pub process: &'a RemoteProcess,
    /// The pod of its current attempt.
    pub pod: Sight<'a>,
    /// The node of that pod, if the pod is gone and its end is not proven.
    pub node: NodeSight,
    /// What the controller remembers.
    pub memory: &'a Memory,
    /// The time.
    pub now: Timestamp,
}

/// What to do once the status is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    #[default]
    None,
    /// Create the pod of this attempt.
    CreatePod(u32),
    /// Delete this pod.
    DeletePod {
        /// Its name.
        name: String,
        /// Its UID: another pod of that name stays.
        uid: String,
        /// The container, not one of ours, that keeps the pod alive, if that is why the pod is deleted.
        holder: Option<String>,
    },
    /// Delete the object itself: its time to live is over.
    DeleteProcess,
}

/// A decision: the status comes first, then the action.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Verdict {
    /// The whole status.
    pub status: RemoteProcessStatus,
    /// What to do after it is written.
    pub action: Action,
    /// When to look again if nothing changes.
    pub requeue_after: Option<Duration>,
    /// What to remember from now on.
    pub memory: Memory,
}

/// Decides what the status should say and what to do.
#[must_use]
pub(crate) fn decide(situation: &Situation<'_>) -> Verdict {
    deadline::mind(decide_now(situation), situation)
}

fn decide_now(situation: &Situation<'_>) -> Verdict {
    let process = situation.process;
    let mut draft = Draft::new(situation);
    let mut memory = situation.memory.clone();
    if process.metadata.deletion_timestamp.is_some() {
        return draft.verdict(Action::None, None, memory);
    }
    draft.status.observed_generation = process.metadata.generation;
    if draft.status.phase.is_some_and(Phase::is_final) {
        let (action, again) = match clean_up(situation) {
            Action::None => let_go(situation),
            action => (action, None),
        };
        return draft.verdict(action, again, memory);
    }
    if let Some(verdict) = deadline::passed(situation) {
        return verdict;
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
            draft.verdict(Action::None, Some(CONFLICT_RETRY), memory)
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
            draft.verdict(Action::None, None, memory)
        }
        Sight::Missing => draft.verdict(Action::CreatePod(record.number), None, memory),
        Sight::Ours(pod) if record.granted_at.is_some() => granted(draft, situation, record, pod),
        Sight::Ours(pod) => not_granted(draft, situation, record, pod),
    }
}

/// `learned`, the status after the relay has recorded a start, a pause or an end, with the phase and conditions that follow
/// from that record alone. Where they depend on the pod, or where another attempt may follow, they are the controller's
/// to say.
#[must_use]
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
    draft.verdict(Action::None, None, Memory::default()).status
}

/// Decides after the API server refused the pod of the current attempt, or has another of its name. `requeue_after` is
/// when the next try is due.
#[must_use]
pub(crate) fn decide_refused(situation: &Situation<'_>, refusal: &Refusal, requeue_after: Duration) -> Verdict {
    let mut draft = Draft::new(situation);
    if refusal.is_final {
        return finish_invalid(draft, situation, refusal.reason, &refusal.message);
    }
    draft.wait(&Wait::problem(refusal.reason, refusal.message.clone()));
    let verdict = draft.verdict(Action::None, Some(requeue_after), situation.memory.clone());
    deadline::mind(verdict, situation)
}

/// A pod with another owner has the name of ours.
#[must_use]
pub(crate) fn name_conflict(pod: &Pod) -> Refusal {
    let Wait { reason, message, .. } = waiting::name_conflict(pod);
    Refusal {
        reason,
        message,
        is_final: false,
    }
}

/// Decides about a spec that cannot be turned into a pod.
#[must_use]
pub(crate) fn decide_invalid(situation: &Situation<'_>, sentence: &str) -> Verdict {
    let mut draft = Draft::new(situation);
    draft.status.observed_generation = situation.process.metadata.generation;
    finish_invalid(draft, situation, Reason::InvalidSpec, sentence)
}

fn finish_invalid(mut draft: Draft<'_>, situation: &Situation<'_>, reason: Reason, sentence: &str) -> Verdict {
    let exit = AttemptExit {
        reason: Some(reason),
        message: Some(sentence.to_owned()),
        ..AttemptExit::default()
    };
    draft.finish(&AttemptStatus::default(), &exit, None);
    draft.verdict(Action::None, None, situation.memory.clone())
}

/// The record of the current attempt.
fn current(process: &RemoteProcess) -> Option<&AttemptStatus> {
    let status = process.status.as_ref()?;
    status.attempt(status.attempt?)
}

fn should_stop(process: &RemoteProcess) -> bool {
    process.spec.desired_state == DesiredState::Stopped
}

/// Whether nothing may be started now.
fn should_wait(process: &RemoteProcess) -> bool {
    process.spec.desired_state == DesiredState::Paused
}

fn was_created(record: &AttemptStatus, memory: &Memory) -> bool {
    record.pod_uid.is_some()
        || memory
            .created
            .as_ref()
            .is_some_and(|(attempt, _)| *attempt == record.number)
}

/// The start was granted: from here on the program runs at most this once.
fn granted(mut draft: Draft<'_>, situation: &Situation<'_>, record: &AttemptStatus, pod: &Pod) -> Verdict {
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
        return draft.verdict(action, again, memory);
    }
    if pod.metadata.deletion_timestamp.is_some() {
        let (reason, message) = pod::disruption(pod).unwrap_or((
            Reason::Stopping,
            "the pod is being deleted and the program is asked to stop".into(),
        ));
        draft.see_pod(pod);
        draft.stopping(record, reason, message);
        return draft.verdict(Action::None, None, memory);
    }
    let again = if record.started_at.is_some() {
        draft.see_pod(pod);
        draft.launched(record);
        None
    } else {
        // The grant names the pod: its node alone is not worth a write.
        draft.wait_unless_usual(&waiting::granted(record))
    };
    draft.verdict(Action::None, again, memory)
}

/// The program of a granted attempt is gone. Its exit record may be on the way: as long as the agent lives, it may
/// still be sending output, and the record follows the output. [`RECORD_WAIT`] after the agent's end, the pod's status
/// is used. If the output is sealed without an exit, the agent knows of none, and only the kubelet's status is awaited.
fn await_record(
    mut draft: Draft<'_>,
    situation: &Situation<'_>,
    record: &AttemptStatus,
    end: &AttemptExit,
    memory: &mut Memory,
) -> Verdict {
    let ended = *memory.ended_since.get_or_insert(situation.now);
    let (since, span) = match situation.pod {
        _ if record.output.is_some() && end.source == ExitSource::Kubelet => (ended, Duration::ZERO),
        _ if record.output.is_some() => (ended, RECORD_WAIT),
        Sight::Ours(pod) if pod::has_agent(pod) => (ended, RECORD_WAIT + pod::grace(pod)),
        _ => (*memory.gone_since.get_or_insert(situation.now), RECORD_WAIT),
    };
    if let Some(left) = remaining(since, span, situation.now) {
        return draft.verdict(Action::None, Some(left), memory.clone());
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

/// A pod that was never granted a start is deleted after the end of its process.
fn clean_up(situation: &Situation<'_>) -> Action {
    let granted = current(situation.process).is_some_and(|record| record.granted_at.is_some());
    match situation.pod {
        Sight::Ours(pod) if !granted && !pod::is_terminal(pod) => delete(pod),
        _ => Action::None,
    }
}

/// What happens after a process has ended: its object is deleted when its time to live is over, and its pod if only a
/// container that is not ours keeps it alive.
fn let_go(situation: &Situation<'_>) -> (Action, Option<Duration>) {
    let (action, again) = ttl::of_ended(situation);
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

fn delete(pod: &Pod) -> Action {
    match (pod.uid(), &pod.metadata.deletion_timestamp) {
        (Some(uid), None) => Action::DeletePod {
            name: pod.name_any(),
            uid,
            holder: None,
        },
        _ => Action::None,
    }
}

/// Deletes a pod that is kept alive by a container that is not ours.
fn delete_held(pod: &Pod, by: &str) -> Action {
    match delete(pod) {
        Action::DeletePod { name, uid, .. } => Action::DeletePod {
            name,
            uid,
            holder: Some(by.to_owned()),
        },
        action => action,
    }
}

/// Why the pod was removed, from the pod or from what was last seen of it.
fn disruption(situation: &Situation<'_>) -> Option<(Reason, String)> {
    if let Sight::Ours(pod) = situation.pod {
        return pod::disruption(pod);
    }
    let status = situation.process.status.as_ref()?;
    let reason = status
        .reason
        .filter(|reason| matches!(reason, Reason::Evicted | Reason::Preempted | Reason::NodeLost))?;
    Some((reason, status.message.clone().unwrap_or_default()))
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

/// What is left of `span` since `since`; `None` when it is over.
fn remaining(since: Timestamp, span: Duration, now: Timestamp) -> Option<Duration> {
    let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    let left = span.checked_sub(now.duration_since(since))?;
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests;
