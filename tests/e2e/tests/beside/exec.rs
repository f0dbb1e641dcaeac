//! Further commands in the container of a running process.

use anyhow::{Result, ensure};
use remoteprocess_e2e::{Namespace, Program, STATIC, counting, sha256, spec, with_temp_ns};
use rustix::process::Signal;
use serde_json::json;

/// A process that waits for a file.
fn host(namespace: &Namespace) -> Result<()> {
    let script = "trap 'exit 5' TERM; echo up; while [ ! -f /tmp/go ]; do sleep 0.1; done; exit 3";
    let environment = [json!({"name": "COLOR", "value": "blue"})];
    let more = json!({"env": environment, "workingDir": "/tmp", "securityContext": {"runAsUser": 4321}});
    namespace.apply("host", spec(script, more)).succeed()?;
    started(namespace, "host")
}

/// Waits until its start is in the status: before that `rproc exec` prints that it waits.
fn started(namespace: &Namespace, name: &str) -> Result<()> {
    let started = |status: &serde_json::Value| !status["attempts"][0]["startedAt"].is_null();
    namespace.wait_for(name, "a start", 90, started).map(drop)
}

fn exec(namespace: &Namespace, words: &[&str]) -> Program {
    namespace.editor.rproc(&[&["exec"], words].concat())
}

#[test]
fn streams_codes_input_and_environment_are_the_commands() {
    with_temp_ns("exec", |namespace| {
        host(namespace)?;
        let script = "echo out; echo err >&2; echo $COLOR $MORE $PWD $(id -u); exit 7";
        let finished = exec(namespace, &["host", "-e", "MORE=red", "--", "sh", "-c", script]).finish()?;
        ensure!(
            finished.expect_code(7)?.out() == "out\nblue red /tmp 4321\n",
            "{finished}"
        );
        ensure!(finished.stderr == b"err\n", "{finished}");
        let killed = exec(namespace, &["host", "--", "sh", "-c", "kill -9 $$"]).finish()?;
        killed.expect_code(137)?.expect_stderr(&["SIGKILL"])?;
        let missing = exec(namespace, &["host", "--", "no-such-program"]).finish()?;
        missing
            .expect_code(127)?
            .expect_stderr(&["no-such-program", "not found in PATH"])?;
        let refused = exec(namespace, &["host", "--", "/etc/passwd"]).finish()?;
        refused.expect_code(126)?.expect_stderr(&["not executable"])?;
        let placed = exec(namespace, &["host", "--workdir", "/etc", "--", "pwd"]).finish()?;
        ensure!(placed.expect_code(0)?.out() == "/etc\n", "{placed}");
        let input = counting(1 << 20);
        let summed = exec(namespace, &["-i", "host", "--", "sha256sum"])
            .input(input.clone())
            .finish()?;
        ensure!(summed.expect_code(0)?.out().starts_with(&sha256(&input)), "{summed}");
        // None of it is in the process's own output.
        let logs = namespace.editor.rproc(&["logs", "host"]).finish()?;
        ensure!(logs.out() == "up\n", "{logs}");
        exec(namespace, &["host", "--", "touch", "/tmp/go"])
            .finish()?
            .expect_code(0)?;
        let object = namespace.wait_finished("host")?;
        ensure!(object["status"]["exitCode"] == 3, "{:#}", object["status"]);
        let late = exec(namespace, &["host", "--", "true"]).finish()?;
        late.expect_code(125)?
            .expect_stderr(&["host has ended", "rproc logs host"])?;
        Ok(())
    });
}

#[test]
fn an_image_without_a_shell_is_enough() {
    with_temp_ns("static", |namespace| {
        let run = namespace
            .editor
            .run_image(STATIC, "bare", &["/busybox", "sleep", "600"]);
        let running = run.start()?;
        namespace.wait_running("bare")?;
        started(namespace, "bare")?;
        let listed = exec(namespace, &["bare", "--", "/busybox", "echo", "inside"]).finish()?;
        ensure!(listed.expect_code(0)?.out() == "inside\n", "{listed}");
        let missing = exec(namespace, &["bare", "--", "sh"]).finish()?;
        missing.expect_code(127)?.expect_stderr(&["not found in PATH"])?;
        running.signal(Signal::INT)?;
        running.finish()?;
        Ok(())
    });
}

#[test]
fn a_paused_process_can_be_looked_at() {
    with_temp_ns("execpause", |namespace| {
        host(namespace)?;
        namespace.editor.rproc(&["pause", "host"]).finish()?.expect_code(0)?;
        let script = "grep -l 'f /tmp/go' /proc/[0-9]*/cmdline 2>/dev/null | while read f; do \
                      p=${f#/proc/}; p=${p%/cmdline}; [ $p = 1 ] || [ $p = $$ ] || cut -d' ' -f3 /proc/$p/stat; done";
        let states = exec(namespace, &["host", "--", "sh", "-c", script]).finish()?;
        ensure!(
            states.expect_code(0)?.out().lines().any(|state| state == "T"),
            "{states}"
        );
        namespace.editor.rproc(&["resume", "host"]).finish()?.expect_code(0)?;
        let mut session = exec(namespace, &["host", "--", "sh", "-c", "echo in; sleep 600"]).start()?;
        session.wait_for_bytes(3)?;
        namespace.editor.rproc(&["stop", "host"]).finish()?.expect_code(0)?;
        let finished = session.finish()?;
        ensure!(finished.code > 124, "it ends with the process: {finished}");
        Ok(())
    });
}

#[test]
fn rights_decide() {
    with_temp_ns("execrights", |namespace| {
        host(namespace)?;
        let viewer = namespace.user("viewer", Some("view"))?;
        let refused = viewer.rproc(&["exec", "host", "--", "true"]).finish()?;
        refused
            .expect_code(125)?
            .expect_stderr(&["remoteprocesses/exec", "create"])?;
        Ok(())
    });
}
