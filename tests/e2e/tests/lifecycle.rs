//! Objects and namespaces are deleted while their programs run: nothing hangs and nothing stays.

use std::time::Duration;

use anyhow::{Result, ensure};
use remoteprocess_e2e::{Namespace, Running, kubectl, until, with_temp_ns};

fn running(namespace: &Namespace) -> Result<Running> {
    let mut run = namespace
        .editor
        .run("runs", "echo ready; while :; do sleep 0.1; done")
        .start()?;
    run.wait_for_bytes(6)?;
    Ok(run)
}

#[test]
fn a_running_process_can_be_deleted() {
    with_temp_ns("deleted", |namespace| {
        let run = running(namespace)?;
        namespace
            .editor
            .kubectl(&["delete", "remoteprocess", "runs", "--wait=true"])
            .succeed()?;
        namespace.wait_no_pods("runs", 45)?;
        let finished = run.finish()?;
        ensure!(finished.code != 0 && finished.out() == "ready\n", "{finished}");
        ensure!(finished.err().contains("rproc:"), "it says why: {finished}");
        Ok(())
    });
}

#[test]
fn a_program_that_ignores_its_end_is_gone_after_the_grace_period() {
    with_temp_ns("deleted-hard", |namespace| {
        let mut run = namespace
            .editor
            .run("hard", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
            .start()?;
        run.wait_for_bytes(6)?;
        namespace
            .editor
            .kubectl(&["delete", "remoteprocess", "hard"])
            .succeed()?;
        namespace.wait_no_pods("hard", 30 + 45)
    });
}

#[test]
fn the_namespace_can_be_deleted() {
    with_temp_ns("namespace", |namespace| {
        let run = running(namespace)?;
        namespace
            .kubectl(&["delete", "namespace", &namespace.name, "--wait=false"])
            .succeed()?;
        until("the end of the namespace", Duration::from_secs(75), || {
            Ok(kubectl(["get", "namespace", &namespace.name]).finish()?.code != 0)
        })?;
        ensure!(run.finish()?.code != 0);
        Ok(())
    });
}

#[test]
fn rm_removes_the_object_and_keeps_the_exit_code() {
    with_temp_ns("rm", |namespace| {
        let arguments = [
            "run",
            "short",
            "--rm",
            "--image=busybox:1.36",
            "--image-pull-policy=IfNotPresent",
        ];
        let run = namespace
            .editor
            .rproc(&arguments)
            .args(["--", "sh", "-c", "echo out; exit 5"])
            .finish()?;
        ensure!(run.expect_code(5)?.out() == "out\n", "{run}");
        until("the end of the object", Duration::from_secs(30), || {
            Ok(namespace.kubectl(&["get", "remoteprocess", "short"]).finish()?.code != 0)
        })
    });
}

#[test]
fn a_detached_process_can_be_waited_for_and_shown() {
    with_temp_ns("detach", |namespace| {
        let arguments = [
            "run",
            "away",
            "--detach",
            "--image=busybox:1.36",
            "--image-pull-policy=IfNotPresent",
        ];
        let script = "while [ ! -f /tmp/go ]; do sleep 0.05; done; exit 3";
        namespace
            .editor
            .rproc(&arguments)
            .args(["--", "sh", "-c", script])
            .finish()?
            .expect_code(0)?;
        namespace.wait_running("away")?;
        let wait = namespace.editor.rproc(&["wait", "away", "--timeout=60s"]).start()?;
        namespace.in_container("away", "touch /tmp/go")?;
        wait.finish()?.expect_code(0)?;
        for output in ["json", "yaml", "wide", "name"] {
            let get = namespace.editor.rproc(&["get", "away", "-o", output]).finish()?;
            ensure!(get.expect_code(0)?.out().contains("away"), "{get}");
        }
        let describe = namespace.editor.rproc(&["describe", "away"]).finish()?;
        ensure!(describe.expect_code(0)?.out().contains("NonZeroExit"), "{describe}");
        Ok(())
    });
}
