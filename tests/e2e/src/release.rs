//! The installation under test.

use std::time::Duration;

use anyhow::Result;

use crate::environment::{program, release_namespace};
use crate::program::{Program, kubectl};
use crate::wait::until;

/// `helm` with these arguments, in the release's namespace.
#[must_use]
pub fn helm(arguments: &[&str]) -> Program {
    Program::new(&program("HELM", "helm"), arguments).arg("--namespace").arg(release_namespace())
}

/// Names of the operator's pods.
pub fn operator_pods() -> Result<Vec<String>> {
    let selector = "--selector=app.kubernetes.io/component=operator,app.kubernetes.io/name=remoteprocess-operator";
    let names = kubectl(["get", "pods", selector, "--output=jsonpath={.items[*].metadata.name}", "--namespace"])
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
