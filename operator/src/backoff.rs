//! How soon a broken watch is tried again.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// First pause.
const FIRST: Duration = Duration::from_millis(200);

/// Longest pause. kube's own default grows to 30 s: too long for somebody who waits for output or a login.
const LONGEST: Duration = Duration::from_secs(2);

/// Doubling pauses from 0.2 s to 2 s, for every watch of ours.
#[derive(Clone, Copy, Debug)]
pub struct WatchBackoff {
    next: Duration,
}

impl Default for WatchBackoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        Some(pause)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_two_seconds_and_start_again_after_success() {
        let mut backoff = WatchBackoff::default();
        let millis: Vec<u128> = backoff.by_ref().take(6).map(|pause| pause.as_millis()).collect();
        assert_eq!(millis, [200, 400, 800, 1600, 2000, 2000]);
        backoff.reset();
        assert_eq!(backoff.next(), Some(FIRST));
    }
}
