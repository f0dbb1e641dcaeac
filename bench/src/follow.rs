//! Following a program that writes lines of 100 bytes as fast as it can.

use anyhow::{Context, Result};
use remoteprocess_e2e::{Namespace, User};

use crate::cpu::Snapshot;
use crate::follower::Follower;
use crate::report::{median, table};
use crate::route::Route;
use crate::subject::{END, GATE};

/// Bytes that come before the measurement: connections stand, windows are open.
const WARM: usize = 1_000_000;

/// One contender's turn.
struct Turn {
    bytes: usize,
    seconds: f64,
    cpu: f64,
}

/// How the program writes.
#[derive(Clone, Copy)]
enum Writes {
    /// Each line by itself, as logs are written.
    Lines,
    /// Many lines at once, as by stdio into a pipe.
    Blocks,
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
        for (route, done) in Route::ALL.into_iter().zip(&mut turns) {
            let turn = take_turn(namespace, &admin, route, round, writes, size)?;
            eprintln!(
                "{}: {} bytes, {:.2} s, {:.2} s CPU",
                route.name(),
                turn.bytes,
                turn.seconds,
                turn.cpu
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

    fn block(self) -> usize {
        match self {
            Self::Lines => 100,
            Self::Blocks => 8192,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Blocks => "written in blocks of 8 KiB",
            Self::Lines => "one write(2) each",
        }
    }
}

fn take_turn(
    namespace: &Namespace,
    admin: &User,
    route: Route,
    round: usize,
    writes: Writes,
    size: usize,
) -> Result<Turn> {
    let name = format!("{}-{round}-{}", writes.prefix(), route as usize);
    let block = writes.block();
    let writer = [
        format!("--warm={WARM}"),
        format!("--bytes={size}"),
        format!("--block={block}"),
        format!("--gate={GATE}"),
        format!("--hold={END}"),
    ];
    let subject = route.subject(namespace, &name, &writer)?;
    let mut follower = Follower::start(route.client(admin, &name, &writer)?, WARM)?;
    follower.wait_warm()?;
    let before = Snapshot::take(&[follower.id()]);
    subject.open_gate()?;
    let progress = follower.wait_for(size);
    let cpu = before.until(&Snapshot::take(&[follower.id()]));
    drop(follower);
    subject.remove()?;
    let first = progress.first.context("nothing came behind the warm-up")?;
    Ok(Turn {
        bytes: progress.bytes(WARM),
        seconds: (progress.last - first).as_secs_f64(),
        cpu,
    })
}

fn describe(turns: &[Vec<Turn>; 4], megabytes: usize, writes: Writes, size: usize) -> String {
    let of = |turns: &[Turn], figure: fn(&Turn) -> f64| median(&turns.iter().map(figure).collect::<Vec<_>>());
    let speed = |turns: &[Turn]| of(turns, |turn| turn.bytes as f64 / turn.seconds / 1e6);
    let cost = |turns: &[Turn]| of(turns, |turn| turn.cpu / turn.bytes as f64 * 1e9);
    let (logs_speed, logs_cost) = (speed(&turns[2]), cost(&turns[2]));
    let rows = turns.iter().zip(Route::ALL).map(|(turns, route)| {
        let whole = turns.iter().filter(|turn| turn.bytes == size).count();
        vec![
            format!("`{}`", route.name()),
            format!("{:.1}", speed(turns)),
            format!("{:.1}×", speed(turns) / logs_speed),
            format!("{:.1}", cost(turns)),
            format!("1/{:.1}", logs_cost / cost(turns)),
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
        "## Following {megabytes} MB of 100-byte lines, {}\n\nFrom the first to the last byte at a client that has \
         connected and received 1 MB before. CPU: client, API server, etcd, kubelet, containerd, shims, operator, agent \
         and entrypoint, from /proc.\n\n{}",
        writes.title(),
        table(&header, &rows.collect::<Vec<_>>())
    )
}
