//! The input and the output of a decision: what is observed of a process, and what to do about it.
//!
//! In: the object, its pod and its node. Out: small facts about them that several steps need. Calls only [`pod`] and
//! [`timer`](super::timer).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use remoteprocess_api::{AttemptStatus, DesiredState, Reason, RemoteProcess, RemoteProcessStatus};

use super::pod;
use super::timer::Renewal;

/// Maximum number of attempts in a row that end before a start was granted. They have run nothing, so they do not count
/// as retries, but a pod that never starts is not retried forever.
pub(crate) const MAX_ATTEMPTS: usize = 5;
/// How long to wait for the exit record after the agent is gone, before the kubelet's status is used instead.
pub(crate) const RECORD_WAIT: Duration = Duration::from_secs(10);
/// Added to the stop grace before the pod of a process that should stop is deleted.
pub(super) const STOP_RESERVE: Duration = Duration::from_secs(30);

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
    pub(super) renewal: Renewal,
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
pub(crate) struct Decision {
    /// The whole status.
    pub status: RemoteProcessStatus,
    /// What to do after it is written.
    pub action: Action,
    /// When to look again if nothing changes.
    pub requeue_after: Option<Duration>,
    /// What to remember from now on.
    pub memory: Memory,
}

/// The record of the current attempt.
pub(super) fn current(process: &RemoteProcess) -> Option<&AttemptStatus> {
    let status = process.status.as_ref()?;
    status.attempt(status.current_attempt()?)
}

pub(super) fn should_stop(process: &RemoteProcess) -> bool {
    process.spec.desired_state == DesiredState::Stopped
}

/// Whether nothing may be started now.
pub(super) fn should_wait(process: &RemoteProcess) -> bool {
    process.spec.desired_state == DesiredState::Paused
}

/// A pod that was never granted a start is deleted after the end of its process.
pub(super) fn clean_up(situation: &Situation<'_>) -> Action {
    let granted = current(situation.process).is_some_and(|record| record.granted_at.is_some());
    match situation.pod {
        Sight::Ours(pod) if !granted && !pod::is_terminal(pod) => delete(pod),
        _ => Action::None,
    }
}

pub(super) fn delete(pod: &Pod) -> Action {
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
pub(super) fn delete_held(pod: &Pod, by: &str) -> Action {
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
pub(super) fn disruption(situation: &Situation<'_>) -> Option<(Reason, String)> {
    if let Sight::Ours(pod) = situation.pod {
        return pod::disruption(pod);
    }
    let status = situation.process.status.as_ref()?;
    let reason = status
        .reason
        .filter(|reason| matches!(reason, Reason::Evicted | Reason::Preempted | Reason::NodeLost))?;
    Some((reason, status.message.clone().unwrap_or_default()))
}
