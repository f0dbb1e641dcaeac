//! Installs the operator into a cluster.

use anyhow::Result;

use crate::images::{self, Images};
use crate::lock::Lock;
use crate::steps::step;
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
        for image in ["operator", "agent", "cli"] {
            helm.arg("--set").arg(format!("images.{image}.tag={}", images.tag));
        }
        exec::output(&mut helm).map(drop)
    })
}
