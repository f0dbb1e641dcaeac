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
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.operator_namespace);
    let selector = format!(
        "app.kubernetes.io/name={},app.kubernetes.io/component={}",
        names::APP_NAME,
        names::APP_COMPONENT
    );
    let pods = api
        .list(&ListParams::default().labels(&selector))
        .await
        .map_err(|error| cluster.dial_error(&error, &Rule::connect("", "pods", "list"), "find the relay's pods"))?;
    let pod = choose(&pods.items, std::process::id()).ok_or_else(|| {
        DialError::Unreachable(format!(
            "no pod of the operator is ready in namespace {}",
            cluster.operator_namespace
        ))
    })?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let port = port(pod);
    let mut forwarder = api.portforward(&name, &[port]).await.map_err(|error| {
        cluster.dial_error(
            &error,
            &Rule::connect("", "pods/portforward", "create, get"),
            "forward a port to the relay",
        )
    })?;
    let stream = Arc::new(Mutex::new(forwarder.take_stream(port)));
    let open = move || {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or_else(|| io::Error::other("the port-forward has ended")))
    };
    Ok((name, open))
}

/// One of the ready pods; different clients use different ones.
fn choose(pods: &[Pod], seed: u32) -> Option<&Pod> {
    let ready: Vec<&Pod> = pods.iter().filter(|pod| is_ready(pod)).collect();
    ready.get(seed as usize % ready.len().max(1)).copied()
}

fn is_ready(pod: &Pod) -> bool {
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

fn port(pod: &Pod) -> u16 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .find(|port| port.name.as_deref() == Some("main"))
        .and_then(|port| u16::try_from(port.container_port).ok())
        .unwrap_or(names::RELAY_PORT)
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
        assert_eq!((port(&pods[0]), port(&Pod::default())), (9999, names::RELAY_PORT));
    }
}
