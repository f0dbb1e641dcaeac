//! The release is removed while programs run.

use std::time::Duration;

use anyhow::{Result, ensure};
use remoteprocess_e2e::{
    Installation, RELEASE, helm, is_development_cluster, kubectl, spec, until, wait_for_operator, with_temp_ns,
};
use serde_json::json;

use super::faces::without_grpc_http_works;

/// A program that prints `before`, waits for the file /tmp/go, prints `after` and ends with 7.
const SCRIPT: &str = "echo before; while [ ! -f /tmp/go ]; do sleep 0.05; done; echo after; exit 7";

#[test]
fn helm_test_runs_a_real_process() {
    let tested = helm(&["test", RELEASE]).within(Duration::from_secs(200)).finish();
    let tested = tested.expect("helm runs");
    assert_eq!(tested.code, 0, "{tested}");
    assert!(tested.out().contains("Succeeded"), "{tested}");
}

#[test]
fn running_programs_continue_without_the_operator_and_are_found_again() {
    if !is_development_cluster("helm uninstall with crds.keep=true") {
        return;
    }
    with_temp_ns("kept", |namespace| {
        let installation = Installation::current()?;
        installation.install(&["--set", "crds.keep=true"])?;
        for name in ["ends-before", "ends-while", "ends-after"] {
            let mut run = namespace.editor.run(name, SCRIPT).start()?;
            run.wait_for_bytes(7)?;
        }
        namespace.in_container("ends-before", "touch /tmp/go")?;
        namespace.wait_finished("ends-before")?;

        installation.uninstall()?;
        namespace.in_container("ends-while", "touch /tmp/go")?;
        until("the end of the program", Duration::from_secs(20), || {
            let pod = namespace.pod("ends-while")?;
            Ok(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 7)
        })?;
        installation.install(&[])?;

        namespace.in_container("ends-after", "touch /tmp/go")?;
        for name in ["ends-before", "ends-while", "ends-after"] {
            let logs = namespace.editor.rproc(&["logs", "-f", name]).finish()?;
            ensure!(logs.expect_code(7)?.out() == "before\nafter\n", "{name}: {logs}");
            let status = namespace.wait_finished(name)?["status"].clone();
            ensure!(status["exitCode"] == 7 && status["attempt"] == 1, "{name}: {status:#}");
        }
        Ok(())
    });
}

#[test]
fn crds_keep_false_takes_everything_along() {
    if !is_development_cluster("helm uninstall with crds.keep=false") {
        return;
    }
    with_temp_ns("not-kept", |namespace| {
        let installation = Installation::current()?;
        // An upgrade takes seconds, so that of this test also shows the relay with one face.
        installation.install(&["--set", "crds.keep=false,faces.grpc=false"])?;
        let outcome = namespace
            .apply("doomed", spec(SCRIPT, json!({})))
            .succeed()
            .and_then(|_| namespace.wait_running("doomed"))
            .and_then(|_| without_grpc_http_works(namespace, "doomed", "before\n"))
            .and_then(|()| uninstalled_with_everything(&installation, || namespace.wait_no_pods("doomed", 30 + 45)));
        // In any case: the other tests and the next run need the installation.
        installation.install(&[])?;
        wait_for_operator()?;
        outcome
    });
}

fn uninstalled_with_everything(installation: &Installation, no_pods: impl Fn() -> Result<()>) -> Result<()> {
    installation.uninstall()?;
    no_pods()?;
    until("the end of the CRD", Duration::from_secs(30), || {
        Ok(kubectl(["get", "crd", "remoteprocesses.remoteprocess.dev"])
            .finish()?
            .code
            != 0)
    })
}
