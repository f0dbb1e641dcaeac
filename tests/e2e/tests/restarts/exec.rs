//! Commands in the container of a process survive a restart of the operator.

use std::time::Duration;

use anyhow::{Result, ensure};
use remoteprocess_e2e::{
    Namespace, Program, Screen, agents_of, delete_operator_pods, is_development_cluster, seq, signal, spec, until,
    wait_for_operator, with_temp_ns,
};
use rustix::process::Signal;
use serde_json::json;

/// A process that waits for a file.
fn host(namespace: &Namespace) -> Result<()> {
    let script = "echo up; while [ ! -f /tmp/go ]; do sleep 0.1; done";
    namespace.apply("host", spec(script, json!({}))).succeed()?;
    let started = |status: &serde_json::Value| !status["attempts"][0]["startedAt"].is_null();
    namespace.wait_for("host", "a start", 90, started).map(drop)
}

fn exec(namespace: &Namespace, words: &[&str]) -> Program {
    namespace.editor.rproc(&[&["exec"], words].concat())
}

#[test]
fn a_relay_that_is_killed_loses_no_byte_of_a_command() {
    with_temp_ns("execcut", |namespace| {
        host(namespace)?;
        let script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); seq 10000; sleep 0.1; done; exit 4";
        let mut session = exec(namespace, &["host", "--", "sh", "-c", script]).start()?;
        session.wait_for_bytes(100_000)?;
        delete_operator_pods()?;
        let finished = session.finish()?;
        wait_for_operator()?;
        let wanted = seq(1, 10_000).repeat(60);
        ensure!(
            finished.expect_code(4)?.stdout == wanted,
            "{} bytes",
            finished.stdout.len()
        );
        if !is_development_cluster("kills of the agent in mid-session") {
            return Ok(());
        }
        let mut session = exec(namespace, &["host", "--", "sh", "-c", "echo in; sleep 600"]).start()?;
        session.wait_for_bytes(3)?;
        let pod = namespace.pod("host")?;
        for agent in agents_of(pod["metadata"]["uid"].as_str().unwrap_or_default())? {
            signal(agent, Signal::KILL)?;
        }
        // The output that it held is lost, and that is reported.
        session
            .finish()?
            .expect_code(125)?
            .expect_stderr(&["session is lost"])?;
        let next = exec(namespace, &["host", "--", "echo", "again"]).finish()?;
        ensure!(next.expect_code(0)?.out() == "again\n", "{next}");
        Ok(())
    });
}

#[test]
fn a_shell_at_a_terminal_has_keys_sizes_and_an_exit_code() {
    with_temp_ns("execshell", |namespace| {
        host(namespace)?;
        let Some(screen) = Screen::open(namespace.editor.rproc(&[]), 100, 30)? else {
            return Ok(());
        };
        screen.line("rproc exec -it host -e PS1='inside> ' -- sh")?;
        screen.wait_for("inside>")?;
        screen.resize(70, 25)?;
        until("the new size", Duration::from_secs(30), || {
            screen.line("clear; stty size")?;
            Ok(screen.shows()?.contains("25 70"))
        })?;
        screen.line("clear; echo sle''eping; sleep 600")?;
        screen.wait_for("sleeping")?;
        screen.presses(&["C-c"])?;
        screen.line("echo after=$((1 + 1))")?;
        screen.wait_for("after=2")?;
        delete_operator_pods()?;
        screen.line("echo still=$((40 + 2))")?;
        screen.wait_for("still=42")?;
        wait_for_operator()?;
        screen.line("exit 9")?;
        until("the end of rproc", Duration::from_secs(60), || {
            Ok(screen.running()?.is_empty())
        })?;
        screen.line("echo code=$?")?;
        screen.wait_for("code=9")?;
        ensure!(screen.is_as_before()?, "the terminal is not as it was");
        Ok(())
    });
}
