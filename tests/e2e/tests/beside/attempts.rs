//! A name can be reused at once.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use remoteprocess_e2e::{BUSYBOX, is_long, spec, until, with_temp_ns};
use serde_json::{Value, json};

fn attempts(status: &Value) -> Vec<Value> {
    status["attempts"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_name_can_be_used_again_at_once() {
    with_temp_ns("again", |namespace| {
        let mut pods = BTreeSet::new();
        let rounds = if is_long() { 100 } else { 5 };
        for round in 0..rounds {
            let script = format!("echo round {round}");
            let spec = json!({"image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]});
            namespace.apply("same", spec).succeed()?;
            let logs = namespace
                .editor
                .rproc(&["logs", "-f", "same"])
                .within(Duration::from_secs(90))
                .finish()?;
            ensure!(logs.expect_code(0)?.out() == format!("round {round}\n"), "{logs}");
            let status = namespace.wait_finished("same")?["status"].clone();
            ensure!(
                status["phase"] == "Succeeded" && attempts(&status).len() == 1,
                "{status:#}"
            );
            pods.insert(status["attempts"][0]["podName"].to_string());
            namespace
                .editor
                .kubectl(&["delete", "remoteprocess", "same", "--wait=true"])
                .succeed()?;
        }
        ensure!(pods.len() == rounds, "each object has a pod of its own: {pods:?}");
        Ok(())
    });
}

/// A regression: `logs -f` and `attach` ended with 125 although the process continued; typed again, `run` ran the
/// program twice.
#[test]
fn a_pod_that_is_deleted_while_it_waits_ends_no_stream() {
    with_temp_ns("replaced", |namespace| {
        let mut spec = spec("echo once; exit 7", json!({}));
        spec["pod"] = json!({"schedulingGates": [{"name": "example.com/wait"}]});
        namespace.apply("waits", spec).succeed()?;
        let has_pod = |number: u64| {
            move |status: &Value| status["attempt"] == number && !attempts(status)[0]["podName"].is_null()
        };
        namespace.wait_for("waits", "the first pod", 30, has_pod(1))?;
        let logs = namespace.editor.rproc(&["logs", "-f", "waits"]).start()?;
        let attach = namespace.editor.rproc(&["attach", "waits"]).start()?;
        namespace.delete_pods("waits")?;
        namespace.wait_for("waits", "the second attempt", 60, |status| status["attempt"] == 2)?;
        until("the gate is lifted", Duration::from_secs(30), || {
            let pod = namespace.pod_name("waits")?;
            let lift = json!([{"op": "remove", "path": "/spec/schedulingGates"}]).to_string();
            let patch = namespace.kubectl(&["patch", "pod", &pod, "--type=json", "-p", &lift]);
            Ok(patch.finish()?.code == 0)
        })?;
        for reader in [logs, attach] {
            let read = reader.finish()?;
            ensure!(read.expect_code(7)?.out() == "once\n", "{read}");
        }
        Ok(())
    });
}
