//! A client or an agent dies in mid-stream, and neither the output nor the exit code shows it.

use std::time::Duration;

use anyhow::ensure;
use remoteprocess_e2e::{
    SlowStream, agent_of, anonymous_memory, counting, glibc, is_development_cluster, sha256, signal, with_temp_ns,
};
use rustix::process::Signal;

#[test]
fn the_agent_is_killed_again_and_again() {
    if !is_development_cluster("killing the agent in mid-stream") {
        return;
    }
    with_temp_ns("agent-killed", |namespace| {
        const BYTES: usize = 200_000_000;
        // It runs until the last kill: an agent whose program has ended and whose output is archived exits.
        let wait = "while [ ! -f /tmp/go ]; do sleep 0.05; done";
        let script = format!("seq 1 100000000 2>/dev/null | head -c {BYTES}; {wait}; exit 9");
        let mut run = namespace
            .editor
            .run_image(glibc(), "victim", &["bash", "-c", &script])
            .within(Duration::from_secs(300))
            .start()?;
        let uid = namespace.pod_uid("victim")?;
        let mut last = None;
        for kills in 1..=5 {
            run.wait_for_bytes(kills * 25_000_000)?;
            let agent = agent_of(&uid, last)?;
            signal(agent, Signal::KILL)?;
            last = Some(agent);
        }
        namespace
            .kubectl(&[
                "exec",
                &namespace.pod_name("victim")?,
                "--container=main",
                "--",
                "bash",
                "-c",
                "> /tmp/go",
            ])
            .succeed()?;
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

#[test]
fn the_client_is_stopped_for_a_while() {
    with_temp_ns("client-stopped", |namespace| {
        let mut run = SlowStream::start(namespace)?;
        run.wait_for_bytes(SlowStream::PART)?;
        run.signal(Signal::STOP)?;
        namespace.wait_finished("stream")?;
        run.signal(Signal::CONT)?;
        SlowStream::expect_whole(run)
    });
}

#[test]
fn a_client_that_is_killed_changes_nothing() {
    with_temp_ns("client-killed", |namespace| {
        let mut run = SlowStream::start(namespace)?;
        run.wait_for_bytes(SlowStream::PART)?;
        run.signal(Signal::KILL)?;
        ensure!(run.finish()?.code == 137);
        SlowStream::expect_whole(namespace.editor.rproc(&["logs", "-f", "stream"]).start()?)
    });
}

#[test]
fn an_idle_agent_is_small() {
    if !is_development_cluster("measuring the agent") {
        return;
    }
    with_temp_ns("idle", |namespace| {
        let mut run = namespace
            .editor
            .run("idle", "echo ready; while [ ! -f /tmp/go ]; do sleep 0.1; done")
            .start()?;
        run.wait_for_bytes(6)?;
        let agent = agent_of(&namespace.pod_uid("idle")?, None)?;
        let kibibytes = anonymous_memory(agent)? / 1024;
        println!("anonymous memory of an idle agent: {kibibytes} KiB");
        ensure!(kibibytes < 10 * 1024, "{kibibytes} KiB");
        namespace.in_container("idle", "touch /tmp/go")?;
        run.finish()?.expect_code(0)?;
        Ok(())
    });
}
