//! When to retry: which errors another connection may fix, and how long to wait before it.

use std::time::Duration;

use tonic::{Code, Status};

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

/// What an error of the relay means for the next attempt to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Another connection may succeed.
    Reconnect,
    /// Another connection may succeed with a new client certificate.
    NewCertificate,
    /// The relay does not know the process. It may not know it yet.
    Unknown,
    /// Another writer has the input.
    Held,
    /// The answer is final.
    Never,
}

impl Retry {
    /// The one table of gRPC codes.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        match status.code() {
            Code::NotFound => Self::Unknown,
            Code::ResourceExhausted | Code::Aborted => Self::Held,
            Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss => Self::Never,
            Code::Unauthenticated => Self::NewCertificate,
            // TLS 1.3 tells a client that its certificate is refused only when it reads: as an alert after the
            // handshake.
            _ if cause(status).contains("fatal alert") => Self::NewCertificate,
            _ => Self::Reconnect,
        }
    }
}

/// The innermost error, which is more specific than the outer ones.
#[must_use]
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}

/// Why the API server did not answer a call as wished: its own sentence, or what broke.
#[must_use]
pub fn refusal(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => innermost(other),
    }
}

/// The innermost error of a failed call, which is more specific than the outer ones.
#[must_use]
pub fn cause(status: &Status) -> String {
    std::error::Error::source(status).map_or_else(|| status.message().to_owned(), innermost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_one_meaning() {
        for number in 0..17 {
            let code = Code::from(number);
            let expected = match code {
                Code::NotFound => Retry::Unknown,
                Code::ResourceExhausted | Code::Aborted => Retry::Held,
                Code::Unauthenticated => Retry::NewCertificate,
                Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded => {
                    Retry::Reconnect
                }
                Code::AlreadyExists | Code::Ok => Retry::Reconnect,
                _ => Retry::Never,
            };
            assert_eq!(Retry::of(&Status::new(code, "")), expected, "{code:?}");
        }
        let alert = std::io::Error::other("received fatal alert: UnknownCA");
        let wrapped = std::io::Error::other(alert);
        assert_eq!(Retry::of(&Status::from_error(Box::new(wrapped))), Retry::NewCertificate);
    }

    #[test]
    fn it_grows_and_ends_at_two_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.wait().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000, 2000]);
    }
}
