//! Reads pods: what the controller uses of their status and metadata.
//!
//! In: a pod. Out: facts about it. Calls nothing of this module.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition};
use kube::ResourceExt;
use remoteprocess_api::sanitize::plain;
use remoteprocess_api::{Reason, RemoteProcess, names};
use sha2::{Digest, Sha256};

/// Why the API server refuses a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// As one word.
    pub reason: Reason,
    /// The API server's own message.
    pub message: String,
    /// Whether no retry can succeed, because the spec cannot change.
    pub is_final: bool,
}

/// Name of the pod of one attempt. It is derived from (name, uid, attempt), so that a second pod for the same attempt
/// cannot exist.
pub(crate) fn pod_name(name: &str, uid: &str, attempt: u32) -> String {
    let digest = Sha256::new()
        .chain_update(name)
        .chain_update([0])
        .chain_update(uid)
        .chain_update([0])
        .chain_update(attempt.to_be_bytes())
        .finalize();
    format!("{name}-{}", hex::encode(&digest[..4]))
}

/// Whether the process is the pod's controller.
pub(crate) fn is_owned(pod: &Pod, process: &RemoteProcess) -> bool {
    let mut owners = pod.owner_references().iter();
    owners.any(|owner| owner.controller == Some(true) && Some(&owner.uid) == process.metadata.uid.as_ref())
}

/// How a container ended, in the kubelet's words: `with code 1 (Error: no route to host)`.
pub(crate) fn terminated(end: &ContainerStateTerminated) -> String {
    let message = end.message.as_deref().map(last_words).filter(|words| !words.is_empty());
    let said = [end.reason.clone(), message];
    let said: Vec<_> = said.into_iter().flatten().collect();
    match said.is_empty() {
        true => format!("with code {}", end.exit_code),
        false => format!("with code {} ({})", end.exit_code, said.join(": ")),
    }
}

/// The end of a termination message, which may be the end of a log, on one line.
pub(crate) fn last_words(message: &str) -> String {
    let lines: Vec<_> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = lines.join("; ");
    let surplus = line.chars().count().saturating_sub(MAX_LAST_WORDS);
    let end: String = line.chars().skip(surplus).collect();
    let mark = if surplus > 0 { "..." } else { "" };
    format!("{mark}{}", plain(&end, MAX_LAST_WORDS))
}

/// Maximum length of the part of a termination message that the status shows, in characters.
const MAX_LAST_WORDS: usize = 600;

/// The condition of the pod with this type.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// The status of the container with this name.
pub(crate) fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|container| container.name == name)
}

/// Whether no container of the pod runs or will run.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the agent's container still runs.
pub(crate) fn has_agent(pod: &Pod) -> bool {
    let agent = container(pod, names::CONTAINER_AGENT).and_then(|agent| agent.state.as_ref());
    !is_terminal(pod) && agent.is_some_and(|state| state.running.is_some())
}

/// The pod's termination grace period: the kubelet ends the agent at most this long after the program.
pub(crate) fn grace(pod: &Pod) -> Duration {
    let seconds = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds)
        .unwrap_or(30);
    Duration::from_secs(seconds.max(0).unsigned_abs())
}

/// Why the pod was disrupted (Kubernetes, "Pod disruption conditions").
pub(crate) fn disruption(pod: &Pod) -> Option<(Reason, String)> {
    let status = pod.status.as_ref()?;
    let sentence = |message: Option<&String>, otherwise: &str| message.cloned().unwrap_or_else(|| otherwise.to_owned());
    match status.reason.as_deref() {
        Some("Evicted") => {
            return Some((
                Reason::Evicted,
                sentence(status.message.as_ref(), "the kubelet evicted the pod"),
            ));
        }
        Some("NodeLost") => return Some((Reason::NodeLost, sentence(status.message.as_ref(), "the node is gone"))),
        _ => {}
    }
    let target = condition(pod, "DisruptionTarget").filter(|condition| condition.status == "True")?;
    let reason = match target.reason.as_deref() {
        Some("DeletionByTaintManager" | "DeletionByPodGC") => Reason::NodeLost,
        Some("PreemptionByScheduler") => Reason::Preempted,
        _ => Reason::Evicted,
    };
    Some((reason, sentence(target.message.as_ref(), "the pod was evicted")))
}
