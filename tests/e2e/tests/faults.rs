//! Something dies in mid-stream, and nobody can tell from the output or the exit code.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{
    Installation, Namespace, Pid, Running, agents_of, anonymous_memory, counting, delete_operator_pods, glibc,
    is_development_cluster, sha256, signal, until, until_some, wait_for_operator, with_temp_ns,
};
use rustix::process::Signal;
use serde_json::Value;

/// Faults one after the other: each test is about its own.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // Another test's failure is not ours.
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn pod_uid(namespace: &Namespace, process: &str) -> Result<String> {
    Ok(namespace.pod(process)?["metadata"]["uid"]
        .as_str()
        .context("a pod has a uid")?
        .to_owned())
}

fn agent_of(pod_uid: &str, but: Option<Pid>) -> Result<Pid> {
    until_some("the agent's process", Duration::from_secs(30), || {
        Ok(agents_of(pod_uid)?.into_iter().find(|pid| Some(*pid) != but))
    })
}

#[test]
fn the_agent_is_killed_again_and_again() {
    let _alone = alone();
    if !is_development_cluster("killing the agent in mid-stream") {
        return;
    }
    with_temp_ns("agent-killed", |namespace| {
        const BYTES: usize = 200_000_000;
        let script = format!("seq 1 100000000 2>/dev/null | head -c {BYTES}; exit 9");
        let mut run = namespace
            .editor
            .run_image(glibc(), "victim", &["bash", "-c", &script])
            .within(Duration::from_secs(300))
            .start()?;
        let uid = pod_uid(namespace, "victim")?;
        let mut last = None;
        for kills in 1..=5 {
            run.wait_for_bytes(kills * 25_000_000)?;
            let agent = agent_of(&uid, last)?;
            signal(agent, Signal::KILL)?;
            last = Some(agent);
        }
        let finished = run.finish()?;
        finished.expect_code(9)?;
        ensure!(finished.stdout.len() == BYTES, "{} bytes", finished.stdout.len());
        ensure!(sha256(&finished.stdout) == sha256(&counting(BYTES)), "other bytes");
        let status = namespace.wait_finished("victim")?["status"].clone();
        ensure!(status["attempts"][0]["output"]["sealed"] == true, "{status:#}");
        ensure!(
            status["attempts"][0]["output"]["stdout"]["sha256"] == sha256(&finished.stdout),
            "{status:#}"
        );
        Ok(())
    });
}

/// A stream that runs for some 15 s: short parts with a pause between them, then exit code 9.
const PARTS: usize = 300;
const PART: usize = 100_000;

fn slow_stream(namespace: &Namespace) -> Result<Running> {
    let last = counting(PARTS * PART).split(|byte| *byte == b'\n').count();
    let script = format!(
        "seq 1 {last} > /tmp/all; for i in $(seq 0 {}); do tail -c +$((i * {PART} + 1)) /tmp/all | head -c {PART}; \
         sleep 0.05; done; echo end >&2; exit 9",
        PARTS - 1
    );
    let command = ["bash", "-c", script.as_str()];
    let run = namespace
        .editor
        .run_image(glibc(), "stream", &command)
        .within(Duration::from_secs(240));
    run.start()
}

fn expect_whole(run: Running) -> Result<()> {
    let finished = run.finish()?;
    finished.expect_code(9)?;
    ensure!(
        finished.stdout.len() == PARTS * PART,
        "{} bytes, {}",
        finished.stdout.len(),
        finished.err()
    );
    ensure!(
        sha256(&finished.stdout) == sha256(&counting(PARTS * PART)),
        "other bytes"
    );
    ensure!(finished.err_of_program() == b"end\n", "{}", finished.err());
    Ok(())
}

#[test]
fn the_operator_is_killed() {
    let _alone = alone();
    with_temp_ns("operator-killed", |namespace| {
        let mut run = slow_stream(namespace)?;
        for part in [1, 100] {
            run.wait_for_bytes(part * PART)?;
            delete_operator_pods()?;
            wait_for_operator()?;
        }
        expect_whole(run)
    });
}

#[test]
fn the_release_is_upgraded() {
    let _alone = alone();
    with_temp_ns("upgraded", |namespace| {
        let mut run = slow_stream(namespace)?;
        run.wait_for_bytes(PART)?;
        let stamp = format!("podAnnotations.upgraded-by={}", namespace.name);
        Installation::current()?.install(&["--set-string", &stamp])?;
        expect_whole(run)
    });
}

#[test]
fn the_client_is_stopped_for_a_while() {
    let _alone = alone();
    with_temp_ns("client-stopped", |namespace| {
        let mut run = slow_stream(namespace)?;
        run.wait_for_bytes(PART)?;
        run.signal(Signal::STOP)?;
        namespace.wait_finished("stream")?;
        run.signal(Signal::CONT)?;
        expect_whole(run)
    });
}

#[test]
fn a_client_that_is_killed_changes_nothing() {
    let _alone = alone();
    with_temp_ns("client-killed", |namespace| {
        let mut run = slow_stream(namespace)?;
        run.wait_for_bytes(PART)?;
        run.signal(Signal::KILL)?;
        ensure!(run.finish()?.code == 137);
        expect_whole(namespace.editor.rproc(&["logs", "-f", "stream"]).start()?)
    });
}

#[test]
fn a_stopped_agent_does_not_hold_the_end_back() {
    let _alone = alone();
    if !is_development_cluster("stopping the agent by SIGSTOP") {
        return;
    }
    with_temp_ns("agent-stopped", |namespace| {
        let script = "echo ready; while [ ! -f /tmp/go ]; do sleep 0.05; done; echo last words; exit 8";
        let mut run = namespace.editor.run("program", script).start()?;
        run.wait_for_bytes(6)?;
        let agent = agent_of(&pod_uid(namespace, "program")?, None)?;
        signal(agent, Signal::STOP)?;
        namespace.in_container("program", "touch /tmp/go")?;
        let begin = Instant::now();
        until("a terminated container", Duration::from_secs(20), || {
            let pod = namespace.pod("program")?;
            Ok(!main_container(&pod)["state"]["terminated"].is_null())
        })?;
        let took = begin.elapsed();
        signal(agent, Signal::CONT)?;
        ensure!(took < Duration::from_secs(3), "the API showed the end after {took:?}");
        ensure!(main_container(&namespace.pod("program")?)["state"]["terminated"]["exitCode"] == 8);
        let finished = run.finish()?;
        ensure!(finished.expect_code(8)?.out() == "ready\nlast words\n", "{finished}");
        Ok(())
    });
}

#[test]
fn an_idle_agent_is_small() {
    let _alone = alone();
    if !is_development_cluster("measuring the agent") {
        return;
    }
    with_temp_ns("idle", |namespace| {
        let mut run = namespace
            .editor
            .run("idle", "echo ready; while [ ! -f /tmp/go ]; do sleep 0.1; done")
            .start()?;
        run.wait_for_bytes(6)?;
        let agent = agent_of(&pod_uid(namespace, "idle")?, None)?;
        let kibibytes = anonymous_memory(agent)? / 1024;
        println!("anonymous memory of an idle agent: {kibibytes} KiB");
        ensure!(kibibytes < 10 * 1024, "{kibibytes} KiB");
        namespace.in_container("idle", "touch /tmp/go")?;
        run.finish()?.expect_code(0)?;
        Ok(())
    });
}

fn main_container(pod: &Value) -> &Value {
    let containers = pod["status"]["containerStatuses"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    containers
        .iter()
        .find(|container| container["name"] == "main")
        .unwrap_or(&Value::Null)
}
