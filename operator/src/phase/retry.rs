//! The end of an attempt that ran: the process ends, or another attempt follows.
//!
//! Another attempt begins only after proof that the previous one has ended: a verified record together with a pod that
//! has ended or is being deleted, a pod that has ended, or a pod that is gone from a node that cannot run it anymore.
//!
//! In: the situation and the attempt's exit. Out: a [`Decision`]. Calls [`Draft`] for the status, [`ending`] for the kind
//! of the end, and [`begin`] for the next attempt.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use remoteprocess_api::{
    AttemptExit, AttemptStatus, ExitSource, Reason, RemoteProcess, RetriesStatus, RetryAfter, signal,
};

use super::draft::Draft;
use super::ending::{self, Outcome};
use super::foreign::{self, FOREIGN_WAIT};
use super::pod;
use super::situation::{
    Action, Decision, Memory, NodeSight, OUT_OF_SERVICE, RECORD_WAIT, STOP_RESERVE, Sight, Situation, delete,
    delete_held, disruption, should_stop, should_wait,
};
use super::timer::remaining;
use super::unstarted::begin;
use super::waiting::{self, Wait};

/// Added to the stop grace: how long a kubelet may still run a pod that was deleted by force.
const FORCED: Duration = Duration::from_secs(60);
/// Pause between two looks at a node of which nothing is known.
const NODE_RETRY: Duration = Duration::from_secs(15);

/// Whether the previous attempt has ended.
enum Proof {
    Ended,
    /// Not yet: why the next one waits, what to do about it, and when to look again.
    Missing(Option<Wait>, Action, Option<Duration>),
    /// There will be none.
    Never,
}

/// Ends the process, or begins the next attempt once that is safe and due.
pub(super) fn conclude(
    mut draft: Draft<'_>,
    situation: &Situation<'_>,
    record: &AttemptStatus,
    exit: &AttemptExit,
    mut memory: Memory,
) -> Decision {
    let process = situation.process;
    if let Sight::Ours(pod) = situation.pod {
        draft.see_pod(pod);
    }
    let disruption = disruption(situation);
    let outcome = ending::conclude(exit, should_stop(process), disruption.clone());
    let kind = kind_to_retry(process, exit, &outcome);
    let proof = proof(situation, record, exit, &mut memory);
    let (Some(kind), false) = (kind, matches!(proof, Proof::Never)) else {
        draft.finish(record, exit, disruption);
        return draft.decision(Action::None, None, memory);
    };
    let done = retries(process);
    let pause = process
        .spec
        .retries
        .as_ref()
        .map_or(0, |spec| spec.backoff_seconds(done.sum()));
    let left = remaining(
        record.finished_at.unwrap_or(situation.now),
        Duration::from_secs(pause.into()),
        situation.now,
    );
    draft.wait(&retrying(record, &outcome, pause));
    match (proof, left) {
        (Proof::Ended, None) if should_wait(process) => {
            draft.wait(&waiting::paused(process));
            draft.decision(Action::None, None, memory)
        }
        (Proof::Ended, None) => {
            draft.status.retries = Some(counted(done, kind));
            begin(draft, record.number + 1, memory)
        }
        (Proof::Missing(why, action, again), left) => {
            if let Some(wait) = why {
                draft.wait(&wait);
            }
            draft.decision(action, again.into_iter().chain(left).min(), memory)
        }
        (_, left) => draft.decision(Action::None, left, memory),
    }
}

fn retries(process: &RemoteProcess) -> RetriesStatus {
    let status = process.status.as_ref();
    status.and_then(|status| status.retries.clone()).unwrap_or_default()
}

fn counted(done: RetriesStatus, kind: RetryAfter) -> RetriesStatus {
    let RetriesStatus {
        infrastructure,
        process_failure,
    } = done;
    match kind {
        RetryAfter::Infrastructure => RetriesStatus {
            infrastructure: infrastructure + 1,
            process_failure,
        },
        RetryAfter::ProcessFailure => RetriesStatus {
            infrastructure,
            process_failure: process_failure + 1,
        },
    }
}

/// The kind of end, if the spec asks for another attempt after it.
fn kind_to_retry(process: &RemoteProcess, exit: &AttemptExit, outcome: &Outcome) -> Option<RetryAfter> {
    let spec = process.spec.retries.as_ref()?;
    let kind = kind_of(outcome.reason).filter(|kind| spec.is_after(*kind) && !should_stop(process))?;
    let done = retries(process);
    let done = match kind {
        RetryAfter::Infrastructure => done.infrastructure,
        RetryAfter::ProcessFailure => done.process_failure,
    };
    let is_meant = match (&spec.exit_codes, kind) {
        (Some(codes), RetryAfter::ProcessFailure) => code_of(exit).is_some_and(|code| codes.matches(code)),
        _ => true,
    };
    (is_meant && done < spec.limit.unwrap_or_default()).then_some(kind)
}

