//! Each attempt runs once, whatever dies around it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{
    BUSYBOX, Namespace, agents_of, is_development_cluster, is_long, operators, signal, until, wait_for_operator,
    with_temp_ns,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::journal::Journal;

/// A process that writes its pod's name and then fails, and is retried once.
fn spec(journal: &Journal) -> Value {
    let mut spec = journal.mount();
    spec["image"] = json!(BUSYBOX);
    spec["imagePullPolicy"] = json!("IfNotPresent");
    spec["retries"] = json!({"limit": 1, "backoff": {"initialSeconds": 0}});
    spec["command"] = json!(["sh", "-c", "hostname >> /journal/ran; sleep 1; exit 7"]);
    spec
}

fn attempts(status: &Value) -> Vec<Value> {
    status["attempts"].as_array().cloned().unwrap_or_default()
}

/// Kills the operator and one agent of each existing pod; pods that have just ended do not matter.
fn disturb(namespace: &Namespace) -> Result<()> {
    let pods = namespace.kubectl(&["get", "pods", "--output=json"]).json()?;
    for pod in pods["items"].as_array().cloned().unwrap_or_default() {
        let uid = pod["metadata"]["uid"].as_str().context("a pod has a uid")?.to_owned();
        agents_of(&uid)?
            .into_iter()
            .for_each(|pid| drop(signal(pid, Signal::KILL)));
    }
    operators()?.into_iter().for_each(|pid| drop(signal(pid, Signal::KILL)));
    wait_for_operator()
}

#[test]
fn no_attempt_runs_twice() {
    if !is_development_cluster("killing operator and agents, and a file on the node") {
        return;
    }
    with_temp_ns("once", |namespace| {
        let journal = Journal::new(namespace);
        let names: Vec<String> = (0..if is_long() { 100 } else { 10 })
            .map(|index| format!("once-{index}"))
            .collect();
        for name in &names {
            namespace.apply(name, spec(&journal)).succeed()?;
        }
        let mut disturbances = 3;
        until("the end of all of them", Duration::from_secs(900), || {
            if disturbances > 0 {
                disturbances -= 1;
                disturb(namespace)?;
            }
            let all = namespace.kubectl(&["get", "remoteprocesses", "--output=json"]).json()?;
            let all = all["items"].as_array().cloned().unwrap_or_default();
            Ok(all
                .iter()
                .all(|object| matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))))
        })?;
        let runs = journal.read()?;
        ensure!(runs.values().all(|count| *count == 1), "{runs:?}");
        let mut granted = BTreeSet::new();
        for name in &names {
            let status = namespace.object(name)?["status"].clone();
            let of_this = attempts(&status)
                .into_iter()
                .filter(|attempt| !attempt["grantedAt"].is_null());
            granted.extend(of_this.filter_map(|attempt| Some(attempt["podName"].as_str()?.to_owned())));
            ensure!(
                status["reason"] == "NonZeroExit" && status["exitCode"] == 7,
                "{name}: {status:#}"
            );
        }
        let stray: Vec<_> = runs.keys().filter(|pod| !granted.contains(*pod)).collect();
        ensure!(stray.is_empty(), "they ran without a grant: {stray:?}");
        println!("{} attempts of {} processes, each run once", runs.len(), names.len());
        Ok(())
    });
}
