//! Following a program that writes lines of 100 bytes as fast as it can.

use anyhow::{Context, Result};
use remoteprocess_e2e::{Namespace, User};

use crate::cpu::Snapshot;
use crate::delivery::{Delivery, compare};
use crate::follower::Follower;
use crate::route::Route;
use crate::subject::{END, GATE};

/// Number of bytes before the measurement, so that connections are established and windows are open.
const WARM: usize = 1_000_000;

/// How the program writes.
#[derive(Clone, Copy)]
enum Writes {
    /// Each line by itself, as logs are written.
    Lines,
    /// Many lines at once, as by stdio into a pipe.
    Blocks,
}

/// Runs the rounds and describes them.
pub(crate) fn measure(namespace: &Namespace, rounds: usize, megabytes: usize) -> Result<String> {
    let lines = measure_writes(namespace, rounds, megabytes, Writes::Lines)?;
    let blocks = measure_writes(namespace, rounds, megabytes, Writes::Blocks)?;
    Ok(format!("{lines}\n{blocks}"))
}

fn measure_writes(namespace: &Namespace, rounds: usize, megabytes: usize, writes: Writes) -> Result<String> {
    let admin = namespace.admin()?;
    let size = megabytes * 1_000_000;
    let mut turns: [Vec<Delivery>; 4] = Default::default();
    for round in 0..rounds {
        for (route, done) in Route::ALL.into_iter().zip(&mut turns) {
            let turn = take_turn(namespace, &admin, route, round, writes, size)?;
            turn.announce(route.name());
            done.push(turn);
        }
    }
    Ok(describe(&turns, megabytes, writes))
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
) -> Result<Delivery> {
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
    let bytes = progress.bytes(WARM);
    Ok(Delivery {
        bytes,
        seconds: (progress.last - first).as_secs_f64(),
        cpu,
        whole: usize::from(bytes == size),
    })
}

fn describe(turns: &[Vec<Delivery>; 4], megabytes: usize, writes: Writes) -> String {
    format!(
        "## Following {megabytes} MB of 100-byte lines, {}\n\nFrom the first to the last byte at a client that has \
         connected and received 1 MB before. CPU: client, API server, etcd, kubelet, containerd, shims, operator, agent \
         and entrypoint, from /proc.\n\n{}",
        writes.title(),
        compare(["follower", "MB/s"], &Route::ALL, turns, 1)
    )
}
