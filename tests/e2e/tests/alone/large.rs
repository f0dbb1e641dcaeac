//! Large output, long lines and stalled readers: memory stays small, and everything arrives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{
    Digested, Namespace, Pid, Program, agents_of, anonymous_memory, counting, glibc, is_development_cluster, is_long,
    operators, sha256, with_temp_ns,
};
use rustix::process::Signal;
use serde_json::json;

const MIB: u64 = 1024 * 1024;
/// The peak anonymous memory, in bytes, of all these processes together while `body` ran.
fn peak_memory<T>(pids: &[Pid], body: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = 0;
            while !is_over.load(Ordering::Relaxed) {
                peak = peak.max(pids.iter().filter_map(|pid| anonymous_memory(*pid).ok()).sum());
                thread::sleep(Duration::from_millis(5));
            }
            peak
        });
        let answer = body();
        is_over.store(true, Ordering::Relaxed);
        let peak = watch.join().expect("it does not panic");
        Ok((answer?, peak))
    })
}

/// A process that prints `ready`, waits for the file /tmp/go, then runs the command; returns the process of its agent.
fn gated(namespace: &Namespace, name: &str, command: &str) -> Result<Pid> {
    let script = format!("echo ready; while [ ! -f /tmp/go ]; do sleep 0.02; done; {command}");
    let spec = json!({"image": glibc(), "imagePullPolicy": "IfNotPresent", "command": ["bash", "-c", script]});
    namespace.apply(name, spec).succeed()?;
    namespace.wait_running(name)?;
    let pod = namespace.pod(name)?;
    let uid = pod["metadata"]["uid"].as_str().context("a pod has a uid")?;
    agents_of(uid)?.first().copied().context("an agent runs")
}

fn logs(namespace: &Namespace, name: &str) -> Program {
    namespace.editor.rproc(&["logs", "-f", name])
}

fn expect(digest: &Digested, expected: &[u8]) -> Result<()> {
    ensure!(digest.code == 0, "exit code {}: {}", digest.code, digest.stderr);
    ensure!(
        digest.bytes == expected.len() as u64,
        "{} bytes: {}",
        digest.bytes,
        digest.stderr
    );
    ensure!(digest.sha256 == sha256(expected), "other bytes");
    Ok(())
}

#[test]
fn a_line_of_100_megabytes_costs_no_memory() {
    if !is_development_cluster("measuring the memory of operator and agents") {
        return;
    }
    with_temp_ns("long-line", |namespace| {
        const BYTES: usize = 100_000_000;
        let operator = operators()?;
        let run = |name: &str, command: &str, expected: &[u8]| {
            let agent = gated(namespace, name, command)?;
            let pids = [&operator[..], &[agent]].concat();
            let (digest, peak) = peak_memory(&pids, || {
                namespace.in_container(name, "touch /tmp/go")?;
                logs(namespace, name).digest()
            })?;
            expect(&digest, expected)?;
            Ok::<_, anyhow::Error>(peak)
        };
        let expected = [b"ready\n", &counting(BYTES)[..]].concat();
        let lines = format!("seq 1 100000000 2>/dev/null | head -c {BYTES}");
        let before = run("before", &lines, &expected)?;
        let line = [b"ready\n", &vec![b'x'; BYTES][..]].concat();
        let long = run("line", &format!("head -c {BYTES} /dev/zero | tr '\\0' x"), &line)?;
        // A freshly started operator has not allocated its buffers yet.
        let usual = before.max(run("after", &lines, &expected)?);
        println!(
            "operator and agent: {} KiB with lines, {} KiB with one line",
            usual / 1024,
            long / 1024
        );
        ensure!(
            long <= usual + 8 * MIB,
            "{usual} bytes with lines, {long} with one line"
        );
        Ok(())
    });
}

#[test]
fn much_output_passes_through_a_small_agent() {
    with_temp_ns("small-agent", |namespace| {
        let bytes: usize = if is_long() { 1 << 30 } else { 256 << 20 };
        let script = format!("seq 1 200000000 2>/dev/null | head -c {bytes}");
        let spec = json!({
            "image": glibc(), "imagePullPolicy": "IfNotPresent", "command": ["bash", "-c", script],
            "agent": {"resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "64Mi"}}},
            "output": {"spoolSize": "128Mi"},
        });
        namespace.apply("small", spec).succeed()?;
        let digest = logs(namespace, "small").digest()?;
        expect(&digest, &counting(bytes))?;
        let pod = namespace.pod("small")?;
        let agent = &pod["spec"]["initContainers"][0];
        ensure!(agent["resources"]["limits"]["memory"] == "64Mi", "{agent:#}");
        let status = &pod["status"]["initContainerStatuses"][0];
        ensure!(
            status["name"] == "rproc-agent" && status["restartCount"] == 0,
            "{status:#}"
        );
        let ended = namespace.wait_finished("small")?["status"].clone();
        let output = &ended["attempts"][0]["output"];
        ensure!(
            output["sealed"] == true && output["stdout"]["sha256"] == digest.sha256.as_str(),
            "{ended:#}"
        );
        Ok(())
    });
}

#[test]
fn readers_that_stand_still_cost_the_others_nothing() {
    if !is_development_cluster("measuring the operator's memory") {
        return;
    }
    with_temp_ns("stalled", |namespace| {
        const GOOD: usize = 9;
        // The number of reading followers that use the archive varies: that alone is worth some 30 MB.
        const STILL: usize = 5;
        let bytes = if is_long() { 200_000_000 } else { 60_000_000 };
        let expected = [b"ready\n", &counting(bytes)[..]].concat();
        let command = format!("seq 1 100000000 2>/dev/null | head -c {bytes}");
        let operator = operators()?;
        // The first call gets the certificate for all of them.
        namespace.editor.rproc(&["whoami"]).succeed()?;
        let together = |name: &str| {
            peak_memory(&operator, || {
                let begin = Instant::now();
                thread::scope(|scope| {
                    let readers: Vec<_> = (0..GOOD)
                        .map(|_| scope.spawn(|| logs(namespace, name).digest()))
                        .collect();
                    namespace.in_container(name, "touch /tmp/go")?;
                    for reader in readers {
                        expect(&reader.join().expect("it does not panic")?, &expected)?;
                    }
                    Ok(begin.elapsed())
                })
            })
        };
        gated(namespace, "alone", &command)?;
        let (alone, usual) = together("alone")?;

        gated(namespace, "beside", &command)?;
        let mut still = Vec::new();
        for _ in 0..STILL {
            let mut reader = logs(namespace, "beside").within(Duration::from_secs(300)).start()?;
            reader.wait_for_bytes(1)?;
            reader.signal(Signal::STOP)?;
            still.push(reader);
        }
        let (beside, peak) = together("beside")?;
        println!(
            "nine readers: {alone:?} alone, {beside:?} beside {STILL} that stand still ({:.0} %); operator {} KiB, {} KiB",
            alone.as_secs_f64() / beside.as_secs_f64() * 100.0,
            usual / 1024,
            peak / 1024
        );
        ensure!(
            peak <= usual + STILL as u64 * 16 * MIB,
            "{usual} bytes alone, {peak} beside {STILL} stalled readers"
        );
        for reader in still {
            reader.signal(Signal::CONT)?;
            let finished = reader.finish()?;
            ensure!(finished.stdout == expected, "{} bytes", finished.stdout.len());
        }
        Ok(())
    });
}
