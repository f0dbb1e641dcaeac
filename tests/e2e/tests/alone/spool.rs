//! The output is not archived and the spool is full: each policy works as documented, and dropped output is named and
//! counted.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use remoteprocess_e2e::{
    Namespace, counting, glibc, is_development_cluster, is_long, scale_operator, sha256, until, with_temp_ns,
};
use serde_json::{Value, json};

/// Number of bytes before the gate.
const BEFORE: usize = 100_000;

struct Process {
    name: &'static str,
    policy: &'static str,
}

const BLOCK: Process = Process {
    name: "block",
    policy: "Block",
};
const AUTO: Process = Process {
    name: "auto",
    policy: "Auto",
};
const DROP: Process = Process {
    name: "drop",
    policy: "DropOldest",
};

impl Process {
    /// Writes a little, waits for the file /tmp/go, writes the rest and ends with 7.
    fn start(&self, namespace: &Namespace, bytes: usize) -> Result<()> {
        let script = format!(
            "seq 1 200000000 2>/dev/null | {{ head -c {BEFORE}; while [ ! -f /tmp/go ]; do sleep 0.02; done; \
             head -c {}; }}; exit 7",
            bytes - BEFORE
        );
        let spec = json!({
            "image": glibc(), "imagePullPolicy": "IfNotPresent", "command": ["bash", "-c", script],
            "output": {"spoolSize": "8Mi", "whenFull": self.policy, "echo": "None"},
        });
        namespace.apply(self.name, spec).succeed()?;
        namespace.wait_running(self.name).map(drop)
    }

    fn exit_code(&self, namespace: &Namespace) -> Result<Value> {
        let pod = namespace.pod(self.name)?;
        Ok(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].clone())
    }

    fn wait_ended(&self, namespace: &Namespace, seconds: u64) -> Result<()> {
        let what = format!("the end of {}", self.name);
        until(&what, Duration::from_secs(seconds), || {
            Ok(self.exit_code(namespace)? == 7)
        })
    }

    /// Compares what a reader receives and is told with what was written and with the status; returns the number of
    /// lost bytes.
    fn check(&self, namespace: &Namespace, written: &[u8]) -> Result<usize> {
        let status = namespace.wait_finished(self.name)?["status"].clone();
        ensure!(status["exitCode"] == 7, "{status:#}");
        let logs = namespace.editor.rproc(&["logs", "-f", self.name]).finish()?;
        let gaps = gaps(&logs.err())?;
        let (mut left, mut next, mut lost) = (Vec::new(), 0, 0);
        for (from, to) in gaps {
            ensure!(
                next <= from && from < to && to <= written.len(),
                "{from} to {to}: {}",
                logs.err()
            );
            left.extend_from_slice(&written[next..from]);
            (next, lost) = (to, lost + to - from);
        }
        left.extend_from_slice(&written[next..]);
        ensure!(
            logs.stdout.len() == left.len(),
            "{} of {} bytes: {}",
            logs.stdout.len(),
            left.len(),
            logs.err()
        );
        ensure!(logs.stdout == left, "other bytes");
        let output = &status["attempts"][0]["output"]["stdout"];
        ensure!(output["bytes"] == written.len(), "{status:#}");
        ensure!(
            output["lostBytes"].as_u64().unwrap_or_default() == lost as u64,
            "lost {lost}: {status:#}"
        );
        // Dropped output was hashed before.
        ensure!(output["sha256"] == sha256(written), "{status:#}");
        logs.expect_code(if lost == 0 { 7 } else { 125 })?;
        Ok(lost)
    }
}

/// `rproc: bytes FROM to TO of stdout were dropped because …`
fn gaps(said: &str) -> Result<Vec<(usize, usize)>> {
    let ranges = said.lines().filter_map(|line| line.strip_prefix("rproc: bytes "));
    let gap = |range: &str| {
        let words: Vec<&str> = range.split(' ').collect();
        ensure!(words[1] == "to" && words.get(4) == Some(&"stdout"), "{range}");
        Ok((words[0].parse()?, words[2].parse()?))
    };
    ranges.map(gap).collect()
}

#[test]
fn each_policy_is_obeyed_while_the_output_is_not_archived() {
    if !is_development_cluster("running without an operator for a while") {
        return;
    }
    with_temp_ns("when-full", |namespace| {
        let bytes: usize = if is_long() { 1 << 30 } else { 64 << 20 };
        for process in [&BLOCK, &AUTO, &DROP] {
            process.start(namespace, bytes)?;
        }
        let away = without_operator(namespace);
        // In any case: the other tests need it.
        scale_operator(1)?;
        away?;
        let written = counting(bytes);
        BLOCK.wait_ended(namespace, 120)?;
        ensure!(BLOCK.check(namespace, &written)? == 0);
        for process in [&AUTO, &DROP] {
            let lost = process.check(namespace, &written)?;
            println!("{}: {lost} of {bytes} bytes lost", process.name);
            // The spool holds 8 MiB of it.
            ensure!(lost >= bytes - (9 << 20), "{} lost {lost} bytes", process.name);
        }
        Ok(())
    });
}

fn without_operator(namespace: &Namespace) -> Result<()> {
    scale_operator(0)?;
    let begin = Instant::now();
    for process in [&BLOCK, &AUTO] {
        namespace.in_container(process.name, "touch /tmp/go")?;
    }
    AUTO.wait_ended(namespace, 90)?;
    let took = begin.elapsed();
    ensure!(
        took > Duration::from_secs(25),
        "Auto has dropped after {took:?}, not after 30 s"
    );
    // Last, because an agent waits for the operator for at most 30 s after the end.
    namespace.in_container(DROP.name, "touch /tmp/go")?;
    DROP.wait_ended(namespace, 20)?;
    ensure!(BLOCK.exit_code(namespace)?.is_null(), "Block lets nobody end");
    Ok(())
}
