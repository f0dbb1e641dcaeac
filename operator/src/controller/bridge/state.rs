//! The condition `Deployed` of a bridge, from its Deployment and its pods. Pure.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use remoteprocess_api::bridge::{BridgeCondition, BridgeReason};

use super::build::CONTAINER;
use super::kind::Bridged;
use crate::phase::pod::{condition, terminated};

/// Longest sentence of ours, in characters. The API server allows 32768.
const MAX_MESSAGE: usize = 1024;

/// What is said about a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deployed {
    reason: BridgeReason,
    message: String,
}

impl Deployed {
    fn new(reason: BridgeReason, message: impl Into<String>) -> Self {
        let message: String = message.into();
        Self {
            reason,
            message: message.chars().take(MAX_MESSAGE).collect(),
        }
    }

    /// The API server does not take an object.
    pub(super) fn refused(message: String) -> Self {
        Self::new(BridgeReason::Refused, message)
    }

    /// An object of that name is being deleted.
    pub(super) fn leaving() -> Self {
        let message = "the namespace, or an earlier Deployment or Service of this name, is being deleted";
        Self::new(BridgeReason::Starting, message)
    }

    /// Whether the bridge runs.
    pub(super) fn is_so(&self) -> bool {
        self.reason == BridgeReason::Deployed
    }

    /// The condition, unless `former` says the same. It keeps the time of the last transition.
    pub(super) fn condition(
        self,
        former: Option<&Condition>,
        generation: Option<i64>,
        now: Timestamp,
    ) -> Option<Condition> {
        let status = if self.is_so() { "True" } else { "False" };
        let since = former.filter(|former| former.status == status);
        let next = Condition {
            type_: BridgeCondition::Deployed.to_string(),
            status: status.to_owned(),
            reason: self.reason.to_string(),
            message: self.message,
            observed_generation: generation,
            last_transition_time: since.map_or(Time(now), |former| former.last_transition_time.clone()),
        };
        (former != Some(&next)).then_some(next)
    }
}

/// What to say about a Deployment that exists, with the pods that it has now.
pub(super) fn deployed(deployment: &Deployment, pods: &[Pod], object: &impl Bridged) -> Deployed {
    let name = deployment.name_any();
    if is_available(deployment) {
        let lacks = if lacks_stand_by(deployment, object) {
            "; its stand-by is not ready"
        } else {
            ""
        };
        return Deployed::new(
            BridgeReason::Deployed,
            format!("the Deployment {name} runs the bridge{lacks}"),
        );
    }
    if let Some(message) = replica_failure(deployment) {
        return Deployed::refused(format!("the Deployment {name} cannot create its pod: {message}"));
    }
    let newest = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .max_by_key(|pod| pod.creation_timestamp());
    let message = match newest {
        Some(pod) => pod_message(pod, object),
        None => format!("the Deployment {name} has no pod yet"),
    };
    Deployed::new(BridgeReason::Starting, message)
}

/// Whether a pod of the newest template runs and is ready, and none of a former one is left. One is enough: a stand-by only
/// waits.
fn is_available(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let is_current = status.observed_generation >= deployment.metadata.generation;
    let is_replaced = status.replicas <= status.updated_replicas;
    is_current && is_replaced && status.updated_replicas >= Some(1) && status.available_replicas >= Some(1)
}

/// Whether a stand-by is wanted and not ready. That of a webhook never is: requests go to ready pods.
fn lacks_stand_by(deployment: &Deployment, object: &impl Bridged) -> bool {
    let status = deployment.status.as_ref();
    let available = status.and_then(|status| status.available_replicas).unwrap_or_default();
    object.webhook().is_none() && i64::from(available) < i64::from(object.replicas())
}

/// Why the Deployment has no pod: a quota, a policy, a missing ServiceAccount.
fn replica_failure(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions
        .iter()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
    failure.message.clone()
}

