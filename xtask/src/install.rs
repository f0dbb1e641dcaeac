//! Installs the operator into a cluster.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::images::{self, Images};
use crate::lock::Lock;
use crate::steps::{say, step};
use crate::target::Target;
use crate::{exec, paths};

/// Namespace of the operator.
pub(crate) const NAMESPACE: &str = "remoteprocess-system";
const RELEASE: &str = "remoteprocess";

/// The installed operator.
pub(crate) struct Installation {
    /// The images from which it was installed.
    pub images: Images,
    /// Tests of another checkout would replace the installation.
    _tests: Option<Lock>,
}

/// Builds and loads the images and installs or upgrades the chart; returns when the operator is ready.
pub(crate) fn install(target: &Target) -> Result<Installation> {
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
pub(crate) fn upgrade(target: &Target, images: &Images) -> Result<()> {
    // On your own cluster another user may be at work, so Helm's refusal is not overridden.
    if target.own.is_some() {
        end_broken_operation(target)?;
    }
    step("helm upgrade --install", || {
        let mut helm = target.helm();
        helm.args(["upgrade", "--install", RELEASE]).arg(paths::chart());
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

/// Repairs a release that a killed Helm has left half done. Helm would refuse every later upgrade: "another operation
/// is in progress". On the development cluster the lock of its tests ensures that no other command is at work.
fn end_broken_operation(target: &Target) -> Result<()> {
    let status = exec::output(
        target
            .helm()
            .args(["status", RELEASE, "--namespace", NAMESPACE, "--output=json"]),
    );
    // There is no release yet.
    let Ok(status) = status else { return Ok(()) };
    let Some(arguments) = undo(&status) else {
        return Ok(());
    };
    let mut helm = target.helm();
    helm.args(arguments).args([RELEASE, "--namespace", NAMESPACE, "--wait"]);
    exec::output(&mut helm).map(drop)
}

/// How to repair an unfinished operation, from the output of `helm status`; `None` if there is none.
fn undo(status: &str) -> Option<&'static [&'static str]> {
    let status: Value = serde_json::from_str(status).ok()?;
    match status["info"]["status"].as_str()? {
        "pending-install" | "uninstalling" => Some(&["uninstall"]),
        "pending-upgrade" | "pending-rollback" => Some(&["rollback"]),
        _ => None,
    }
}

/// The state of the operator's pods, which shows an image that cannot be pulled.
fn pods(target: &Target) -> String {
    let listed = exec::output(target.kubectl().args(["get", "pods", "--namespace", NAMESPACE]));
    format!(
        "the chart was not installed; the pods in {NAMESPACE}:\n{}",
        listed.unwrap_or_else(|error| format!("{error:#}"))
    )
}

/// Prints where `rproc` is, for a shell.
pub(crate) fn say_where_rproc_is(images: &Images) {
    let rproc = images.programs.path("rproc");
    say(format_args!(
        "  export PATH={}:$PATH    # rproc is there",
        rproc.parent().unwrap_or(&rproc).display()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_helm_left_half_done_is_undone() {
        let of = |status: &str| {
            undo(&format!(
                r#"{{"name": "remoteprocess", "info": {{"status": "{status}"}}}}"#
            ))
        };
        assert_eq!(of("pending-upgrade"), Some(&["rollback"][..]));
        assert_eq!(of("pending-install"), Some(&["uninstall"][..]));
        assert_eq!((of("deployed"), of("failed"), undo("")), (None, None, None));
    }
}
