//! Waiting for what must come.

use std::time::{Duration, Instant};

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What `future` brings, or a failed test.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("never: {what}"),
    }
}

/// Waits for a condition that nothing announces.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        look.tick().await;
    }
}
