//! What a stalled follower costs the others.

use anyhow::Result;
use remoteprocess_e2e::Namespace;

use crate::crowd::Crowd;
use crate::delivery::Delivery;
use crate::report::{median, table};
use crate::route::Route;

const GOOD: usize = 9;
/// Number of stalled followers, and the name of the case.
const TURNS: [(usize, &str); 2] = [(0, "alone"), (1, "beside one that stands still")];

/// Runs the rounds and describes them.
pub(crate) fn measure(namespace: &Namespace, rounds: usize, megabytes: usize) -> Result<String> {
    let admin = namespace.admin()?;
    admin.rproc(&["whoami"]).succeed()?;
    let mut turns: [Vec<Delivery>; 2] = Default::default();
    for round in 0..rounds {
        for ((stalled, called), done) in TURNS.into_iter().zip(&mut turns) {
            let crowd = Crowd { good: GOOD, stalled };
            let name = format!("stalled-{round}-{stalled}");
            let turn = crowd.follow(namespace, &admin, Route::Direct, &name, megabytes * 1_000_000)?;
            turn.announce(&format!("{GOOD} followers {called}"));
            done.push(turn);
        }
    }
    let speed = |turns: &[Delivery]| {
        let each = turns.iter().map(|turn| turn.bytes as f64 / turn.seconds / 1e6);
        median(&each.collect::<Vec<_>>())
    };
    let alone = speed(&turns[0]);
    let rows = turns.iter().zip(TURNS).map(|(turns, (_, called))| {
        let whole: usize = turns.iter().map(|turn| turn.whole).sum();
        vec![
            called.to_owned(),
            format!("{:.1}", speed(turns)),
            format!("{:.0} %", speed(turns) / alone * 100.0),
            format!("{whole} of {}", turns.len() * GOOD),
        ]
    });
    let header = [
        "nine good followers",
        "MB/s, all together",
        "of their speed alone",
        "whole",
    ];
    Ok(format!(
        "## A follower that stands still, beside {GOOD} good ones of a process that writes {megabytes} MB\n\n{}",
        table(&header, &rows.collect::<Vec<_>>())
    ))
}
