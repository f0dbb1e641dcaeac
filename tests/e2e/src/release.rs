//! The installation under test.

use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use crate::environment::{program, release, release_namespace};
use crate::program::{Program, kubectl};
use crate::wait::until;

/// `helm` with these arguments, in the release's namespace.
#[must_use]
pub fn helm(arguments: &[&str]) -> Program {
    Program::new(&program("HELM", "helm"), arguments)
        .arg("--namespace")
        .arg(release_namespace())
}

/// Names of the operator's pods.
pub fn operator_pods() -> Result<Vec<String>> {
    let selector = "--selector=app.kubernetes.io/component=operator,app.kubernetes.io/name=remoteprocess-operator";
    let names = kubectl([
        "get",
        "pods",
        selector,
        "--output=jsonpath={.items[*].metadata.name}",
        "--namespace",
    ])
    .arg(release_namespace())
    .succeed()?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

/// Whether a replica is ready.
pub fn operator_is_ready() -> Result<bool> {
    let count = kubectl(["get", "deployments", "--selector=app.kubernetes.io/component=operator"])
        .arg("--output=jsonpath={.items[*].status.readyReplicas}")
        .arg("--namespace")
        .arg(release_namespace())
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
            "--namespace",
            &release_namespace(),
        ])
        .succeed()?;
    }
    Ok(())
}

/// The release with its values, so that it can be removed and come back as it was.
pub struct Installation {
    values: NamedTempFile,
}

impl Installation {
    /// The release as it is now.
    pub fn current() -> Result<Self> {
        let values = NamedTempFile::with_suffix(".json")?;
        let text = helm(&["get", "values", &release(), "--output=json"]).succeed()?;
        let text = if text.trim() == "null" { "{}".to_owned() } else { text };
        fs::write(values.path(), text).context("cannot write the values")?;
        Ok(Self { values })
    }

    /// `helm upgrade --install` with the values as they were and these flags; waits until the operator is ready.
    pub fn install(&self, flags: &[&str]) -> Result<()> {
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/remoteprocess-operator");
        let chart = env::var("RPROC_E2E_CHART").unwrap_or_else(|_| chart.to_owned());
        helm(&[
            "upgrade",
            "--install",
            "--create-namespace",
            &release(),
            &chart,
            "--values",
        ])
        .arg(self.values.path())
        .args(flags)
        .succeed()?;
        wait_for_operator()
    }

    /// `helm uninstall`.
    pub fn uninstall(&self) -> Result<()> {
        helm(&["uninstall", &release(), "--wait"]).succeed()?;
        Ok(())
    }
}
