//! The real agent and the real entrypoint as processes, with a relay in the test.

// Everything here is a test, though clippy sees only functions marked so.
#![allow(clippy::unwrap_used)]

mod crashes;
mod endings;
mod kills;
mod masking;
mod pod;
mod policies;
mod relay;
mod speed;
mod verbs;

use std::time::{Duration, Instant};

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `future` brings, or a failed test.
async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("never: {what}"),
    }
}

/// Waits for a condition that nothing announces.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        look.tick().await;
    }
}
