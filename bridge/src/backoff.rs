//! Doubling pauses with chance in them, so that many bridges do not come back at the same moment.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// First pause.
const FIRST: Duration = Duration::from_millis(500);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(8);

/// Pauses between tries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause before the next try: 0.5 s, doubled up to 8 s, of which a quarter is chance.
    pub fn pause(&mut self) -> Duration {
        let pause = self.longest_pause();
        self.failures = self.failures.saturating_add(1);
        // Each of these states has its own random keys.
        let chance = u32::try_from(RandomState::new().hash_one(0) % 256).unwrap_or_default();
        pause - pause / 4 * chance / 256
    }

    fn longest_pause(self) -> Duration {
        FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.failures = 0;
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
    fn pauses_double_up_to_eight_seconds_and_start_again() {
        let mut backoff = Backoff::default();
        for longest in [500, 1000, 2000, 4000, 8000, 8000, 8000] {
            let pause = backoff.pause().as_millis();
            assert!((longest * 3 / 4..=longest).contains(&pause), "{pause} of {longest}");
        }
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }
}