fn pod_message<K: Bridged>(pod: &Pod, object: &K) -> String {
    let name = pod.name_any();
    if let Some(scheduled) = condition(pod, "PodScheduled").filter(|scheduled| scheduled.status == "False") {
        let why = scheduled.message.as_deref().unwrap_or("no node fits");
        return format!("the pod {name} has no node: {why}");
    }
    let containers = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    let bridge = containers.and_then(|containers| containers.iter().find(|container| container.name == CONTAINER));
    let Some(bridge) = bridge else {
        return created_message(&name, object);
    };
    let state = bridge.state.as_ref();
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        let reason = waiting.reason.as_deref().unwrap_or("Waiting");
        if matches!(reason, "ContainerCreating" | "PodInitializing") {
            return created_message(&name, object);
        }
        let message = waiting.message.as_deref().unwrap_or("the kubelet says no more");
        return format!("the pod {name} does not run: {reason}: {message}{}", last_end(bridge));
    }
    if let Some(end) = state.and_then(|state| state.terminated.as_ref()) {
        return format!("the bridge in the pod {name} ended {}", terminated(end));
    }
    unready_message(&name, object)
}

/// A bridge that runs becomes ready when it has read its object and the processes. If it may not, it cannot tell that in the
/// status either.
fn unready_message<K: Bridged>(pod: &str, object: &K) -> String {
    let (word, account) = (K::WORD, object.account());
    let namespace = object.namespace().unwrap_or_default();
    format!(
        "the bridge in the pod {pod} runs and is not ready yet; kubectl logs {pod} says more. If it may not read its {word}: \
         kubectl create rolebinding {}-{word} --namespace={namespace} --clusterrole=remoteprocess-{word} \
         --serviceaccount={namespace}:{account}",
        object.name_any(),
    )
}

/// A pod whose container is not created yet. The kubelet waits for Secrets without saying so in the status.
fn created_message<K: Bridged>(pod: &str, object: &K) -> String {
    let secrets: Vec<&str> = object.secrets().into_iter().map(|(_, secret)| secret).collect();
    if secrets.is_empty() {
        return format!("the container of the pod {pod} is being created");
    }
    format!(
        "the container of the pod {pod} is being created; it waits for the Secrets that {} names ({}) until they \
         exist; kubectl describe pod {pod} says which one is missing",
        K::PEER,
        secrets.join(", ")
    )
}

/// How the container ended before it waits to be started again.
fn last_end(bridge: &ContainerStatus) -> String {
    let end = bridge.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    end.map_or_else(String::new, |end| format!("; it ended {}", terminated(end)))
}

