//! Many followers of one process.

use anyhow::{Context, Result};
use remoteprocess_e2e::{Namespace, User};

use crate::cpu::Snapshot;
use crate::follower::{Follower, Progress};
use crate::report::{median, table};
use crate::route::Route;
use crate::subject::{END, GATE};

/// How many follow.
const FOLLOWERS: usize = 50;
const WARM: usize = 100_000;
/// Through port-forwards it would be the API server that is measured; exec has one reader.
const ROUTES: [Route; 2] = [Route::Direct, Route::Logs];

struct Turn {
    bytes: usize,
    seconds: f64,
    cpu: f64,
    whole: usize,
}

/// Runs the rounds and describes them.
pub fn measure(namespace: &Namespace, rounds: usize, megabytes: usize) -> Result<String> {
    let admin = namespace.admin()?;
    // The first one fetches the certificate for all of them.
    admin.rproc(&["whoami"]).succeed()?;
    let size = megabytes * 1_000_000;
    let mut turns: [Vec<Turn>; 2] = Default::default();
    for round in 0..rounds {
        for (route, done) in ROUTES.into_iter().zip(&mut turns) {
            let turn = take_turn(namespace, &admin, route, round, size)?;
            eprintln!(
                "{FOLLOWERS} × {}: {} bytes, {:.2} s, {:.2} s CPU",
                route.name(),
                turn.bytes,
                turn.seconds,
                turn.cpu
            );
            done.push(turn);
        }
    }
    Ok(describe(&turns, megabytes))
}

fn take_turn(namespace: &Namespace, admin: &User, route: Route, round: usize, size: usize) -> Result<Turn> {
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
    Ok(Turn {
        bytes: progress.iter().map(|progress| progress.bytes(WARM)).sum(),
        seconds: (last - first).as_secs_f64(),
        cpu,
        whole: progress.iter().filter(|progress| progress.bytes(WARM) == size).count(),
    })
}

fn describe(turns: &[Vec<Turn>; 2], megabytes: usize) -> String {
    let of = |turns: &[Turn], figure: fn(&Turn) -> f64| median(&turns.iter().map(figure).collect::<Vec<_>>());
    let speed = |turns: &[Turn]| of(turns, |turn| turn.bytes as f64 / turn.seconds / 1e6);
    let cost = |turns: &[Turn]| of(turns, |turn| turn.cpu / turn.bytes as f64 * 1e9);
    let (logs_speed, logs_cost) = (speed(&turns[1]), cost(&turns[1]));
    let rows = turns.iter().zip(ROUTES).map(|(turns, route)| {
        let whole: usize = turns.iter().map(|turn| turn.whole).sum();
        vec![
            format!("`{}`", route.name()),
            format!("{:.1}", speed(turns)),
            format!("{:.1}×", speed(turns) / logs_speed),
            format!("{:.1}", cost(turns)),
            format!("1/{:.1}", logs_cost / cost(turns)),
            format!("{whole} of {}", turns.len() * FOLLOWERS),
        ]
    });
    let header = [
        "followers",
        "MB/s, all together",
        "to kubectl logs",
        "CPU ns per byte",
        "to kubectl logs",
        "whole",
    ];
    format!(
        "## {FOLLOWERS} followers of one process that writes {megabytes} MB\n\nAs many programs on the same node; from the \
         first byte at the first to the last byte at the last.\n\n{}",
        table(&header, &rows.collect::<Vec<_>>())
    )
}
