//! How long a program has run, and until when it may run. Pure; agent and entrypoint each keep one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point in time: how long after the machine started, suspended time included (`CLOCK_BOOTTIME`).
pub type Moment = Duration;

/// How much later than the agent the entrypoint acts on the same deadline.
pub const BACKSTOP: Duration = Duration::from_secs(5);

/// The clock of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunClock {
    started: Moment,
    run_deadline: Option<Duration>,
    stops_in_pause: bool,
    paused_since: Option<Moment>,
    paused_before: Duration,
}

impl RunClock {
    /// The clock of a program that starts now and may run for `run_deadline`; with `stops_in_pause` the time for which it is
    /// paused does not count.
    pub const fn start(now: Moment, run_deadline: Option<Duration>, stops_in_pause: bool) -> Self {
        Self {
            started: now,
            run_deadline,
            stops_in_pause,
            paused_since: None,
            paused_before: Duration::ZERO,
        }
    }

    /// How long the program may run.
    pub const fn run_deadline(&self) -> Option<Duration> {
        self.run_deadline
    }

    /// Sets another one, also counted from the start.
    pub const fn set_run_deadline(&mut self, run_deadline: Option<Duration>) {
        self.run_deadline = run_deadline;
    }

    /// Whether the program is paused.
    pub const fn is_paused(&self) -> bool {
        self.paused_since.is_some()
    }

    /// The program is paused or resumed, at this moment.
    pub fn set_paused(&mut self, paused: bool, now: Moment) {
        if paused {
            self.paused_since.get_or_insert(now);
        } else if let Some(since) = self.paused_since.take() {
            self.paused_before += now.saturating_sub(since);
        }
    }

    /// When it is reached; `None`: never, or not before the program is resumed.
    pub fn over_at(&self) -> Option<Moment> {
        let not_counted = match (self.stops_in_pause, self.paused_since) {
            (true, Some(_)) => return None,
            (true, None) => self.paused_before,
            (false, _) => Duration::ZERO,
        };
        Some(
            self.started
                .saturating_add(self.run_deadline?)
                .saturating_add(not_counted),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_run_deadline_counts_from_the_start_and_can_change() {
        let mut clock = RunClock::start(at(100), Some(at(10)), false);
        assert_eq!(clock.over_at(), Some(at(110)));
        clock.set_run_deadline(Some(at(25)));
        assert_eq!(clock.over_at(), Some(at(125)));
        clock.set_run_deadline(None);
        assert_eq!(clock.over_at(), None);
        clock.set_run_deadline(Some(Duration::MAX));
        assert_eq!(clock.over_at(), Some(Duration::MAX));
    }

    #[test]
    fn a_pause_counts_unless_it_stops_the_clock() {
        for (stops, during, after) in [(false, Some(at(110)), at(110)), (true, None, at(117))] {
            let mut clock = RunClock::start(at(100), Some(at(10)), stops);
            clock.set_paused(true, at(101));
            clock.set_paused(true, at(105));
            assert_eq!((clock.is_paused(), clock.over_at()), (true, during));
            clock.set_paused(false, at(108));
            clock.set_paused(false, at(109));
            assert_eq!((clock.is_paused(), clock.over_at()), (false, Some(after)));
        }
    }
}