#[cfg(test)]
mod tests {
    use remoteprocess_api::ProcessTrigger;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn deployment(status: Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "orders-trigger", "generation": 2}, "status": status}))
            .unwrap()
    }

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status,
        }))
        .unwrap()
    }

    fn trigger() -> ProcessTrigger {
        serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessTrigger", "metadata": {"name": "orders"},
            "spec": {
                "serviceAccountName": "orders", "source": {"http": {"secretName": "key"}},
                "template": {"spec": {"image": "busybox", "command": ["id"]}},
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_bridge_is_deployed_when_its_newest_pod_is_ready() {
        let ready = json!({"observedGeneration": 2, "updatedReplicas": 1, "availableReplicas": 1});
        assert!(deployed(&deployment(ready.clone()), &[], &trigger()).is_so());
        for (field, value) in [
            ("observedGeneration", 1),
            ("updatedReplicas", 0),
            ("availableReplicas", 0),
        ] {
            let mut status = ready.clone();
            status[field] = json!(value);
            assert!(!deployed(&deployment(status), &[], &trigger()).is_so(), "{field}");
        }
        let mut former = ready;
        former["replicas"] = json!(2);
        assert!(
            !deployed(&deployment(former), &[], &trigger()).is_so(),
            "the one that is ready may be of the former template"
        );
    }

    #[test]
    fn a_bridge_whose_stand_by_is_not_ready_is_deployed() {
        let said = |replicas: u32, available: u32, source: Value| {
            let mut trigger = trigger();
            trigger.spec.source = serde_json::from_value(source).unwrap();
            trigger.spec.bridge = serde_json::from_value(json!({"replicas": replicas})).unwrap();
            let status = json!({"observedGeneration": 2, "replicas": replicas, "updatedReplicas": replicas,
                                "availableReplicas": available});
            let said = deployed(&deployment(status), &[], &trigger);
            assert!(said.is_so(), "{}", said.message);
            said.message
        };
        let nats = json!({"nats": {"servers": ["nats://nats"], "stream": "ORDERS"}});
        let http = json!({"http": {"secretName": "key"}});
        assert!(said(2, 1, nats.clone()).contains("its stand-by is not ready"));
        for message in [said(2, 2, nats.clone()), said(1, 1, nats), said(2, 1, http)] {
            assert!(!message.contains("stand-by"), "{message}");
        }
    }

    #[rstest]
    #[case::none(json!(null), "has no pod yet")]
    #[case::unscheduled(
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes fit"}]}), "0/3 nodes fit"
    )]
    #[case::secret(
        json!({"containerStatuses": [status(json!({"waiting": {"reason": "ContainerCreating"}}))]}),
        "waits for the Secrets that spec.source names (key)"
    )]
    #[case::image(
        json!({"containerStatuses": [status(json!({"waiting": {"reason": "ImagePullBackOff", "message": "no image"}}))]}),
        "does not run: ImagePullBackOff: no image"
    )]
    #[case::ended(
        json!({"containerStatuses": [status(json!({"terminated": {"exitCode": 2, "reason": "Error"}}))]}),
        "ended with code 2 (Error)"
    )]
    #[case::running(json!({"containerStatuses": [status(json!({"running": {}}))]}), "is not ready yet")]
    #[case::without_rights(
        json!({"containerStatuses": [status(json!({"running": {}}))]}),
        "--clusterrole=remoteprocess-trigger --serviceaccount="
    )]
    fn a_pod_that_does_not_run_says_why(#[case] status: Value, #[case] expected: &str) {
        let pods: Vec<Pod> = (!status.is_null()).then(|| pod(status)).into_iter().collect();
        let said = deployed(&deployment(json!({})), &pods, &trigger());
        assert_eq!(said.reason, BridgeReason::Starting);
        assert!(said.message.contains(expected), "{}", said.message);
    }

    fn status(state: Value) -> Value {
        json!({
            "name": "bridge", "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0,
        })
    }

    #[test]
    fn a_pod_that_cannot_be_created_is_refused() {
        let failure = json!({"type": "ReplicaFailure", "status": "True", "message": "serviceaccount \"x\" not found"});
        let said = deployed(&deployment(json!({"conditions": [failure]})), &[], &trigger());
        assert_eq!(said.reason, BridgeReason::Refused);
        assert!(
            said.message.contains("serviceaccount \"x\" not found"),
            "{}",
            said.message
        );
    }

    #[test]
    fn a_condition_is_written_once_and_keeps_its_time() {
        let (first, later) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        let waits = || Deployed::new(BridgeReason::Starting, "a");
        let former = waits().condition(None, Some(1), first).unwrap();
        assert_eq!(waits().condition(Some(&former), Some(1), later), None);
        let other = Deployed::refused("b".into())
            .condition(Some(&former), Some(2), later)
            .unwrap();
        assert_eq!(
            (other.last_transition_time, other.status),
            (Time(first), "False".to_owned())
        );
        let so = Deployed::new(BridgeReason::Deployed, "c").condition(Some(&former), Some(2), later);
        assert_eq!(so.unwrap().last_transition_time, Time(later));
        let long = Deployed::refused("x".repeat(100_000));
        assert_eq!(long.message.len(), MAX_MESSAGE, "whatever a webhook says");
    }
}
