//! How fast output comes through the real agent, and what it costs: `cargo bench -p remoteprocess-agent`.
//!
//! The home is in this process; a line for each kind of output, to be read by a person.

// The parts of the tests that are not needed here.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../tests/agent/pod.rs"]
mod pod;
#[path = "../tests/agent/relay.rs"]
mod relay;
#[path = "../tests/agent/wait.rs"]
mod wait;

use std::time::Instant;

use pod::{Options, Pod};
use relay::TestRelay;
use wait::{in_time, until};

/// Clock ticks of `/proc/<pid>/stat` in nanoseconds.
const TICK_NANOS: f64 = 1e7;

async fn measure(what: &str, script: &str) {
    let mut relay = TestRelay::start().await;
    let options = Options {
        spool_size: 64 << 20,
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    pod.shell(script);
    let (mut begun, mut chunks, mut threads, mut anonymous) = (None, 0_u64, vec![], 0);
    let pid = pod.agent.id();
    let archive = in_time(
        what,
        relay.be_home(|_| {
            begun.get_or_insert_with(Instant::now);
            chunks += 1;
            if chunks % 64 == 0 {
                threads = cpu_of_threads(pid);
                anonymous = anonymous.max(anonymous_kibibytes(pid));
            }
        }),
    )
    .await;
    let (seconds, bytes) = (begun.unwrap().elapsed().as_secs_f64(), archive.total() as f64);
    let ticks: u64 = threads.iter().map(|(_, user, system)| user + system).sum();
    println!(
        "{what}: {:.0} MB/s, {:.2} ns of the agent's CPU per byte, at most {anonymous} KiB of \
         anonymous memory, {chunks} chunks; (thread, user, system) {threads:?}",
        bytes / 1e6 / seconds,
        ticks as f64 * TICK_NANOS / bytes,
    );
}

/// Name, and ticks of the CPU in user and system mode.
fn cpu_of_threads(pid: u32) -> Vec<(String, u64, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let used = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<u64> = rest.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
        let name = name.split_once('(')?.1.to_owned();
        Some((name, *fields.get(11)?, *fields.get(12)?))
    });
    used.collect()
}

fn anonymous_kibibytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[tokio::main]
async fn main() {
    measure("1 GB in blocks", "head -c 1000000000 /dev/zero").await;
    measure(
        "100 MB in lines of 100 bytes, buffered",
        "yes $(printf '%099d' 0) | head -c 100000000",
    )
    .await;
    measure("seq 1 2000000", "seq 1 2000000").await;
    measure(
        "a write for each of 500000 lines",
        "i=0; while [ $i -lt 500000 ]; do echo line $i; i=$((i+1)); done",
    )
    .await;
    measure(
        "20000 lines in turn on both streams",
        "for i in $(seq 1 10000); do echo o$i; echo e$i >&2; done",
    )
    .await;
}
