//! Many followers of one process, beside as many of the kubelet's log.

use anyhow::Result;
use remoteprocess_e2e::Namespace;

use crate::crowd::Crowd;
use crate::delivery::{Delivery, compare};
use crate::route::Route;

/// Number of followers.
const FOLLOWERS: usize = 50;
/// Port-forwards would measure the API server, and exec has one reader.
const ROUTES: [Route; 2] = [Route::Direct, Route::Logs];

/// Runs the rounds and describes them.
pub(crate) fn measure(namespace: &Namespace, rounds: usize, megabytes: usize) -> Result<String> {
    let admin = namespace.admin()?;
    // The first call gets the certificate for all of them.
    admin.rproc(&["whoami"]).succeed()?;
    let crowd = Crowd {
        good: FOLLOWERS,
        stalled: 0,
    };
    let mut turns: [Vec<Delivery>; 2] = Default::default();
    for round in 0..rounds {
        for (route, done) in ROUTES.into_iter().zip(&mut turns) {
            let name = format!("fan-out-{round}-{}", route as usize);
            let turn = crowd.follow(namespace, &admin, route, &name, megabytes * 1_000_000)?;
            turn.announce(&format!("{FOLLOWERS} × {}", route.name()));
            done.push(turn);
        }
    }
    Ok(format!(
        "## {FOLLOWERS} followers of one process that writes {megabytes} MB\n\nAs many programs on the same node; from the \
         first byte at the first to the last byte at the last.\n\n{}",
        compare(["followers", "MB/s, all together"], &ROUTES, &turns, FOLLOWERS)
    ))
}
