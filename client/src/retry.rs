//! When to try again: which answers another connection may mend, and how long to wait before it.

use std::time::Duration;

use tonic::Status;

/// Waits between tries: 100 ms, then twice as long each time, at most 2 s.
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    /// How long to wait before the next try.
    pub fn wait(&mut self) -> Duration {
        let wait = Duration::from_millis(100 << self.0.min(5)).min(Duration::from_secs(2));
        self.0 += 1;
        wait
    }
}

/// TLS 1.3 tells a client of its refusal only when it reads: as an alert behind the handshake.
pub(crate) fn is_about_certificates(status: &Status) -> bool {
    cause(status).contains("fatal alert")
}

/// The innermost reason of a failed call, which says more than the outer ones.
#[must_use]
pub fn cause(status: &Status) -> String {
    let mut innermost: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(inner) = innermost.and_then(std::error::Error::source) {
        innermost = Some(inner);
    }
    match innermost {
        Some(inner) => inner.to_string(),
        None => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_and_ends_at_two_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.wait().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000, 2000]);
    }
}
