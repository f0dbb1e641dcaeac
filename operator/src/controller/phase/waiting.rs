//! Why a process does not run yet, from its pod.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateWaiting, ContainerStatus, Pod, PodCondition};
use kube::ResourceExt;
use remoteprocess_api::{AttemptExit, AttemptStatus, Phase, Reason, RemoteProcess, names};

use super::unstarted::back_off;
use super::{MAX_ATTEMPTS, USUAL_WAIT, remaining};

/// One reason to wait.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wait {
    pub(super) phase: Phase,
    pub(super) reason: Reason,
    pub(super) message: String,
    /// Whether the pod has its node.
    pub(super) scheduled: bool,
    /// Part of every start since then; `None` for what is worth a write at once.
    pub(super) usual_since: Option<Timestamp>,
}

impl Wait {
    /// Something is wrong, and the pod has no node, or none any more.
    pub(super) fn problem(reason: Reason, message: String) -> Self {
        Self {
            phase: Phase::Pending,
            reason,
            message,
            scheduled: false,
            usual_since: None,
        }
    }

    fn on_node(phase: Phase, reason: Reason, message: String, usual_since: Option<Timestamp>) -> Self {
        Self {
            phase,
            reason,
            message,
            scheduled: true,
            usual_since,
        }
    }

    /// How long it is still to be expected.
    pub(super) fn usual_for(&self, now: Timestamp) -> Option<Duration> {
        remaining(self.usual_since?, USUAL_WAIT, now)
    }

    pub(super) fn is_worth_a_write(&self, now: Timestamp) -> bool {
        self.reason != Reason::Waiting && self.usual_for(now).is_none()
    }
}

/// Somebody wants that nothing is started.
pub(super) fn paused(process: &RemoteProcess) -> Wait {
    let message = process.asked().of("paused before the program was started");
    Wait {
        phase: Phase::Paused,
        ..Wait::problem(Reason::Paused, message)
    }
}

/// A pod of the wanted name that is not ours.
pub(super) fn name_conflict(pod: &Pod) -> Wait {
    let owner = pod
        .owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true));
    let owner = owner.map_or_else(|| "nobody".to_owned(), |owner| format!("{} {}", owner.kind, owner.name));
    Wait::problem(
        Reason::NameConflict,
        format!(
            "the pod {} belongs to {owner}; delete it, or use another name",
            pod.name_any()
        ),
    )
}

/// An attempt that ran nothing is replaced.
pub(super) fn replacement(number: u32, ended: usize, exit: &AttemptExit) -> Wait {
    let cause = exit.message.as_deref().unwrap_or("no reason is known");
    let next = match ended {
        MAX_ATTEMPTS.. => String::new(),
        _ => format!("; the next attempt follows in {} s", back_off(ended).as_secs()),
    };
    let message = format!("attempt {number} ended before the program was started: {cause}{next}");
    Wait::problem(exit.reason.unwrap_or(Reason::Interrupted), message)
}

/// The start is granted and the launch not yet reported.
pub(super) fn granted(record: &AttemptStatus) -> Wait {
    Wait::on_node(
        Phase::Starting,
        Reason::Enrolling,
        "the start is granted and the program is being launched".into(),
        record.granted_at,
    )
}

/// Why the pod's program has not been granted a start.
pub(super) fn of_pod(pod: &Pod) -> Wait {
    let scheduled = condition(pod, "PodScheduled");
    if let Some(gates) = gates(pod) {
        let message = format!("held back by the scheduling gates of its pod: {gates}");
        return Wait::problem(Reason::Gated, message);
    }
    if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
        return match scheduled.filter(|condition| condition.status == "False") {
            Some(condition) => Wait::problem(Reason::Unschedulable, condition.message.clone().unwrap_or_default()),
            None => Wait::problem(Reason::Waiting, "the pod waits for the scheduler".into()),
        };
    }
    let agent = container(pod, names::CONTAINER_AGENT);
    let main = container(pod, names::CONTAINER_MAIN);
    if let Some(wait) = agent
        .and_then(waiting_state)
        .and_then(|state| trouble("the agent's container: ", state))
    {
        return wait;
    }
    if let Some(wait) = main.and_then(waiting_state).and_then(|state| trouble("", state)) {
        return wait;
    }
    let running = main.and_then(|main| main.state.as_ref()?.running.as_ref());
    if let Some(running) = running {
        let since = running.started_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let message = "the program waits for its agent, which enrols or asks for the start".to_owned();
        return Wait::on_node(Phase::Starting, Reason::Enrolling, message, Some(since));
    }
    let since = scheduled.and_then(|condition| condition.last_transition_time.as_ref());
    let message = format!(
        "the node prepares volumes and containers; if this lasts, `kubectl describe pod {}` says why",
        pod.name_any()
    );
    Wait::on_node(
        Phase::Pending,
        Reason::ContainerCreating,
        message,
        Some(since.map_or(Timestamp::UNIX_EPOCH, |time| time.0)),
    )
}

/// The names of the gates that hold the pod back.
fn gates(pod: &Pod) -> Option<String> {
    let gates = pod.spec.as_ref()?.scheduling_gates.as_ref()?;
    let names: Vec<_> = gates.iter().map(|gate| gate.name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// What the kubelet's word for a waiting container means (kubelet: `images/types.go`, `container/sync_result.go`).
fn trouble(whose: &str, state: &ContainerStateWaiting) -> Option<Wait> {
    let word = state.reason.as_deref()?;
    let reason = match word {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => Reason::ImagePull,
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" | "PreStartHookError" => {
            Reason::CreateContainer
        }
        "CrashLoopBackOff" | "PostStartHookError" => Reason::HandoverFailed,
        _ => return None,
    };
    let sentence = state.message.as_deref().unwrap_or(word);
    Some(Wait::on_node(
        Phase::Pending,
        reason,
        format!("{whose}{sentence}"),
        None,
    ))
}

fn waiting_state(container: &ContainerStatus) -> Option<&ContainerStateWaiting> {
    container.state.as_ref()?.waiting.as_ref()
}

/// The condition of the pod with this type.
pub(super) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// The status of the container with this name.
pub(super) fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|container| container.name == name)
}
