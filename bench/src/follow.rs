//! Following a program that writes lines of 100 bytes as fast as it can.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use remoteprocess_e2e::{
    Namespace, Program, RELAY_SERVICE, RELEASE_NAMESPACE, User, glibc, kubectl, until, until_some,
};
use serde_json::json;

use crate::cpu::Snapshot;
use crate::report::{median, table};

/// How long a follower may stand still before it counts as stalled.
const STALL: Duration = Duration::from_secs(20);

const CONTENDERS: [&str; 4] = [
    "rproc logs -f, direct",
    "rproc logs -f, port-forward",
    "kubectl logs -f",
    "kubectl exec",
];

/// One contender's turn.
struct Turn {
    bytes: usize,
    seconds: f64,
    cpu: f64,
}

/// How the program writes.
#[derive(Clone, Copy)]
enum Writes {
    /// Many lines at once, as into a pipe by stdio.
    Blocks,
    /// Each line by itself, as logs are written.
    Lines,
}

/// Runs the rounds and describes them.
pub fn measure(namespace: &Namespace, rounds: usize, megabytes: usize) -> Result<String> {
    let lines = measure_writes(namespace, rounds, megabytes, Writes::Lines)?;
    let blocks = measure_writes(namespace, rounds, megabytes, Writes::Blocks)?;
    Ok(format!("{lines}\n{blocks}"))
}

fn measure_writes(namespace: &Namespace, rounds: usize, megabytes: usize, writes: Writes) -> Result<String> {
    let admin = namespace.admin()?;
    let size = megabytes * 1_000_000;
    let mut turns: [Vec<Turn>; 4] = Default::default();
    for round in 0..rounds {
        for (contender, done) in turns.iter_mut().enumerate() {
            let name = format!("{}-{round}-{contender}", writes.prefix());
            let turn = take_turn(namespace, &admin, contender, &name, writes, size)?;
            eprintln!(
                "{}: {} bytes, {:.2} s, {:.2} s CPU",
                CONTENDERS[contender], turn.bytes, turn.seconds, turn.cpu
            );
            done.push(turn);
        }
    }
    Ok(describe(&turns, megabytes, writes, size))
}

impl Writes {
    fn prefix(self) -> &'static str {
        match self {
            Self::Blocks => "blocks",
            Self::Lines => "lines",
        }
    }

    /// A script that makes the lines and waits, and one that writes them.
    fn scripts(self, lines: usize) -> (String, String) {
        let make = format!("yes {} | head -n {lines}", "x".repeat(99));
        match self {
            Self::Blocks => ("true".to_owned(), make),
            Self::Lines => (
                format!("{make} > /tmp/lines"),
                "dd if=/tmp/lines bs=100 2>/dev/null".to_owned(),
            ),
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Blocks => "written in blocks (`yes | head`)",
            Self::Lines => "each written by itself (`dd bs=100`)",
        }
    }
}

fn take_turn(
    namespace: &Namespace,
    admin: &User,
    contender: usize,
    name: &str,
    writes: Writes,
    size: usize,
) -> Result<Turn> {
    let gate = "while [ ! -f /tmp/go ]; do sleep 0.02; done";
    let hold = "while [ ! -f /tmp/end ]; do sleep 0.1; done";
    let (make, write) = writes.scripts(size / 100);
    let script = match contender {
        3 => format!("{make}; touch /tmp/made; {hold}"),
        _ => format!("{make}; touch /tmp/made; {gate}; {write}; {hold}"),
    };
    let pod = match contender {
        0 | 1 => process(namespace, name, &script)?,
        _ => pod(namespace, name, &script)?,
    };
    let touch = |file: &str| {
        namespace
            .kubectl(&["exec", &pod, "--container=main", "--", "touch", file])
            .succeed()
    };
    until("the lines", Duration::from_secs(60), || {
        let made = ["exec", &pod, "--container=main", "--", "test", "-f", "/tmp/made"];
        Ok(namespace.kubectl(&made).finish()?.code == 0)
    })?;
    let follower = match contender {
        0 => admin.rproc(&["logs", "-f", name, "--server", &relay()?]),
        1 => admin.rproc(&["logs", "-f", name]),
        2 => admin.kubectl(&["logs", "-f", name]),
        _ => admin.kubectl(&["exec", name, "--", "bash", "-c", &format!("{gate}; {write}; {hold}")]),
    };
    let turn = follow(follower, size, || touch("/tmp/go"));
    touch("/tmp/end")?;
    namespace
        .kubectl(&["delete", "pod", &pod, "--grace-period=1"])
        .succeed()?;
    turn
}

