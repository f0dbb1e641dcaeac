//! Endings that the node causes: it is drained; in the full size, its kubelet is restarted, and the node is lost.

use std::time::Duration;

use anyhow::{Context, Result};
use remoteprocess_e2e::{
    EndedDaemon, Namespace, POLITE, RELAY_SERVICE, RELEASE_NAMESPACE, Told, check_ending, is_development_cluster,
    is_long, kubectl, processes_of_pod, signal, spec, until, wait_for_operator, with_temp_ns,
};
use rustix::process::Signal;
use serde_json::json;

/// Waits for a file, then ends with code 3.
const UNTIL_TOLD: &str = "while [ ! -f /tmp/go ]; do sleep 0.05; done; exit 3";
/// Ends with code 4 at SIGUSR1, which it chose itself.
const UNTIL_SIGNALLED: &str = "trap 'exit 4' USR1; while :; do sleep 0.1; done";

/// Leaves the whole node, and everything on it, without a kubelet for a while.
fn is_left_out() -> bool {
    if !is_long() {
        println!("LEFT OUT, only with RPROC_LONG=1: the end of the kubelet");
    }
    !is_long() || !is_development_cluster("the end of the kubelet")
}

fn wait_for_node(node: &str) -> Result<()> {
    until("a ready node", Duration::from_secs(120), || {
        let node = kubectl(["get", "node", node, "--output=json"]).json()?;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is_ready = |condition: &serde_json::Value| condition["type"] == "Ready" && condition["status"] == "True";
        Ok(conditions.iter().any(is_ready) && node["spec"]["taints"].is_null())
    })?;
    wait_for_operator()
}

#[test]
fn a_program_does_not_notice_that_the_kubelet_starts_again_and_then_that_the_node_is_lost() {
    if is_left_out() {
        return;
    }
    with_temp_ns("kubelet", restart);
    with_temp_ns("node-lost", lose);
}

/// One program ends while there is no kubelet, one after it is back: the entrypoint reports both ends.
fn restart(namespace: &Namespace) -> Result<()> {
    namespace
        .apply("meanwhile", spec(UNTIL_SIGNALLED, json!({})))
        .succeed()?;
    namespace.apply("later", spec(UNTIL_TOLD, json!({}))).succeed()?;
    namespace.wait_running("meanwhile")?;
    namespace.wait_running("later")?;
    let node = namespace.node("later")?;
    // A port-forward would need the kubelet.
    let relay = [
        "get",
        "service",
        RELAY_SERVICE,
        "--output=jsonpath={.spec.clusterIP}:{.spec.ports[0].port}",
    ];
    let relay = kubectl(relay).args(["--namespace", RELEASE_NAMESPACE]).succeed()?;
    let kubelet = EndedDaemon::end("kubelet")?;
    let server = format!("--server={relay}");
    namespace
        .editor
        .rproc(&["signal", "meanwhile", "USR1", &server])
        .succeed()?;
    namespace.wait_finished("meanwhile")?;
    kubelet.start_again()?;
    wait_for_node(&node)?;
    check_ending(namespace, "meanwhile", &Told::code(4, "NonZeroExit"))?;
    until("a kubelet that serves", Duration::from_secs(60), || {
        Ok(namespace.in_container("later", "touch /tmp/go").is_ok())
    })?;
    check_ending(namespace, "later", &Told::code(3, "NonZeroExit"))
}

/// The kubelet is gone and everything in the pod; the pod is first evicted by the node's taint, then deleted by force.
fn lose(namespace: &Namespace) -> Result<()> {
    let short = json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
        "tolerationSeconds": 1});
    let tolerations = json!({"pod": {"tolerations": [short]}});
    namespace.apply("lost", spec(POLITE, tolerations)).succeed()?;
    namespace.wait_running("lost")?;
    let (pod, node) = (namespace.pod("lost")?, namespace.node("lost")?);
    let (name, uid) = (&pod["metadata"]["name"], &pod["metadata"]["uid"]);
    let (name, uid) = (name.as_str().context("a name")?, uid.as_str().context("a uid")?);
    let kubelet = EndedDaemon::end("kubelet")?;
    for pid in processes_of_pod(uid)? {
        // It may have ended together with another one.
        let _ = signal(pid, Signal::KILL);
    }
    namespace.wait_for("lost", "a lost node", 180, |status| status["reason"] == "NodeLost")?;
    namespace
        .kubectl(&["delete", "pod", name, "--force", "--grace-period=0"])
        .succeed()?;
    let checked = check_ending(namespace, "lost", &Told::unknown("NodeLost"));
    kubelet.start_again()?;
    wait_for_node(&node)?;
    checked
}

/// The node is being drained and gets no new pods; dropping this ends that.
struct Drained(String);

impl Drop for Drained {
    fn drop(&mut self) {
        if let Err(error) = kubectl(["uncordon", &self.0]).succeed() {
            println!("the node takes no pods: {error:#}");
        }
    }
}

#[test]
fn a_drain_is_an_eviction() {
    if !is_development_cluster("a node takes no pods for a moment") {
        return;
    }
    with_temp_ns("drain", |namespace| {
        namespace.apply("drained", spec(POLITE, json!({}))).succeed()?;
        let object = namespace.wait_running("drained")?;
        let uid = object["metadata"]["uid"].as_str().context("a uid")?;
        let node = Drained(namespace.node("drained")?);
        let only_this = format!("--pod-selector=remoteprocess.dev/uid={uid}");
        kubectl(["drain", &node.0, &only_this, "--delete-emptydir-data", "--timeout=90s"]).succeed()?;
        drop(node);
        check_ending(namespace, "drained", &Told::asked("Evicted", "kubelet"))
    });
}
