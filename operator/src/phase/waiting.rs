//! Why a process does not run yet, according to its pod.
//!
//! In: a pod or an attempt's record. Out: a [`Wait`] with phase, reason and message. Calls [`foreign`], [`pod`](super::pod)
//! and [`remaining`].

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use remoteprocess_api::{AttemptExit, AttemptStatus, Phase, Reason, RemoteProcess, names};

use super::foreign;
use super::pod::{condition, container, terminated};
use super::situation::MAX_ATTEMPTS;
use super::timer::remaining;

/// Waits that are part of every start are recorded only when they last longer than this.
const USUAL_WAIT: Duration = Duration::from_secs(3);

/// One reason to wait.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wait {
    pub(super) phase: Phase,
    pub(super) reason: Reason,
    pub(super) message: String,
    /// Whether the pod has its node.
    pub(super) scheduled: bool,
    /// If the wait is part of every start: since when. `None` if it is worth a write at once.
    pub(super) usual_since: Option<Timestamp>,
    /// Whether the message says more than that the kubelet waits before its next try.
    pub(super) is_news: bool,
    /// Whether the program can never start.
    pub(super) is_final: bool,
}

impl Wait {
    /// A problem of a pod that has no node, or no node anymore.
    pub(super) fn problem(reason: Reason, message: String) -> Self {
        Self {
            phase: Phase::Pending,
            reason,
            message,
            scheduled: false,
            usual_since: None,
            is_news: true,
            is_final: false,
        }
    }

    fn on_node(phase: Phase, reason: Reason, message: String, usual_since: Option<Timestamp>) -> Self {
        Self {
            phase,
            scheduled: true,
            usual_since,
            ..Self::problem(reason, message)
        }
    }

    /// How long the wait is still expected.
    pub(super) fn usual_for(&self, now: Timestamp) -> Option<Duration> {
        remaining(self.usual_since?, USUAL_WAIT, now)
    }

    pub(super) fn is_worth_a_write(&self, now: Timestamp) -> bool {
        self.reason != Reason::Waiting && self.usual_for(now).is_none()
    }
}

/// The spec asks that nothing is started.
pub(super) fn paused(process: &RemoteProcess) -> Wait {
    let message = format!("paused before the program was started {}", process.requester());
    Wait {
        phase: Phase::Paused,
        ..Wait::problem(Reason::Paused, message)
    }
}

/// A pod of the needed name that has another owner.
pub(super) fn name_conflict(pod: &Pod) -> Wait {
    let owner = pod
        .owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true));
    let owner = owner.map_or_else(
        || "no controller".to_owned(),
        |owner| format!("{} {}", owner.kind, owner.name),
    );
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

/// The start is granted and the launch is not yet reported.
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
    if let Some(wait) = in_the_way(pod) {
        return wait;
    }
    let main = container(pod, names::CONTAINER_MAIN);
    let running = main.and_then(|main| main.state.as_ref()?.running.as_ref());
    if let Some(running) = running {
        let since = running.started_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let message = "the program waits for its agent, which enrolls or asks for the start".to_owned();
        return Wait::on_node(Phase::Starting, Reason::Enrolling, message, Some(since));
    }
    let since = scheduled.and_then(|condition| condition.last_transition_time.as_ref());
    let message = match foreign::init_container(pod) {
        Some(name) => format!("the init container {name}, which is not ours, has not ended"),
        None => format!(
            "the node prepares volumes and containers{}; if this lasts, `kubectl describe pod {}` says why",
            input(pod).unwrap_or_default(),
            pod.name_any()
        ),
    };
    Wait::on_node(
        Phase::Pending,
        Reason::ContainerCreating,
        message,
        Some(since.map_or(Timestamp::UNIX_EPOCH, |time| time.0)),
    )
}

/// What must exist for the program's input. The kubelet says in Events alone that it does not.
fn input(pod: &Pod) -> Option<String> {
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    let volume = volumes.iter().find(|volume| volume.name == names::VOLUME_STDIN)?;
    let (kind, name, items) = match (&volume.config_map, &volume.secret) {
        (Some(map), _) => ("ConfigMap", &map.name, &map.items),
        (None, Some(secret)) => ("Secret", secret.secret_name.as_ref()?, &secret.items),
        (None, None) => return None,
    };
    let key = &items.as_ref()?.first()?.key;
    Some(format!(
        ", for which the {kind} {name} must exist and have the key {key} (spec.stdinFrom)"
    ))
}

/// The first container that the kubelet cannot start, among those that must run before the program.
fn in_the_way(pod: &Pod) -> Option<Wait> {
    let init = pod.status.as_ref()?.init_container_statuses.iter().flatten();
    let main = container(pod, names::CONTAINER_MAIN);
    init.chain(main).find_map(trouble)
}

/// The names of the scheduling gates that hold the pod back.
fn gates(pod: &Pod) -> Option<String> {
    let gates = pod.spec.as_ref()?.scheduling_gates.as_ref()?;
    let names: Vec<_> = gates.iter().map(|gate| gate.name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// The meaning of the kubelet's reason for a waiting container (kubelet: `images/types.go`,
/// `container/sync_result.go`).
fn trouble(container: &ContainerStatus) -> Option<Wait> {
    let state = container.state.as_ref()?.waiting.as_ref()?;
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
    let said = state.message.as_deref().unwrap_or(word);
    let (sentence, is_news) = match word {
        "ImagePullBackOff" => match said.split_once(BACK_OFF_BECAUSE) {
            Some((_, cause)) => (cause.to_owned(), true),
            None => (said.to_owned(), false),
        },
        "CrashLoopBackOff" => match last_end(container) {
            Some(end) => (end, true),
            None => (said.to_owned(), false),
        },
        _ => (said.to_owned(), true),
    };
    let (whose, reason) = match container.name.as_str() {
        names::CONTAINER_MAIN => (String::new(), reason),
        names::CONTAINER_AGENT => ("the agent's container: ".to_owned(), reason),
        name => (
            format!("the container {name}, which is not ours: "),
            Reason::ForeignContainer,
        ),
    };
    Some(Wait {
        is_news,
        // The installation can change the image of its agents; the spec of a process cannot change.
        is_final: container.name == names::CONTAINER_MAIN && never_heals(word, said),
        ..Wait::on_node(Phase::Pending, reason, format!("{whose}{sentence}"), None)
    })
}

/// What the kubelet puts between the image and the error of its last try.
const BACK_OFF_BECAUSE: &str = ": ErrImagePull: ";

/// Whether only another spec would help. An image that cannot be pulled may be pushed later, and a missing Secret may
/// be created.
fn never_heals(word: &str, said: &str) -> bool {
    match word {
        "InvalidImageName" | "ErrImageNeverPull" => true,
        // kubelet: `verifyRunAsNonRoot`.
        "CreateContainerConfigError" => {
            said.contains("has runAsNonRoot and") || said.contains("breaks non-root policy")
        }
        _ => false,
    }
}

/// The last end of a container that is restarted repeatedly.
fn last_end(container: &ContainerStatus) -> Option<String> {
    let end = container.last_state.as_ref()?.terminated.as_ref()?;
    Some(format!("it ends again and again, {}", terminated(end)))
}

/// The wait after this many attempts in a row that were never granted: 1, 2, 4, 8 s.
pub(super) fn back_off(ended: usize) -> Duration {
    Duration::from_secs(1 << ended.saturating_sub(1).min(5))
}
