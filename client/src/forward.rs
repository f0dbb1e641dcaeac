use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use remoteprocess_api::names;
use tokio::io::DuplexStream;

use crate::cluster::{Cluster, Rule};
use crate::dial::DialError;

/// Opens a stream to a ready relay pod, through the API server. Returns the pod's name, and a function that gives the
/// stream away once: a broken stream is not repaired, the caller dials again.
pub(crate) async fn open(
    cluster: &Cluster,
) -> Result<
    (
        String,
        impl Fn() -> std::future::Ready<io::Result<DuplexStream>> + Clone + Send + 'static,
    ),
    DialError,
> {
    let pods = pods(cluster).await?;
    let pod = choose(&pods, std::process::id()).ok_or_else(|| none_is_ready(cluster))?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let stream = to(cluster, &name, port(pod, "main", names::RELAY_PORT)).await?;
    let stream = Arc::new(Mutex::new(Some(stream)));
    let open = move || {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or_else(|| io::Error::other("the port-forward has ended")))
    };
    Ok((name, open))
}

/// The pods of the operator.
pub(crate) async fn pods(cluster: &Cluster) -> Result<Vec<Pod>, DialError> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.operator_namespace);
    let selector = format!(
        "app.kubernetes.io/name={},app.kubernetes.io/component={}",
        names::APP_NAME,
        names::APP_COMPONENT
    );
    let pods = api.list(&ListParams::default().labels(&selector)).await;
    let rule = Rule::connect("", "pods", "list");
    let pods = pods.map_err(|error| cluster.dial_error(&error, &rule, "find the relay's pods"))?;
    Ok(pods.items)
}

pub(crate) fn none_is_ready(cluster: &Cluster) -> DialError {
    DialError::Unreachable(format!(
        "no pod of the operator is ready in namespace {}",
        cluster.operator_namespace
    ))
}

/// Opens a stream to a port of a pod of the operator.
pub(crate) async fn to(cluster: &Cluster, pod: &str, port: u16) -> Result<DuplexStream, DialError> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.operator_namespace);
    let rule = Rule::connect("", "pods/portforward", "create, get");
    let forwarder = api.portforward(pod, &[port]).await;
    let mut forwarder = forwarder.map_err(|error| cluster.dial_error(&error, &rule, "forward a port to the relay"))?;
    forwarder
        .take_stream(port)
        .ok_or_else(|| DialError::Unreachable(format!("the port-forward to {pod} has no stream")))
}

/// One of the ready pods; different clients use different ones.
fn choose(pods: &[Pod], seed: u32) -> Option<&Pod> {
    let ready: Vec<&Pod> = pods.iter().filter(|pod| is_ready(pod)).collect();
    ready.get(seed as usize % ready.len().max(1)).copied()
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The port of a pod with this name.
pub(crate) fn port(pod: &Pod, name: &str, default: u16) -> u16 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .find(|port| port.name.as_deref() == Some(name))
        .and_then(|port| u16::try_from(port.container_port).ok())
        .unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: &str, is_going: bool) -> Pod {
        let mut pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "main", "containerPort": 9999}]}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap();
        if is_going {
            pod.metadata.deletion_timestamp = serde_json::from_value("2026-01-01T00:00:00Z".into()).unwrap();
        }
        pod
    }

    #[test]
    fn only_a_ready_pod_that_stays_is_chosen() {
        let pods = [
            pod("a", "False", false),
            pod("b", "True", true),
            pod("c", "True", false),
        ];
        for seed in 0..4 {
            assert_eq!(choose(&pods, seed).unwrap().metadata.name.as_deref(), Some("c"));
        }
        assert!(choose(&pods[..2], 1).is_none());
        let ports = (
            port(&pods[0], "main", 1),
            port(&pods[0], "admin", 1),
            port(&Pod::default(), "main", 1),
        );
        assert_eq!(ports, (9999, 1, 1));
    }
}
