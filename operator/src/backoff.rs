//! Doubling pauses between tries: the one back-off of the operator.

use std::time::Duration;

/// Number of objects in one page of a list, for all our watches. An object that a user writes can have 1.5 MiB, the API
/// server's limit for a request, and the operator must survive a page of the largest ones.
pub const WATCH_PAGE: u32 = 50;

/// Pauses that double from a first to a longest one.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// For all our watches. kube's own default grows to 30 s, which is too long for a user who waits for output or a
    /// login.
    pub const WATCH: Self = Self::new(Duration::from_millis(100), Duration::from_secs(2));

    /// Pauses from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The longest pause.
    pub const fn longest(&self) -> Duration {
        self.longest
    }

    /// The pause before the next try. The one after it is twice as long.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }

    /// The pause after this many failures in a row, counted from 1.
    pub fn after(&self, failures: u32) -> Duration {
        let doubled = 1 << failures.saturating_sub(1).min(16);
        self.first.saturating_mul(doubled).min(self.longest)
    }

    /// Resets the pause to the first one, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.pause())
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        Self::reset(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again_after_success() {
        let mut backoff = Backoff::WATCH;
        let millis: Vec<u128> = backoff.by_ref().take(7).map(|pause| pause.as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1600, 2000, 2000]);
        for (failures, pause) in (1..).zip(millis) {
            assert_eq!(backoff.after(failures).as_millis(), pause);
        }
        assert_eq!(backoff.after(u32::MAX), backoff.longest());
        backoff.reset();
        assert_eq!(backoff.next(), Some(Duration::from_millis(100)));
    }
}
