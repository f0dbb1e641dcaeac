//! Installs the operator into a cluster.

use anyhow::{Context, Result};

use crate::images::{self, Images};
use crate::lock::Lock;
use crate::steps::{say, step};
use crate::target::Target;
use crate::{exec, paths};

/// Where the operator lives.
pub const NAMESPACE: &str = "remoteprocess-system";
const RELEASE: &str = "remoteprocess";

/// The installed operator.
pub struct Installation {
    /// What it was built from.
    pub images: Images,
    /// Tests of another checkout would install theirs in its place.
    _tests: Option<Lock>,
}

/// Builds and loads the images and installs or upgrades the chart; returns when the operator is ready.
pub fn install(target: &Target) -> Result<Installation> {
    target.expect_images()?;
    let images = images::build_and_load(target)?;
    let tests = target
        .own
        .as_ref()
        .map(|state| Lock::take(&state.tests_lock(), "the tests of another checkout"));
    let tests = tests.transpose()?;
    upgrade(target, &images)?;
    Ok(Installation { images, _tests: tests })
}

/// Installs or upgrades the chart with these images; returns when the operator is ready.
pub fn upgrade(target: &Target, images: &Images) -> Result<()> {
    step("helm upgrade --install", || {
        let mut helm = target.helm();
        helm.args(["upgrade", "--install", RELEASE])
            .arg(paths::repository().join("charts/remoteprocess-operator"));
        helm.args([
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--wait",
            "--timeout",
            "180s",
        ]);
        for value in images::values(&images.tag, target.registry.as_ref()) {
            helm.arg("--set").arg(value);
        }
        exec::output(&mut helm).map(drop).with_context(|| pods(target))
    })
}

/// What became of the operator's pods: an image that cannot be pulled shows here.
fn pods(target: &Target) -> String {
    let listed = exec::output(target.kubectl().args(["get", "pods", "--namespace", NAMESPACE]));
    format!(
        "the chart was not installed; the pods in {NAMESPACE}:\n{}",
        listed.unwrap_or_else(|error| format!("{error:#}"))
    )
}

/// Says where `rproc` is, for a shell.
pub fn say_where_rproc_is(images: &Images) {
    let rproc = images.programs.path("rproc");
    say(format_args!(
        "  export PATH={}:$PATH    # rproc is there",
        rproc.parent().unwrap_or(&rproc).display()
    ));
}
