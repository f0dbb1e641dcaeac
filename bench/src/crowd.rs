//! Many followers of one process at once.

use anyhow::{Context, Result};
use remoteprocess_e2e::{Namespace, Pid, User, signal};
use rustix::process::Signal;

use crate::cpu::Snapshot;
use crate::delivery::Delivery;
use crate::follower::{Follower, Progress};
use crate::route::Route;
use crate::subject::{END, GATE};

/// Number of bytes before the measurement, so that connections are established.
const WARM: usize = 100_000;

/// The followers.
#[derive(Clone, Copy)]
pub(crate) struct Crowd {
    /// Followers that read all the time; only these are measured.
    pub good: usize,
    /// Followers that stop reading after the warm-up.
    pub stalled: usize,
}

impl Crowd {
    /// Runs followers of a process called `name` that writes `size` bytes in blocks, each follower a program of its
    /// own; measures from the first byte at the first follower to the last byte at the last.
    pub(crate) fn follow(
        self,
        namespace: &Namespace,
        user: &User,
        route: Route,
        name: &str,
        size: usize,
    ) -> Result<Delivery> {
        let writer = [
            format!("--warm={WARM}"),
            format!("--bytes={size}"),
            "--block=8192".to_owned(),
            format!("--gate={GATE}"),
            format!("--hold={END}"),
        ];
        let subject = route.subject(namespace, name, &writer)?;
        let start = || Follower::start(route.client(user, name, &writer)?, WARM);
        let mut followers = (0..self.good).map(|_| start()).collect::<Result<Vec<_>>>()?;
        let mut stalled = (0..self.stalled).map(|_| start()).collect::<Result<Vec<_>>>()?;
        followers
            .iter_mut()
            .chain(&mut stalled)
            .try_for_each(Follower::wait_warm)?;
        for follower in &stalled {
            let pid = i32::try_from(follower.id()).ok().and_then(Pid::from_raw);
            signal(pid.context("a process")?, Signal::STOP)?;
        }
        let ids: Vec<u32> = followers.iter().map(Follower::id).collect();
        let before = Snapshot::take(&ids);
        subject.open_gate()?;
        let progress: Vec<Progress> = followers.iter().map(|follower| follower.wait_for(size)).collect();
        let cpu = before.until(&Snapshot::take(&ids));
        drop((followers, stalled));
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
}
