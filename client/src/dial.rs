//! Connections to the relay: how they are made, and why there is none.

use std::error;
use std::time::Duration;

use http::uri::Authority;
use tonic::transport::Channel;

/// Longest time for one connection to be made, a new certificate included.
pub const DIAL_LIMIT: Duration = Duration::from_secs(40);
/// A stream is given up when nothing came for this long; heartbeats come every 10 s.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// How long a relay may not know a process that has just been made.
pub const NEW_LIMIT: Duration = Duration::from_secs(15);

/// Makes connections to the relay.
pub trait Dial: Send {
    /// A new connection.
    fn dial(&mut self) -> impl Future<Output = Result<Channel, DialError>> + Send;

    /// The relay did not take our certificate: the next connection needs a new one.
    fn discredit(&mut self);
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Another try is of no use: a missing right, say.
    #[error("{0}")]
    Refused(String),
    /// What is needed is not there. It may come back where it was there before.
    #[error("{0}")]
    Missing(String),
    /// Another try may succeed.
    #[error("{0}")]
    Unreachable(String),
}

/// Host and port of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Reads `host:port`; an address of version 6 is in brackets.
    ///
    /// # Errors
    /// The text is anything else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let authority = text.parse::<Authority>().ok();
        authority
            .filter(|authority| !authority.as_str().contains('@'))
            .and_then(|authority| {
                let port = authority.port_u16().filter(|port| *port != 0)?;
                let host = authority.host().to_owned();
                (!host.is_empty()).then_some(Self { host, port })
            })
            .ok_or_else(|| {
                format!(
                    "--server (RPROC_SERVER) {text:?} is not the address of a relay. Write it as HOST:PORT, such as \
                     relay.example.com:443"
                )
            })
    }
}

/// The innermost reason, which says more than the outer ones.
#[must_use]
pub fn innermost(error: &(dyn error::Error + 'static)) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_as_the_relays_address_is_refused() {
        for text in [
            "foo",
            "foo:",
            "foo:0",
            "foo:99999",
            ":443",
            "https://foo:443",
            "foo:443/x",
            "u@foo:443",
            "a b:443",
            "::1:443",
            "foo:http",
        ] {
            let why = Address::parse(text).unwrap_err();
            assert!(why.contains("--server") && why.contains("HOST:PORT"), "{text}: {why}");
        }
        for text in ["foo:443", "10.0.0.1:8443", "[::1]:443", "a.b.c:1"] {
            assert!(Address::parse(text).is_ok(), "{text}");
        }
    }
}
