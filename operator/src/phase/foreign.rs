//! Containers in a pod that are not ours: a webhook or `kubectl debug` added them.
//!
//! In: a pod. Out: the name of such a container, and what it prevents. Calls only [`pod`](super::pod).

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use remoteprocess_api::{AttemptStatus, names};

use super::pod::{container, is_terminal};

/// How long a container that is not ours may keep the pod of an ended attempt.
pub(super) const FOREIGN_WAIT: Duration = Duration::from_secs(10);

/// The container that keeps the pod alive although the attempt is over: its program has ended, its end is recorded and
/// its output is closed. Otherwise the kubelet would restart the agent forever.
pub(super) fn holder<'a>(pod: &'a Pod, record: &AttemptStatus) -> Option<&'a str> {
    let main = container(pod, names::CONTAINER_MAIN)?.state.as_ref()?;
    let is_over = record.exit.is_some() && record.output.is_some() && main.terminated.is_some();
    if !is_over || is_terminal(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    // A sidecar does not count: the kubelet ends it with the program.
    let mut alive = foreign(&status.container_statuses).filter(|container| !has_ended(container));
    let mut debuggers = foreign(&status.ephemeral_container_statuses).filter(|container| is_running(container));
    alive
        .next()
        .or_else(|| debuggers.next())
        .map(|container| &*container.name)
}

/// An init container that has not ended, so that the program has not started yet.
pub(super) fn init_container(pod: &Pod) -> Option<&str> {
    let statuses = foreign(&pod.status.as_ref()?.init_container_statuses);
    let mut running = statuses.filter(|container| is_running(container) && !is_sidecar(pod, container));
    running.next().map(|container| &*container.name)
}

/// An init container that has failed, so that the program is never started.
pub(super) fn failed_init_container(pod: &Pod) -> Option<(&str, &ContainerStateTerminated)> {
    let mut statuses = foreign(&pod.status.as_ref()?.init_container_statuses);
    statuses.find_map(|container| {
        let end = container.state.as_ref()?.terminated.as_ref()?;
        (end.exit_code != 0).then_some((&*container.name, end))
    })
}

fn foreign(statuses: &Option<Vec<ContainerStatus>>) -> impl Iterator<Item = &ContainerStatus> {
    let statuses = statuses.iter().flatten();
    statuses.filter(|container| ![names::CONTAINER_MAIN, names::CONTAINER_AGENT].contains(&container.name.as_str()))
}

fn is_running(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_some_and(|state| state.running.is_some())
}

fn has_ended(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_some_and(|state| state.terminated.is_some())
}

fn is_sidecar(pod: &Pod, container: &ContainerStatus) -> bool {
    let mut specs = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    specs.any(|spec| spec.name == container.name && spec.restart_policy.as_deref() == Some("Always"))
}
