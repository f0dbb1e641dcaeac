//! Live processes: what a kubelet and the relay write about a process that runs.

use anyhow::Result;
use jiff::Timestamp;
use remoteprocess_e2e::until_some;
use serde_json::{Value, json};

use super::workers::in_parallel;
use super::{DEADLINE, LABEL};
use crate::proxy::Proxy;

/// Waits until the scheduler has bound `count` pods with this value of [`LABEL`], and writes to their status what a kubelet
/// writes about a pod of ours that runs.
pub(super) fn report_running(proxy: &Proxy, namespace: &str, purpose: &str, count: usize) -> Result<()> {
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let listed = format!("{path}?labelSelector={LABEL}%3D{purpose}");
    let bound = until_some(&format!("{count} bound pods"), DEADLINE, || {
        let pods = proxy.list(&listed)?;
        let names = pods.iter().filter(|pod| pod["spec"]["nodeName"].is_string());
        let names: Vec<String> = names
            .filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned()))
            .collect();
        Ok((names.len() >= count).then_some(names))
    })?;
    in_parallel(bound.len(), |number| {
        proxy.merge(&format!("{path}/{}/status", bound[number]), &running(number))
    })
}

fn running(number: usize) -> Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let container = |name: &str| {
        let id = format!("{number:064x}");
        json!({
            "name": name, "ready": true, "started": true, "restartCount": 0,
            "image": "docker.io/library/debian-glibc:test", "imageID": format!("sha256:{id}"),
            "containerID": format!("containerd://{id}"),
            "state": {"running": {"startedAt": now}}, "lastState": {},
        })
    };
    let ip = format!("10.250.{}.{}", number / 250 % 250, number % 250 + 1);
    let conditions = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ];
    json!({"status": {
        "phase": "Running", "startTime": now, "qosClass": "Burstable",
        "hostIP": "10.249.0.1", "hostIPs": [{"ip": "10.249.0.1"}], "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": conditions.map(condition),
        "initContainerStatuses": [container("rproc-agent")], "containerStatuses": [container("main")],
    }})
}

/// Writes to the status of these processes that their programs have started, as the relay does after a grant, and waits until
/// the controller says that they run.
pub(super) fn report_started(proxy: &Proxy, namespace: &str, purpose: &str, count: usize) -> Result<()> {
    let path = format!("/apis/remoteprocess.dev/v1alpha1/namespaces/{namespace}/remoteprocesses");
    let listed = format!("{path}?labelSelector={LABEL}%3D{purpose}");
    let objects = proxy.list(&listed)?;
    in_parallel(objects.len(), |number| {
        let name = objects[number]["metadata"]["name"].as_str().unwrap_or_default();
        let mut attempt = objects[number]["status"]["attempts"][0].clone();
        let now = Timestamp::now().to_string();
        for (field, value) in [("grantedAt", &now), ("startedAt", &now), ("relay", &"bench".to_owned())] {
            attempt[field] = json!(value);
        }
        let status = json!({"status": {"startedAt": now, "attempts": [attempt]}});
        proxy.merge(&format!("{path}/{name}/status"), &status)
    })?;
    until_some(&format!("{count} that run"), DEADLINE, || {
        let objects = proxy.list(&listed)?;
        let running = objects.iter().filter(|object| object["status"]["phase"] == "Running");
        Ok((running.count() >= count).then_some(()))
    })
}
