//! Measurements, to be read by a person: `cargo test --release -p remoteprocess-agent --test agent -- --ignored --nocapture speed`.

use std::time::Instant;

use super::in_time;
use super::pod::{Options, Pod};
use super::relay::TestRelay;

async fn measure(what: &str, script: &str) {
    let mut relay = TestRelay::start().await;
    let options = Options {
        spool_size: 64 << 20,
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    pod.shell(script);
    let (mut begun, mut calls, mut threads) = (None, 0_u64, String::new());
    let pid = pod.agent.id();
    let archive = in_time(
        what,
        relay.be_home(|_| {
            begun.get_or_insert_with(Instant::now);
            calls += 1;
            if calls % 64 == 0 {
                threads = cpu_of_threads(pid);
            }
        }),
    )
    .await;
    let (seconds, bytes) = (begun.unwrap().elapsed().as_secs_f64(), archive.total());
    println!(
        "{what}: {:.0} MB/s, {bytes} bytes in {calls} chunks; ticks of CPU: {threads}",
        bytes as f64 / 1e6 / seconds,
    );
}

fn cpu_of_threads(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let used = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<u64> = rest.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
        let name = name.split_once('(')?.1.to_owned();
        Some(format!("{name} {}+{}", fields.get(11)?, fields.get(12)?))
    });
    used.collect::<Vec<_>>().join(", ")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn speed_of_bulk_and_of_lines() {
    measure("1 GB in bulk", "head -c 1000000000 /dev/zero").await;
    measure(
        "100 MB in lines of 100 bytes, buffered",
        "yes $(printf '%099d' 0) | head -c 100000000",
    )
    .await;
    measure("seq 1 2000000", "seq 1 2000000").await;
    measure(
        "20000 unbuffered lines on both streams",
        "for i in $(seq 1 10000); do echo o$i; echo e$i >&2; done",
    )
    .await;
}
