//! The time of day, and the clock of deadlines.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use remoteprocess_entrypoint::clock;
pub use remoteprocess_entrypoint::clock::{Moment, now};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Nanoseconds since the Unix epoch; 0 if the clock is before it.
pub fn unix_nanos() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// Waits for a moment of [`now`]'s clock. The runtime's own timers do not count suspended time.
#[derive(Debug)]
pub struct Timer(AsyncFd<clock::Timer>);

impl Timer {
    /// A timer that is not set.
    pub fn new() -> io::Result<Self> {
        let timer = clock::Timer::new()?;
        // As for sockets: the replacement is unsafe to call, and requires only what an `OwnedFd` guarantees anyway.
        #[allow(deprecated, reason = "see above")]
        AsyncFd::with_interest(timer, Interest::READABLE).map(Self)
    }

    /// Returns at this moment.
    pub async fn until(&self, at: Moment) {
        self.0.get_ref().set(Some(at));
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                return std::future::pending().await;
            };
            if now() >= at {
                return;
            }
            // That was an earlier setting of the timer.
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_timer_fires_at_its_moment_and_can_be_set_again() {
        let timer = Timer::new().unwrap();
        let start = now();
        timer.until(start + Duration::from_millis(30)).await;
        timer.until(start + Duration::from_millis(60)).await;
        let elapsed = now() - start;
        assert!(elapsed >= Duration::from_millis(60), "{elapsed:?}");
        timer.until(Duration::ZERO).await;
    }
}