fn follow(follower: Program, size: usize, open_gate: impl Fn() -> Result<String>) -> Result<Turn> {
    let follower = follower.within(Duration::from_secs(600)).start()?;
    // It has connected once it sleeps on the stream; the figures begin at the first byte anyhow.
    let before = Snapshot::take(Some(follower.id()));
    open_gate()?;
    until(
        "the first byte",
        Duration::from_secs(60),
        || Ok(follower.received() > 0),
    )?;
    let begin = Instant::now();
    let mut progress = (0, begin);
    while follower.received() < size && progress.1.elapsed() < STALL {
        if follower.received() > progress.0 {
            progress = (follower.received(), Instant::now());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let cpu = before.until(&Snapshot::take(Some(follower.id())));
    Ok(Turn {
        bytes: follower.received(),
        seconds: (progress.1 - begin).as_secs_f64(),
        cpu,
    })
}

fn relay() -> Result<String> {
    let address = kubectl([
        "get",
        "service",
        RELAY_SERVICE,
        "--output=jsonpath={.spec.clusterIP}",
        "--namespace",
    ])
    .arg(RELEASE_NAMESPACE)
    .succeed()?;
    Ok(format!("{address}:8443"))
}

fn process(namespace: &Namespace, name: &str, script: &str) -> Result<String> {
    let spec = json!({"image": glibc(), "imagePullPolicy": "IfNotPresent", "command": ["bash", "-c", script]});
    namespace.apply(name, spec).succeed()?;
    namespace.wait_running(name)?;
    let pod = namespace.pod(name)?;
    Ok(pod["metadata"]["name"].as_str().context("a pod has a name")?.to_owned())
}

fn pod(namespace: &Namespace, name: &str, script: &str) -> Result<String> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "main", "image": glibc(), "imagePullPolicy": "IfNotPresent", "command": ["bash", "-c", script],
        }]},
    });
    namespace
        .kubectl(&["create", "--filename=-"])
        .input(pod.to_string())
        .succeed()?;
    until_some("a running pod", Duration::from_secs(60), || {
        let phase = namespace
            .kubectl(&["get", "pod", name, "--output=jsonpath={.status.phase}"])
            .succeed()?;
        Ok((phase == "Running").then(|| name.to_owned()))
    })
}

fn describe(turns: &[Vec<Turn>; 4], megabytes: usize, writes: Writes, size: usize) -> String {
    let speed = |turns: &[Turn]| {
        median(
            &turns
                .iter()
                .map(|turn| turn.bytes as f64 / turn.seconds / 1e6)
                .collect::<Vec<_>>(),
        )
    };
    let cost = |turns: &[Turn]| {
        median(
            &turns
                .iter()
                .map(|turn| turn.cpu / turn.bytes as f64 * 1e9)
                .collect::<Vec<_>>(),
        )
    };
    let (logs_speed, logs_cost) = (speed(&turns[2]), cost(&turns[2]));
    let rows = turns.iter().zip(CONTENDERS).map(|(turns, name)| {
        let whole = turns.iter().filter(|turn| turn.bytes == size).count();
        vec![
            format!("`{name}`"),
            format!("{:.1}", speed(turns)),
            format!("{:.1}×", speed(turns) / logs_speed),
            format!("{:.1}", cost(turns)),
            format!("{:.2}×", cost(turns) / logs_cost),
            format!("{whole} of {}", turns.len()),
        ]
    });
    let header = [
        "follower",
        "MB/s",
        "to kubectl logs",
        "CPU ns per byte",
        "to kubectl logs",
        "whole",
    ];
    format!(
        "## Following {megabytes} MB of 100-byte lines, {}\n\nFrom the first to the last byte at the client. CPU: client, API \
         server, etcd, kubelet, containerd, shims, operator, agent and entrypoint, from /proc.\n\n{}",
        writes.title(),
        table(&header, &rows.collect::<Vec<_>>())
    )
}
