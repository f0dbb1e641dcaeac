//! What happens when the spool is full, and when the oldest output must be dropped.

use std::time::Duration;

use remoteprocess_proto::v1::GapReason;

use super::{Progress, Stall};
use crate::clock::now;

/// What happens when the spool is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum WhenFull {
    /// Hold the program back while the archive makes progress; drop the oldest output when it has made none for a while.
    Auto,
    /// Hold the program back for as long as it takes.
    Block,
    /// Drop the oldest output at once.
    DropOldest,
}

impl WhenFull {
    /// Why output was dropped.
    pub const fn reason(self) -> GapReason {
        match self {
            Self::Auto => GapReason::ArchiverStalled,
            Self::Block | Self::DropOldest => GapReason::SpoolFull,
        }
    }
}

/// How much to hold, and what to do with more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Maximum number of bytes to hold.
    pub size: u64,
    /// What to do when that is reached.
    pub when_full: WhenFull,
    /// How long [`WhenFull::Auto`] waits for an archive that makes no progress.
    pub patience: Duration,
}

impl Policy {
    /// Above this many bytes the oldest are dropped: before the spool is full, so that the program need not wait.
    const fn high(&self) -> u64 {
        self.size - self.size / 16
    }

    /// This many bytes are left afterwards.
    const fn low(&self) -> u64 {
        self.size - self.size / 8
    }
}

/// Since when a full spool has been waiting for the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Wait {
    /// Time since the node started, including suspension: an agent that starts after a kill measures the same.
    since: Duration,
    /// Bytes that the archive held then: progress ends the wait.
    archived: u64,
}

/// Decides when the oldest output is dropped.
#[derive(Debug)]
pub(super) struct Pressure {
    policy: Policy,
    /// Only with [`WhenFull::Auto`].
    wait: Option<Wait>,
    noted: Option<Wait>,
}

impl Pressure {
    /// Continues a wait that began under an earlier agent.
    pub(super) fn new(policy: Policy, wait: Option<Wait>) -> Self {
        let wait = wait.filter(|wait| wait.since <= now());
        Self {
            policy,
            wait,
            noted: wait,
        }
    }

    /// Sets another policy.
    pub(super) const fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Updates the wait from the current progress.
    pub(super) fn look(&mut self, progress: &Progress) {
        if self.policy.when_full != WhenFull::Auto {
            return;
        }
        let archived = progress.archived.total();
        let is_over = self.wait.is_some_and(|wait| wait.archived != archived);
        if is_over {
            self.wait = None;
        }
        if self.wait.is_none() && progress.stalled.is_some() {
            let since = now();
            self.wait = Some(Wait { since, archived });
        }
    }

    /// How many bytes of the oldest output must be dropped now.
    pub(super) fn excess(&self, progress: &Progress) -> u64 {
        let is_due = match self.policy.when_full {
            WhenFull::Block => false,
            WhenFull::DropOldest => true,
            WhenFull::Auto => self.wait.is_some() && self.remaining().is_none(),
        };
        let used = progress.used();
        match progress.stalled {
            _ if !is_due || progress.closed => 0,
            Some(Stall::VolumeFull) => used.min(self.policy.size / 8),
            _ if used >= self.policy.high() => used - self.policy.low(),
            _ => 0,
        }
    }

    /// Whether a wait has lasted for `age` and is not stored.
    pub(super) fn is_worth_noting(&self, age: Duration) -> bool {
        let is_old = |wait: Wait| now().saturating_sub(wait.since) >= age;
        self.wait != self.noted && self.wait.is_some_and(is_old)
    }

    /// The wait, which is about to be stored.
    pub(super) const fn noted(&mut self) -> Option<Wait> {
        self.noted = self.wait;
        self.wait
    }

    /// How long until the next check is needed, if nothing happens.
    pub(super) fn remaining(&self) -> Option<Duration> {
        let end = self.wait?.since + self.policy.patience;
        end.checked_sub(now()).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Offsets;
    use super::*;

    fn full(archived: u64) -> Progress {
        Progress {
            written: Offsets { stdout: 200, stderr: 0 },
            dropped: Offsets { stdout: 100, stderr: 0 },
            archived: Offsets {
                stdout: archived,
                stderr: 0,
            },
            stalled: Some(Stall::SpoolFull),
            ..Progress::default()
        }
    }

    fn pressure(when_full: WhenFull, patience: Duration) -> Pressure {
        let policy = Policy {
            size: 100,
            when_full,
            patience,
        };
        Pressure::new(policy, None)
    }

    #[test]
    fn auto_waits_as_long_as_the_archive_makes_progress() {
        let hour = Duration::from_secs(3600);
        let mut pressure = pressure(WhenFull::Auto, hour);
        pressure.look(&full(100));
        assert_eq!(pressure.excess(&full(100)), 0);
        let since = |pressure: &Pressure| pressure.wait.unwrap().since;
        let first = since(&pressure);
        pressure.look(&full(100));
        assert_eq!(since(&pressure), first, "no progress: the clock goes on");
        pressure.look(&full(101));
        assert!(since(&pressure) > first, "progress: the clock begins anew");
        assert!(pressure.remaining().is_some_and(|left| left <= hour));
    }

    #[test]
    fn auto_without_progress_drops_until_there_is_some() {
        let mut pressure = pressure(WhenFull::Auto, Duration::ZERO);
        assert_eq!(pressure.excess(&full(100)), 0, "it was not full yet");
        pressure.look(&full(100));
        assert_eq!(pressure.excess(&full(100)), 12);
        let relieved = Progress {
            stalled: None,
            ..full(100)
        };
        pressure.look(&relieved);
        assert_eq!(pressure.excess(&relieved), 12, "no second wait");
        let progressed = Progress {
            stalled: None,
            ..full(101)
        };
        pressure.look(&progressed);
        assert_eq!(pressure.excess(&progressed), 0);
    }

    #[test]
    fn a_wait_from_before_the_nodes_start_is_not_believed() {
        let wait = Wait {
            since: now() + Duration::from_secs(1000),
            archived: 0,
        };
        let policy = pressure(WhenFull::Auto, Duration::ZERO).policy;
        assert_eq!(Pressure::new(policy, Some(wait)).wait, None);
    }

    #[test]
    fn block_never_drops_and_drop_oldest_does_at_once() {
        assert_eq!(pressure(WhenFull::Block, Duration::ZERO).excess(&full(100)), 0);
        assert_eq!(pressure(WhenFull::DropOldest, Duration::MAX).excess(&full(100)), 12);
        let volume = Progress {
            stalled: Some(Stall::VolumeFull),
            dropped: Offsets { stdout: 195, stderr: 0 },
            ..full(100)
        };
        assert_eq!(pressure(WhenFull::DropOldest, Duration::MAX).excess(&volume), 5);
    }
}
