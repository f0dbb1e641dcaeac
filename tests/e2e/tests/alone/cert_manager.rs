//! CAs from the real cert-manager: issued, renewed, from another issuer, and when cert-manager is gone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{
    Installation, Namespace, agent_of, is_development_cluster, kubectl, signal, until, wait_for_operator, with_temp_ns,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::rotation::{bundle, in_release, let_the_wait_be_over, wait_for_phase};

/// The Certificate of the chart, and the Secret that cert-manager keeps for it.
const CERTIFICATE: &str = "remoteprocess-operator-ca";
const SECRET: &str = "remoteprocess-operator-cert-manager-ca";
/// An issuer that signs with a CA of its own.
const ISSUERS: &str = r#"
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: e2e-self}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: e2e-root}
spec:
  isCA: true
  commonName: root of a test
  secretName: e2e-root
  privateKey: {algorithm: ECDSA, size: 256}
  issuerRef: {name: e2e-self, kind: Issuer}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: e2e-root}
spec: {ca: {secretName: e2e-root}}
"#;
const TICKER: &str = "i=0; while [ ! -f /tmp/go ]; do echo $i; i=$((i + 1)); sleep 0.1; done";

/// What `cmctl renew` does: it asks for an early renewal.
fn renew() -> Result<()> {
    let mut status = in_release(&["get", "certificate", CERTIFICATE, "--output=json"]).json()?["status"].take();
    let now = in_release(&["get", "certificate", CERTIFICATE]).arg("--output=jsonpath={.metadata.creationTimestamp}");
    let issuing = json!({
        "type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "by a test",
        "lastTransitionTime": now.succeed()?.trim(),
    });
    let conditions = status["conditions"].as_array_mut().context("no conditions")?;
    conditions.push(issuing);
    let patch = json!({"status": {"conditions": conditions}}).to_string();
    let patched = in_release(&[
        "patch",
        "certificate",
        CERTIFICATE,
        "--subresource=status",
        "--type=merge",
    ]);
    patched.args(["--patch", &patch]).succeed()?;
    Ok(())
}

/// A new CA has come: it is announced, signs, and the former one is retired. `while_announced` runs before it signs.
fn follow(while_announced: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = bundle()?;
    wait_for_phase("Announced")?;
    ensure!(bundle()?.len() == 2, "the next CA is published before it signs");
    while_announced()?;
    let_the_wait_be_over()?;
    wait_for_phase("Retiring")?;
    let_the_wait_be_over()?;
    wait_for_phase("Stable")?;
    let after = bundle()?;
    ensure!(after.len() == 1 && after != before, "the new CA alone is trusted");
    Ok(())
}

/// An agent that starts gets all CAs. Otherwise it gets them with its next certificate, which takes half an hour.
fn restart_agent(namespace: &Namespace) -> Result<()> {
    let pod = namespace.pod_uid("ticker")?;
    let agent = agent_of(&pod, None)?;
    signal(agent, Signal::KILL)?;
    agent_of(&pod, Some(agent)).map(drop)
}

fn scale_cert_manager(replicas: u32) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    let scale = ["scale", "deployment", "--all", &replicas, "--namespace=cert-manager"];
    kubectl(scale).succeed()?;
    let wait = [
        "rollout",
        "status",
        "deployment",
        "--namespace=cert-manager",
        "--timeout=60s",
    ];
    kubectl(wait).within(Duration::from_secs(70)).succeed()?;
    Ok(())
}

/// The other tests of CAs begin with one CA.
fn finish_rotation() -> Result<()> {
    until("a CA in the phase Stable", Duration::from_secs(60), || {
        if wait_for_phase("Stable").is_ok() {
            return Ok(true);
        }
        let_the_wait_be_over().map(|()| false)
    })
}

fn source_secret() -> Result<Value> {
    in_release(&["get", "secret", SECRET, "--ignore-not-found", "--output=json"])
        .succeed()
        .map(|text| serde_json::from_str(&text).unwrap_or_default())
}

fn issue_and_renew(namespace: &Namespace, installation: &Installation) -> Result<()> {
    installation.install(&["--set", "ca.source=CertManager"])?;
    follow(|| Ok(()))?;
    for round in 1..=3 {
        renew()?;
        follow(|| if round == 2 { restart_agent(namespace) } else { Ok(()) })
            .with_context(|| format!("renewal {round}"))?;
    }

    in_release(&["apply", "--filename=-"]).input(ISSUERS).succeed()?;
    let ready = ["wait", "issuer/e2e-root", "--for=condition=Ready", "--timeout=30s"];
    in_release(&ready).succeed()?;
    installation.install(&["--set", "ca.source=CertManager,ca.certManager.issuerRef.name=e2e-root"])?;
    follow(|| restart_agent(namespace)).context("another issuer")?;

    in_release(&["delete", "secret", SECRET]).succeed()?;
    follow(|| Ok(())).context("the Secret was deleted")?;

    // Without cert-manager, and without its Secret, everything stays as it is.
    let last = bundle()?;
    scale_cert_manager(0)?;
    in_release(&["delete", "secret", SECRET]).succeed()?;
    let run = namespace.editor.run("later", "echo later").finish()?;
    ensure!(run.expect_code(0)?.out() == "later\n", "{run}");
    ensure!(
        bundle()? == last && source_secret()?.is_null(),
        "nothing makes another CA"
    );
    Ok(())
}

#[test]
fn cas_of_the_real_cert_manager_follow_each_other_under_a_live_stream() {
    if !is_development_cluster("a CA of cert-manager") {
        return;
    }
    let crd = kubectl(["get", "crd", "certificates.cert-manager.io"])
        .finish()
        .expect("kubectl runs");
    if crd.code != 0 {
        println!("LEFT OUT: cert-manager is not installed; `cargo xtask cluster up --cert-manager` does it");
        return;
    }
    with_temp_ns("cert-manager", |namespace| {
        wait_for_phase("Stable")?;
        let installation = Installation::current()?;
        let mut run = namespace
            .editor
            .run("ticker", TICKER)
            .within(Duration::from_secs(600))
            .start()?;
        run.wait_for_bytes(2)?;
        let outcome = issue_and_renew(namespace, &installation);
        // In any case: the other tests and the next run need the installation. Its CA stays.
        scale_cert_manager(1)?;
        installation.install(&[])?;
        wait_for_operator()?;
        if outcome.is_err() {
            finish_rotation()?;
        }
        for leftover in [
            "issuer/e2e-self",
            "issuer/e2e-root",
            "certificate/e2e-root",
            "secret/e2e-root",
        ] {
            in_release(&["delete", "--ignore-not-found", leftover]).succeed()?;
        }
        in_release(&["delete", "--ignore-not-found", "secret", SECRET]).succeed()?;
        outcome?;

        namespace.in_container("ticker", "touch /tmp/go")?;
        let finished = run.finish()?;
        let out = finished.expect_code(0)?.out();
        let count = out.lines().count();
        ensure!(
            count > 300 && out.lines().enumerate().all(|(at, line)| line == at.to_string()),
            "{finished}"
        );
        until("the end of its record", Duration::from_secs(30), || {
            Ok(namespace.object("ticker")?["status"]["phase"] == "Succeeded")
        })
    });
}
