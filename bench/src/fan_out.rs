//! Many followers of one process.

use anyhow::{Context, Result};
use remoteprocess_e2e::{Namespace, User};

use crate::cpu::Snapshot;
use crate::delivery::{Delivery, compare};
use crate::follower::{Follower, Progress};
use crate::route::Route;
use crate::subject::{END, GATE};

/// How many follow.
const FOLLOWERS: usize = 50;
const WARM: usize = 100_000;
/// Through port-forwards it would be the API server that is measured; exec has one reader.
const ROUTES: [Route; 2] = [Route::Direct, Route::Logs];

/// Runs the rounds and describes them.
pub fn measure(namespace: &Namespace, rounds: usize, megabytes: usize) -> Result<String> {
    let admin = namespace.admin()?;
    // The first one fetches the certificate for all of them.
    admin.rproc(&["whoami"]).succeed()?;
    let size = megabytes * 1_000_000;
    let mut turns: [Vec<Delivery>; 2] = Default::default();
    for round in 0..rounds {
        for (route, done) in ROUTES.into_iter().zip(&mut turns) {
            let turn = take_turn(namespace, &admin, route, round, size)?;
            turn.announce(&format!("{FOLLOWERS} × {}", route.name()));
            done.push(turn);
        }
    }
    Ok(describe(&turns, megabytes))
}

fn take_turn(namespace: &Namespace, admin: &User, route: Route, round: usize, size: usize) -> Result<Delivery> {
    let name = format!("fan-out-{round}-{}", route as usize);
    let writer = [
        format!("--warm={WARM}"),
        format!("--bytes={size}"),
        "--block=8192".to_owned(),
        format!("--gate={GATE}"),
        format!("--hold={END}"),
    ];
    let subject = route.subject(namespace, &name, &writer)?;
    let mut followers = Vec::new();
    for _ in 0..FOLLOWERS {
        followers.push(Follower::start(route.client(admin, &name, &writer)?, WARM)?);
    }
    followers.iter_mut().try_for_each(Follower::wait_warm)?;
    let ids: Vec<u32> = followers.iter().map(Follower::id).collect();
    let before = Snapshot::take(&ids);
    subject.open_gate()?;
    let progress: Vec<Progress> = followers.iter().map(|follower| follower.wait_for(size)).collect();
    let cpu = before.until(&Snapshot::take(&ids));
    drop(followers);
    subject.remove()?;
    let first = progress.iter().filter_map(|progress| progress.first).min();
    let last = progress.iter().map(|progress| progress.last).max();
    let (first, last) = first.zip(last).context("nothing came behind the warm-up")?;
    Ok(Delivery {
        bytes: progress.iter().map(|progress| progress.bytes(WARM)).sum(),
        seconds: (last - first).as_secs_f64(),
        cpu,
        whole: progress.iter().filter(|progress| progress.bytes(WARM) == size).count(),
    })
}

fn describe(turns: &[Vec<Delivery>; 2], megabytes: usize) -> String {
    format!(
        "## {FOLLOWERS} followers of one process that writes {megabytes} MB\n\nAs many programs on the same node; from the \
         first byte at the first to the last byte at the last.\n\n{}",
        compare(["followers", "MB/s, all together"], &ROUTES, turns, FOLLOWERS)
    )
}
