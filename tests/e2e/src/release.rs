//! The installation under test.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::environment::{RELEASE, RELEASE_NAMESPACE, context, image_tag, program};
use crate::node::{operators, signal};
use crate::program::{Program, kubectl};
use crate::wait::until;

/// `helm` with these arguments, in the release's namespace.
#[must_use]
pub fn helm(arguments: &[&str]) -> Program {
    let helm = Program::new(
        &program("HELM", "helm"),
        context().map(|name| format!("--kube-context={name}")),
    );
    helm.args(["--namespace", RELEASE_NAMESPACE]).args(arguments)
}

/// Selects the operator's pods.
pub const OPERATORS: &str =
    "--selector=app.kubernetes.io/component=operator,app.kubernetes.io/name=remoteprocess-operator";

/// Names of the operator's pods.
pub fn operator_pods() -> Result<Vec<String>> {
    let names = kubectl([
        "get",
        "pods",
        OPERATORS,
        "--output=jsonpath={.items[*].metadata.name}",
        "--namespace",
    ])
    .arg(RELEASE_NAMESPACE)
    .succeed()?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

/// Whether a replica is ready.
pub fn operator_is_ready() -> Result<bool> {
    let count = kubectl(["get", "deployments", "--selector=app.kubernetes.io/component=operator"])
        .arg("--output=jsonpath={.items[*].status.readyReplicas}")
        .arg("--namespace")
        .arg(RELEASE_NAMESPACE)
        .succeed()?;
    Ok(count.trim().parse::<u32>().unwrap_or_default() > 0)
}

/// Waits until a replica is ready.
pub fn wait_for_operator() -> Result<()> {
    until("a ready operator", Duration::from_secs(120), operator_is_ready)
}

/// Kills the operator's pods without notice.
pub fn delete_operator_pods() -> Result<()> {
    for pod in operator_pods()? {
        kubectl([
            "delete",
            "pod",
            &pod,
            "--grace-period=0",
            "--force",
            // Another test may have been faster.
            "--ignore-not-found",
            "--namespace",
            RELEASE_NAMESPACE,
        ])
        .succeed()?;
    }
    Ok(())
}

/// Kills the operator's programs, and deletes their pods: a container that is killed again waits before it restarts.
pub fn kill_operators() -> Result<()> {
    for pid in operators()? {
        // It may have ended by itself.
        let _ = signal(pid, Signal::KILL);
    }
    delete_operator_pods()
}

/// Scales the operator to this many replicas; returns when no other is left, and one is ready unless there is none.
pub fn scale_operator(replicas: usize) -> Result<()> {
    let count = format!("--replicas={replicas}");
    kubectl(["scale", "deployment", OPERATORS, &count, "--namespace"])
        .arg(RELEASE_NAMESPACE)
        .succeed()?;
    until("as many operators as wanted", Duration::from_secs(120), || {
        Ok(operator_pods()?.len() == replicas)
    })?;
    if replicas == 0 { Ok(()) } else { wait_for_operator() }
}

/// The release with its values, so that it can be removed and restored.
pub struct Installation {
    values: NamedTempFile,
}

impl Installation {
    /// The release as it is now.
    pub fn current() -> Result<Self> {
        let values = NamedTempFile::with_suffix(".json")?;
        let text = helm(&["get", "values", RELEASE, "--output=json"]).succeed()?;
        let text = if text.trim() == "null" { "{}".to_owned() } else { text };
        fs::write(values.path(), text).context("cannot write the values")?;
        Ok(Self { values })
    }

    /// Installs the release with the images under test, unless it is as `cargo xtask test` has installed it: once for
    /// each file of tests, in case an earlier one failed to restore it.
    pub(crate) fn ensure() -> Result<()> {
        static DONE: Mutex<bool> = Mutex::new(false);
        let mut done = DONE.lock().expect("no holder panics");
        if !*done {
            if let Some(tag) = image_tag() {
                let images =
                    ["operator", "agent", "cli", "bridge"].map(|image| (image.to_owned(), json!({"tag": tag})));
                let images = Value::Object(images.into_iter().collect());
                let wanted = json!({"images": images});
                if !is_deployed_with(&wanted)? {
                    let values = NamedTempFile::with_suffix(".json")?;
                    fs::write(values.path(), wanted.to_string())?;
                    Self { values }.install(&[])?;
                }
            }
            wait_for_operator().context("the operator is not installed: cargo xtask install")?;
            *done = true;
        }
        Ok(())
    }

    /// Runs `helm upgrade --install` with the recorded values and these flags; waits until the operator is ready.
    pub fn install(&self, flags: &[&str]) -> Result<()> {
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/remoteprocess-operator");
        helm(&[
            "upgrade",
            "--install",
            "--create-namespace",
            "--wait",
            "--timeout=180s",
            RELEASE,
            chart,
            "--values",
        ])
        .arg(self.values.path())
        .args(flags)
        .within(Duration::from_secs(200))
        .succeed()?;
        wait_for_operator()
    }

    /// `helm uninstall`.
    pub fn uninstall(&self) -> Result<()> {
        helm(&["uninstall", RELEASE, "--wait"]).succeed()?;
        Ok(())
    }
}

/// Whether the release exists, with exactly these values.
fn is_deployed_with(values: &Value) -> Result<bool> {
    let release = helm(&["status", RELEASE, "--output=json"]).finish()?;
    if release.code != 0 {
        return Ok(false);
    }
    let release: Value = serde_json::from_slice(&release.stdout).context("helm status is not JSON")?;
    Ok(release["info"]["status"] == "deployed" && release["config"] == *values)
}
