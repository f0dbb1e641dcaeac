//! One turn of a measurement.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use clap::ValueEnum;
use rustix::pipe::{SpliceFlags, splice};
use rustix::time::{ClockId, clock_gettime};

use crate::client::{Face, curl};
use crate::cost;
use crate::pod::Pod;

/// Number of bytes before the measurement.
const WARM: usize = 1_000_000;
/// Number of lines before the measurement, and of measured lines.
const LINES: (usize, usize) = (10, 400);

struct Client(Child, ChildStdout);

impl Client {
    fn start(build: &Path, pod: &Pod, face: Face) -> Self {
        let mut client = match face {
            Face::Curl => curl(&pod.hello, pod.folder()),
            face => {
                let mut own = Command::new(build.join("examples/loopback"));
                own.args(["client", &pod.hello, name(face).as_str()]);
                own
            }
        };
        let mut client = client.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = client.stdout.take().unwrap();
        Self(client, stdout)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn name(face: Face) -> String {
    face.to_possible_value().unwrap().get_name().to_owned()
}

/// Follows lines of 100 bytes, with `block` bytes in each write.
pub(crate) fn follow(build: &Path, face: Face, megabytes: usize, block: usize, shows_threads: bool) {
    let bytes = megabytes * 1_000_000;
    let writer = [
        format!("--warm={WARM}"),
        format!("--bytes={bytes}"),
        format!("--block={block}"),
    ];
    let pod = Pod::start(build, &writer);
    let client = Client::start(build, &pod, face);
    let nowhere = File::create("/dev/null").unwrap();
    let drain = |goal: usize| {
        let mut begun = None;
        let mut left = goal;
        while left > 0 {
            let count = splice(&client.1, None, &nowhere, None, left.min(1 << 20), SpliceFlags::empty()).unwrap();
            assert!(count > 0, "the client has ended");
            begun.get_or_insert_with(Instant::now);
            left -= count;
        }
        begun.unwrap().elapsed().as_secs_f64()
    };
    drain(WARM);
    let parts = [
        ("agent", pod.agent.id()),
        ("operator", pod.operator.id()),
        ("client", client.0.id()),
    ];
    let before = parts.map(|(_, id)| (cost::process(id), cost::threads(id)));
    pod.open_gate();
    let seconds = drain(bytes);
    let mut sum = 0.0;
    let mut text = String::new();
    for ((name, id), (before, threads)) in parts.iter().zip(&before) {
        let each = |nanos: u64| nanos as f64 / bytes as f64;
        let own = each(cost::process(*id) - before);
        sum += own;
        text += &format!(", {name} {own:.2}");
        if shows_threads {
            let now = cost::threads(*id);
            let used = now.iter().enumerate().map(|(at, (name, nanos))| {
                let before = threads.get(at).map_or(0, |(_, nanos)| *nanos);
                format!("{name} {:.2}", each(nanos - before))
            });
            text += &format!(" ({})", used.collect::<Vec<_>>().join(", "));
        }
    }
    println!(
        "{}, {block} B writes: {:.1} MB/s, {sum:.2} ns CPU/B{text}",
        name(face),
        bytes as f64 / seconds / 1e6
    );
}

/// Measures the latency of single lines.
pub(crate) fn latency(build: &Path, face: Face) {
    let writer = [
        format!("--warm={}", LINES.0 * 100),
        format!("--bytes={}", LINES.1 * 100),
        "--pause=15000".to_owned(),
    ];
    let pod = Pod::start(build, &writer);
    let mut client = Client::start(build, &pod, face);
    let mut reader = BufReader::new(&mut client.1);
    let mut line = String::new();
    for _ in 0..LINES.0 {
        reader.read_line(&mut line).unwrap();
    }
    pod.open_gate();
    let mut found: Vec<f64> = (0..LINES.1)
        .map(|_| {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let now = clock_gettime(ClockId::Monotonic);
            let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
            let stamp: u64 = line.split(' ').next().unwrap().parse().unwrap();
            (now - stamp) as f64 / 1e6
        })
        .collect();
    found.sort_by(f64::total_cmp);
    let at = |part: f64| found[((found.len() - 1) as f64 * part) as usize];
    println!(
        "{}, latency: p50 {:.3} ms, p90 {:.3}, p99 {:.3}",
        name(face),
        at(0.5),
        at(0.9),
        at(0.99)
    );
}