/// Whether the record of an end decides how the process ended: no other attempt follows, and the reason does not depend on
/// the pod.
pub(super) fn is_last(process: &RemoteProcess, exit: &AttemptExit) -> bool {
    let is_by_kubelet = exit
        .stop
        .as_ref()
        .is_some_and(|stop| stop.requested_by == ending::KUBELET);
    let outcome = ending::conclude(exit, should_stop(process), None);
    exit.source == ExitSource::Entrypoint && !is_by_kubelet && kind_to_retry(process, exit, &outcome).is_none()
}

/// The kind of end of a reason; `None` for those that no further attempt would fix.
fn kind_of(reason: Reason) -> Option<RetryAfter> {
    match reason {
        Reason::NonZeroExit
        | Reason::Signaled
        | Reason::OOMKilled
        | Reason::CommandNotFound
        | Reason::CommandNotExecutable => Some(RetryAfter::ProcessFailure),
        Reason::Interrupted
        | Reason::NodeLost
        | Reason::Evicted
        | Reason::Preempted
        | Reason::AgentLost
        | Reason::HandoverFailed
        | Reason::CreateContainer => Some(RetryAfter::Infrastructure),
        _ => None,
    }
}

/// The code as a shell reports it: 128 + n for signal n.
fn code_of(exit: &AttemptExit) -> Option<i32> {
    let by_signal = || {
        exit.signal
            .as_deref()
            .and_then(signal::parse)
            .map(|number| 128 + number)
    };
    exit.code.or_else(by_signal)
}

fn retrying(record: &AttemptStatus, outcome: &Outcome, pause: u32) -> Wait {
    let (number, next) = (record.number, record.number + 1);
    let (reason, message) = (outcome.reason, &outcome.message);
    Wait::problem(
        Reason::Retrying,
        format!(
            "attempt {number} ended ({reason}: {message}); attempt {next} follows in {pause} s, once the pod has ended"
        ),
    )
}

/// Whether nothing of the attempt can run anymore.
fn proof(situation: &Situation<'_>, record: &AttemptStatus, exit: &AttemptExit, memory: &mut Memory) -> Proof {
    let is_verified = exit.source == ExitSource::Entrypoint;
    match situation.pod {
        Sight::Ours(pod) if pod::is_terminal(pod) => Proof::Ended,
        Sight::Ours(pod) if is_verified && pod.metadata.deletion_timestamp.is_some() => Proof::Ended,
        Sight::Ours(pod) => lingering(situation, record, pod, memory),
        _ if is_verified => Proof::Ended,
        // The node is not known, so the pod's absence from it cannot be proven.
        _ if record.node.is_none() => Proof::Never,
        _ => by_node(situation, record, memory),
    }
}

/// The program has ended and the pod has not: the agent is sending output, or a container that is not ours keeps
/// running. When the pod's time is over, it is deleted.
fn lingering(situation: &Situation<'_>, record: &AttemptStatus, pod: &Pod, memory: &mut Memory) -> Proof {
    let since = *memory.lingers_since.get_or_insert(situation.now);
    let holder = foreign::holder(pod, record);
    let (span, why) = match holder {
        Some(name) => (FOREIGN_WAIT, Some(held(record, name))),
        None => (pod::grace(pod) + RECORD_WAIT, None),
    };
    match (remaining(since, span, situation.now), holder) {
        (Some(left), _) => Proof::Missing(why, Action::None, Some(left)),
        (None, Some(name)) => Proof::Missing(why, delete_held(pod, name), None),
        (None, None) => Proof::Missing(why, delete(pod), None),
    }
}

fn held(record: &AttemptStatus, name: &str) -> Wait {
    let (number, next) = (record.number, record.number + 1);
    let message = format!(
        "attempt {number} has ended, and the container {name}, which is not ours, keeps its pod alive; the pod is deleted \
         after {} s, and attempt {next} follows",
        FOREIGN_WAIT.as_secs()
    );
    Wait::problem(Reason::ForeignContainer, message)
}

/// The pod is gone and the program's end was not seen: only the node can prove it.
fn by_node(situation: &Situation<'_>, record: &AttemptStatus, memory: &mut Memory) -> Proof {
    let since = *memory.lingers_since.get_or_insert(situation.now);
    let node = record.node.as_deref().unwrap_or_default();
    match situation.node {
        NodeSight::Gone => Proof::Ended,
        NodeSight::Ready { since: answers } => {
            let since = since.max(answers);
            let grace = Duration::from_secs(situation.process.spec.stop_grace_seconds().into());
            match remaining(since, grace + STOP_RESERVE + FORCED, situation.now) {
                Some(left) => Proof::Missing(None, Action::None, Some(left)),
                None => Proof::Ended,
            }
        }
        NodeSight::Silent => {
            memory.lingers_since = None;
            let message = format!(
                "the pod is gone and its node {node} does not answer, so the program may still run there; the next \
                 attempt waits until the node is back, or is deleted, or has the taint {taint}",
                taint = OUT_OF_SERVICE
            );
            let wait = Wait::problem(Reason::NodeLost, message);
            Proof::Missing(Some(wait), Action::None, Some(NODE_RETRY))
        }
    }
}
