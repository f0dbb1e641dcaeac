//! Connections to the relay: how they are opened, and why there is none.

use std::time::Duration;

use http::uri::Authority;
use remoteprocess_proto::MAX_MESSAGE;
use remoteprocess_proto::v1::relay_client::RelayClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::retry::Backoff;

/// Time limit for opening one connection, including a new certificate.
pub const DIAL_LIMIT: Duration = Duration::from_secs(40);
/// A stream is dropped when nothing came for this long; heartbeats come every 10 s.
pub const SILENCE_LIMIT: Duration = remoteprocess_proto::timing::SILENCE;
/// How long a relay may not know a process that was just created.
pub const NEW_LIMIT: Duration = Duration::from_secs(15);
/// Time limit for one call that is not a stream, with all its tries.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Opens connections to the relay.
pub trait Dial: Send + 'static {
    /// A new connection.
    fn dial(&mut self) -> impl Future<Output = Result<Channel, DialError>> + Send;

    /// The relay did not accept our certificate: the next connection needs a new one.
    fn discredit(&mut self);

    /// Waits until the certificate of the last connection should be replaced, gets the next one, and returns a
    /// connection with it, and what has opened that. By default, connections need no renewal.
    fn renewed(&self) -> impl Future<Output = (Self, Channel)> + Send + 'static
    where
        Self: Sized,
    {
        std::future::pending()
    }

    /// Makes one call that is not a stream, and retries while the relay cannot be reached.
    ///
    /// # Errors
    /// The relay's refusal, or no connection within 30 s.
    fn call<T, F>(&mut self, call: impl Fn(RelayClient<Channel>) -> F) -> impl Future<Output = Result<T, CallError>>
    where
        Self: Sized,
        F: Future<Output = Result<T, Status>>,
    {
        async move {
            let deadline = tokio::time::Instant::now() + CALL_LIMIT;
            let mut backoff = Backoff::default();
            loop {
                let error = match tokio::time::timeout_at(deadline, self.dial()).await {
                    Ok(Ok(channel)) => match tokio::time::timeout_at(deadline, call(client(channel))).await {
                        Ok(Ok(answer)) => return Ok(answer),
                        Ok(Err(status)) => CallError::Relay(status),
                        Err(_) => CallError::Dial(DialError::Unreachable("the relay does not answer".into())),
                    },
                    Ok(Err(error)) => CallError::Dial(error),
                    Err(_) => CallError::Dial(DialError::Unreachable("the relay cannot be reached in time".into())),
                };
                match &error {
                    CallError::Relay(status) if status.code() == Code::Unauthenticated => self.discredit(),
                    // A call may already have had an effect: only an error that says that it did not arrive is retried.
                    CallError::Relay(status) if matches!(status.code(), Code::Unavailable | Code::Unknown) => {}
                    CallError::Dial(DialError::Unreachable(_)) => {}
                    _ => return Err(error),
                }
                let wait = backoff.wait();
                if tokio::time::Instant::now() + wait >= deadline {
                    return Err(error);
                }
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// A client with the message size that every peer accepts.
pub(crate) fn client(channel: Channel) -> RelayClient<Channel> {
    RelayClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// A retry is useless: for example, a right is missing.
    #[error("{0}")]
    Refused(String),
    /// Something required does not exist. It may come back if it existed before.
    #[error("{0}")]
    Missing(String),
    /// A retry may succeed.
    #[error("{0}")]
    Unreachable(String),
}

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The relay's refusal.
    #[error("{}", .0.message())]
    Relay(Status),
    /// The relay cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// Host and port of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Parses `host:port`; an IPv6 address is in brackets.
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
