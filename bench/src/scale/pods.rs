//! The pods: when each comes, and the word of the fake node that it runs.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;
use remoteprocess_e2e::until_some;
use serde_json::{Value, json};

use super::LABEL;
use super::workers::in_parallel;
use crate::proxy::Proxy;

/// Watches pods until it is dropped.
pub(super) struct Arrivals {
    seen: Arc<Mutex<HashMap<String, Instant>>>,
    stream: TcpStream,
}

impl Arrivals {
    /// Begins to watch the pods with this value of [`LABEL`]. Returns when the API server watches.
    pub(super) fn watch(proxy: &Proxy, namespace: &str, purpose: &str) -> Result<Self> {
        let selector = format!("watch=true&timeoutSeconds=1800&labelSelector={LABEL}%3D{purpose}");
        let (stream, lines) = proxy.watch(&format!("/api/v1/namespaces/{namespace}/pods?{selector}"))?;
        let seen: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
        let noted = seen.clone();
        thread::spawn(move || {
            for line in lines {
                let now = Instant::now();
                if let Some(owner) = owner_of_new(&line) {
                    noted.lock().expect("no holder panics").entry(owner).or_insert(now);
                }
            }
        });
        Ok(Self { seen, stream })
    }

    /// When the first pod of each object was reported, by the name of the object, as soon as there are `count`.
    pub(super) fn wait_for(&self, count: usize, deadline: Duration) -> Result<HashMap<String, Instant>> {
        until_some(&format!("{count} pods"), deadline, || {
            let seen = self.seen.lock().expect("no holder panics");
            Ok((seen.len() >= count).then(|| seen.clone()))
        })
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        // Ends the thread.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The name of the owner of a pod that an event reports as new.
fn owner_of_new(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let owner = &event["object"]["metadata"]["ownerReferences"][0]["name"];
    (event["type"] == "ADDED").then_some(())?;
    Some(owner.as_str()?.to_owned())
}

/// Waits until the scheduler has bound `count` pods with this value of [`LABEL`], and writes to their status what a kubelet
/// writes about a pod of ours that runs.
pub(super) fn report_running(proxy: &Proxy, namespace: &str, purpose: &str, count: usize) -> Result<()> {
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let listed = format!("{path}?labelSelector={LABEL}%3D{purpose}");
    let bound = until_some(&format!("{count} bound pods"), super::DEADLINE, || {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_pods_count() {
        let event = |kind: &str| {
            let metadata = json!({"name": "hello-1", "ownerReferences": [{"name": "hello"}]});
            json!({"type": kind, "object": {"metadata": metadata}}).to_string()
        };
        assert_eq!(owner_of_new(&event("ADDED")).as_deref(), Some("hello"));
        assert_eq!(owner_of_new(&event("MODIFIED")), None);
        assert_eq!(owner_of_new("not JSON"), None);
    }
}
