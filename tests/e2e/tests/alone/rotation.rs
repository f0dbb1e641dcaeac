//! The CA is replaced while a process runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{
    Program, RELEASE_NAMESPACE, SlowStream, agent_of, delete_operator_pods, is_development_cluster, kubectl, rproc,
    signal, until, wait_for_operator, with_temp_ns,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A change of the Secret is noticed at once.
const SOON: Duration = Duration::from_secs(30);

pub(super) fn in_release(arguments: &[&str]) -> Program {
    kubectl(["--namespace", RELEASE_NAMESPACE]).args(arguments)
}

pub(super) fn wait_for_phase(phase: &str) -> Result<()> {
    until(&format!("a CA in the phase {phase}"), SOON, || {
        let found = in_release(&[
            "get",
            "configmap",
            "remoteprocess-ca",
            "--output=jsonpath={.data.phase}",
        ])
        .succeed()?;
        Ok(found.trim() == phase)
    })
}

/// The CAs that clients trust.
pub(super) fn bundle() -> Result<Vec<String>> {
    let map = in_release(&["get", "configmap", "remoteprocess-connect", "--output=json"]).json()?;
    let pem = map["data"]["ca.crt"].as_str().context("no bundle")?;
    let parts = pem.split_inclusive("-----END CERTIFICATE-----\n");
    Ok(parts.map(str::to_owned).collect())
}

/// Moves all times of the rotation into the past: the wait is over, and former CAs are to be retired.
pub(super) fn let_the_wait_be_over() -> Result<()> {
    let template = r#"--output=go-template={{index .data "rotation.json" | base64decode}}"#;
    let mut record: Value = in_release(&["get", "secret", "remoteprocess-ca", template]).json()?;
    let past = json!("2020-01-01T00:00:00Z");
    if record["announced"].is_string() {
        record["announced"] = past.clone();
    }
    for former in record["former"].as_array_mut().context("no former CAs")? {
        former["until"] = past.clone();
    }
    let patch = json!({"stringData": {"rotation.json": record.to_string()}}).to_string();
    in_release(&["patch", "secret", "remoteprocess-ca", "--type=merge", "--patch", &patch]).succeed()?;
    Ok(())
}

#[test]
fn the_ca_is_rotated_under_a_live_stream() {
    if !is_development_cluster("a rotation of the CA of the installation") {
        return;
    }
    with_temp_ns("rotation", |namespace| {
        wait_for_phase("Stable")?;
        let before = bundle()?;
        ensure!(before.len() == 1, "{} CAs", before.len());
        let mut run = SlowStream::start(namespace)?;
        run.wait_for_bytes(SlowStream::PART)?;

        let said = rproc(["admin", "rotate-ca"]).succeed()?;
        ensure!(said.starts_with("announced the next CA; it signs from "), "{said}");
        wait_for_phase("Announced")?;
        ensure!(bundle()?.len() == 2, "the next CA is published before it signs");

        let_the_wait_be_over()?;
        wait_for_phase("Retiring")?;
        let both = bundle()?;
        ensure!(
            both.len() == 2 && both[1] == before[0],
            "the former CA is still trusted"
        );

        // This agent has never learned the next CA: its pod names the former one, and no renewal was due.
        let pod = namespace.pod_uid("stream")?;
        let agent = agent_of(&pod, None)?;
        signal(agent, Signal::KILL)?;
        agent_of(&pod, Some(agent))?;

        let_the_wait_be_over()?;
        wait_for_phase("Stable")?;
        let after = bundle()?;
        ensure!(after.len() == 1 && after[0] == both[0], "the next CA alone is trusted");

        // A restart reads the same CA.
        delete_operator_pods()?;
        wait_for_operator()?;
        ensure!(bundle()? == after, "a restart changes nothing");
        SlowStream::expect_whole(run)
    });
}
