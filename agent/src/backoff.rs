//! Waiting longer after each failure, up to a cap.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// Time to wait before the next try: 100 ms, doubling up to 2 s, each shortened by up to a quarter so that many agents
/// do not come at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        let mut byte = [0];
        // Without randomness the full wait is as good.
        let _ = rustix::rand::getrandom(&mut byte[..], rustix::rand::GetRandomFlags::NONBLOCK);
        wait - wait * u32::from(byte[0]) / 1024
    }

    /// Waits that long.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_below_two_seconds() {
        let mut backoff = Backoff::default();
        let first = backoff.next();
        assert!(first <= FIRST && first >= FIRST * 3 / 4);
        let last = (0..20).map(|_| backoff.next()).last().unwrap();
        assert!(last <= LONGEST && last >= LONGEST * 3 / 4);
    }
}
