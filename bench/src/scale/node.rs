//! A node without a kubelet: pods are bound to it, and nothing runs.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use remoteprocess_e2e::until;
use serde_json::{Value, json};

use crate::proxy::Proxy;

/// Its name, and the value of its label.
const NAME: &str = "bench-fake-node";
/// Key of its label and of its taint: other pods stay away.
const KEY: &str = "remoteprocess-bench/fake-node";
/// Between two signs of life. The controller manager wants one every 40 s.
const BEAT: Duration = Duration::from_secs(5);

/// The node is ready until this is dropped; [`remove`] deletes it.
pub(super) struct FakeNode {
    stop: Option<mpsc::Sender<()>>,
    beats: Option<JoinHandle<()>>,
}

/// Path of the node in the API.
fn node() -> String {
    format!("/api/v1/nodes/{NAME}")
}

/// Path of its lease, which is its sign of life.
fn lease() -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NAME}")
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(parent, _)| parent)
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

impl FakeNode {
    /// Registers the node, as new as the first node of the cluster; returns when the scheduler may use it.
    pub(super) fn start(proxy: &Proxy) -> Result<Self> {
        let real = proxy
            .list("/api/v1/nodes?limit=1")?
            .into_iter()
            .next()
            .context("no node")?;
        let spec = json!({"holderIdentity": NAME, "leaseDurationSeconds": 40, "renewTime": now()});
        proxy.create(
            parent(&lease()),
            &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NAME}, "spec": spec}),
        )?;
        proxy.create(parent(&node()), &registration(&real["status"]["nodeInfo"]))?;
        let (stop, stopped) = mpsc::channel();
        let beating = Proxy::start()?;
        let beats = thread::spawn(move || {
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = beating.merge(&lease(), &json!({"spec": {"renewTime": now()}})) {
                    eprintln!("the fake node misses a beat: {error:#}");
                }
            }
        });
        let started = Self {
            stop: Some(stop),
            beats: Some(beats),
        };
        until(
            "the fake node without the taints of a new node",
            Duration::from_secs(60),
            || {
                let taints = proxy.get(&node())?["spec"]["taints"].as_array().map_or(0, Vec::len);
                Ok(taints == 1)
            },
        )?;
        Ok(started)
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(beats) = self.beats.take() {
            let _ = beats.join();
        }
    }
}

fn registration(info: &Value) -> Value {
    let condition = json!({
        "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "a fake node without a kubelet",
        "lastHeartbeatTime": now(), "lastTransitionTime": now(),
    });
    let size = json!({"cpu": "100k", "memory": "100Ti", "ephemeral-storage": "100Ti", "pods": "100k"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NAME, "labels": {KEY: "true", "kubernetes.io/os": info["operatingSystem"]}},
        "spec": {"taints": [{"key": KEY, "effect": "NoSchedule"}]},
        "status": {"capacity": size, "allocatable": size, "nodeInfo": info, "conditions": [condition]},
    })
}

/// Sends a pod with this spec to the node.
pub(super) fn aim(spec: &mut Value) {
    spec["nodeSelector"] = json!({KEY: "true"});
    spec["tolerations"] = json!([{"key": KEY, "operator": "Exists"}]);
}

/// Deletes the node, if it is there.
pub(super) fn remove(proxy: &Proxy) -> Result<()> {
    [node(), lease()].iter().try_for_each(|path| match proxy.delete(path) {
        Err(error) if error.to_string().contains(" 404 ") => Ok(()),
        outcome => outcome,
    })
}
