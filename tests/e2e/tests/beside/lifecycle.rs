//! Objects and namespaces are deleted while their programs run: nothing hangs and nothing stays.

use std::time::Duration;

use anyhow::{Result, ensure};
use remoteprocess_e2e::{Namespace, Running, kubectl, spec, until, with_temp_ns};
use serde_json::json;

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
        let detached = namespace
            .editor
            .rproc(&arguments)
            .args(["--", "sh", "-c", script])
            .finish()?;
        ensure!(detached.expect_code(0)?.out() == "away\n", "its name alone: {detached}");
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
        for verb in ["get", "describe", "wait", "stop", "logs"] {
            let mixed = namespace.editor.rproc(&[verb, "nope", "away"]).finish()?;
            let code = if verb == "logs" { 125 } else { 1 };
            ensure!(
                mixed.expect_code(code)?.err().contains("nope") && (verb == "logs" || mixed.out().contains("away")),
                "one missing name of several does not hide the rest: {mixed}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_process_runs_again_from_a_file_or_from_itself() {
    with_temp_ns("rerun", |namespace| {
        let object = json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "again"},
            "spec": spec("echo ran; exit 3", json!({})),
        });
        let run = |words: &[&str]| namespace.editor.rproc(words).input(object.to_string()).finish();
        let first = run(&["run", "-f", "-"])?;
        ensure!(first.expect_code(3)?.out() == "ran\n", "{first}");
        let phase = namespace.object("again")?["status"]["phase"].clone();
        ensure!(
            phase == "Failed",
            "the status does not lag behind the exit code: {phase}"
        );
        run(&["run", "-f", "-"])?
            .expect_code(125)?
            .expect_stderr(&["--replace"])?;
        let replaced = run(&["run", "-f", "-", "--replace"])?;
        ensure!(replaced.expect_code(3)?.out() == "ran\n", "{replaced}");
        let beside = run(&["rerun", "again", "--new-name", "beside", "--rm"])?;
        ensure!(beside.expect_code(3)?.out() == "ran\n", "{beside}");
        let names = run(&["get", "-q"])?;
        ensure!(names.expect_code(0)?.out() == "again\n", "{names}");
        run(&["delete", "--all"])?.expect_code(0)?;
        let names = run(&["get", "-q"])?;
        ensure!(names.expect_code(0)?.out().is_empty(), "{names}");
        Ok(())
    });
}

#[test]
fn an_ended_process_is_deleted_after_its_ttl() {
    with_temp_ns("ttl", |namespace| {
        let ttl = json!({"ttl": {"secondsAfterSuccess": 1}});
        namespace.apply("short", spec("true", ttl)).succeed()?;
        until("the deletion of the process", Duration::from_secs(60), || {
            let get = ["get", "remoteprocess", "short", "--ignore-not-found", "--output=name"];
            Ok(namespace.kubectl(&get).succeed()?.is_empty())
        })?;
        namespace.wait_no_pods("short", 45)
    });
}
