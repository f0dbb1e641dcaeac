//! The way to the API server and to the relay.
//!
//! The relay is reached by `--server`, by the address that the operator publishes, or by a port-forward through the API
//! server, in this order.

use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{error, io};

use futures::TryFutureExt;
use http::Uri;
use http::uri::Authority;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use remoteprocess_api::names;
use remoteprocess_proto::{MAX_MESSAGE, v1::relay_client::RelayClient};
use remoteprocess_tls::{Dialer, Identity, Role, TrustDomain};
use tonic::transport::Channel;
use tonic::{Code, Status};

pub use access::Account;
pub use cluster::{Cluster, Error, Rule};
pub use connector::Connector;
pub use proxy::Proxies;
pub use shared::Shared;

use crate::follow::{Backoff, Dial, DialError};
use crate::login;

mod access;
mod cluster;
mod connector;
mod credential;
mod forward;
mod kubeconfig;
mod proxy;
mod shared;

/// How long the published address may take before a port-forward is tried instead.
const PUBLISHED_LIMIT: Duration = Duration::from_secs(3);
/// How long the name of a relay may take to be resolved.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);
/// How long one call that is not a stream may take, with all its tries.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// What the operator tells its clients.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The CAs, PEM.
    pub bundle: String,
    /// The domain in which roles are named.
    pub domain: TrustDomain,
    /// The published address, where there is one.
    pub server: Option<String>,
}

impl Trust {
    /// Reads the ConfigMap of the installation.
    ///
    /// # Errors
    /// It is not there, may not be read, or does not say what it must.
    pub async fn read(cluster: &Cluster) -> Result<Self, DialError> {
        let namespace = &cluster.operator_namespace;
        let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
        let found = api.get_opt(names::CONNECT_CONFIG_MAP).await.map_err(|error| {
            cluster.dial_error(
                &error,
                &Rule::connect("", "configmaps", "get"),
                "read where the relay is",
            )
        })?;
        let data = found.and_then(|map| map.data).unwrap_or_default();
        let value = |key: &str| {
            data.get(key)
                .map(|value| value.trim())
                .filter(|value| !value.is_empty())
        };
        let (Some(bundle), Some(domain)) = (value(names::CONNECT_CA), value(names::CONNECT_TRUST_DOMAIN)) else {
            return Err(DialError::Missing(format!(
                "no RemoteProcess operator is ready in namespace {namespace} (it has no ConfigMap {} yet). Install it, \
                 or name its namespace by --operator-namespace or RPROC_OPERATOR_NAMESPACE",
                names::CONNECT_CONFIG_MAP
            )));
        };
        let domain = domain.parse().map_err(|error| {
            DialError::Refused(format!(
                "ConfigMap {} in {namespace}: {error}",
                names::CONNECT_CONFIG_MAP
            ))
        })?;
        Ok(Self {
            bundle: bundle.to_owned(),
            domain,
            server: value(names::CONNECT_SERVER).map(str::to_owned),
        })
    }
}

/// Connections to the relay, with a certificate that is renewed before it ends. Once it has been connected, the API
/// server is needed only for a port-forward and for the next certificate.
#[derive(Clone)]
pub struct Relay {
    cluster: Arc<Cluster>,
    trust: Option<Trust>,
    is_trust_stale: bool,
    identity: Option<Arc<Identity>>,
    is_discredited: bool,
}

impl Relay {
    /// Nothing is connected yet.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            trust: None,
            is_trust_stale: false,
            identity: None,
            is_discredited: false,
        }
    }

    /// One call that is not a stream, tried again while the relay cannot be reached.
    ///
    /// # Errors
    /// The relay's refusal, or no connection within 30 s.
    pub async fn call<T, F>(&mut self, call: impl Fn(RelayClient<Channel>) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Status>>,
    {
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

    /// What the operator says of itself.
    ///
    /// # Errors
    /// As [`Trust::read`].
    pub async fn trust(&mut self) -> Result<Trust, DialError> {
        let known = self.trust.clone().filter(|_| !self.is_trust_stale);
        let trust = match (known, self.trust.clone()) {
            (Some(trust), _) => trust,
            (None, None) => Trust::read(&self.cluster).await?,
            // What was true before the API server went away may still be.
            (None, Some(old)) => Trust::read(&self.cluster).await.unwrap_or(old),
        };
        if self.trust.as_ref().is_none_or(|old| old.bundle != trust.bundle) {
            self.identity = None;
        }
        self.is_trust_stale = false;
        self.trust = Some(trust.clone());
        Ok(trust)
    }

    /// A certificate that is valid for a while.
    ///
    /// # Errors
    /// As [`login::certificate`].
    pub async fn identity(&mut self, trust: &Trust) -> Result<Arc<Identity>, DialError> {
        let now = SystemTime::now();
        if let Some(identity) = self
            .identity
            .as_ref()
            .filter(|identity| !self.is_discredited && now < identity.renew_at())
        {
            return Ok(identity.clone());
        }
        let may_be_cached = !self.is_discredited;
        match login::certificate(&self.cluster, trust, may_be_cached).await {
            Ok(identity) => {
                self.is_discredited = false;
                self.identity = Some(identity.clone());
                Ok(identity)
            }
            Err(error) => match &self.identity {
                Some(old) if may_be_cached && now < old.not_after() => Ok(old.clone()),
                _ => Err(error),
            },
        }
    }

    async fn connect(&mut self) -> Result<(Channel, Way), DialError> {
        let trust = self.trust().await?;
        let dialer = Dialer::new(self.identity(&trust).await?);
        if let Some(address) = &self.cluster.server {
            let channel = self.reach(&dialer, address).await?;
            return Ok((channel, Way::Server(address.clone())));
        }
        if let Some(address) = &trust.server {
            let connected = tokio::time::timeout(PUBLISHED_LIMIT, self.reach(&dialer, address)).await;
            if let Ok(Ok(channel)) = connected {
                return Ok((channel, Way::Published(address.clone())));
            }
        }
        let (pod, open) = forward::open(&self.cluster).await?;
        let channel = dialer
            .connect_over(&Role::Operator, open)
            .await
            .map_err(|error| unreachable(&pod, &error))?;
        Ok((channel, Way::Forwarded(pod)))
    }

    /// Connects to an address, directly or through the proxy that the cluster or the environment names.
    async fn reach(&self, dialer: &Dialer, text: &str) -> Result<Channel, DialError> {
        let Address { host, port } = Address::parse(text).map_err(DialError::Refused)?;
        let connector = self.cluster.connector.clone();
        let is_proxied = connector.is_relay_proxied(&host, port).map_err(DialError::Refused)?;
        let connected = if is_proxied {
            let target: Uri = format!("https://{host}:{port}/")
                .parse()
                .map_err(|_| DialError::Refused(format!("the relay's address {text:?} makes no URL")))?;
            let open = move || connector.clone().connect(target.clone()).map_ok(TokioIo::new);
            dialer.connect_over(&Role::Operator, open).await
        } else {
            resolve(text).await?;
            dialer.connect(text, &Role::Operator).await
        };
        connected.map_err(|error| match is_other_server(&error) {
            true => DialError::Missing(format!(
                "{text} is not the relay of this cluster: {}. Check --server (RPROC_SERVER)",
                innermost(&error)
            )),
            false => unreachable(text, &error),
        })
    }

    /// Connects, and says by which way.
    ///
    /// # Errors
    /// There is no way.
    pub async fn connect_by(&mut self) -> Result<(Channel, Way), DialError> {
        match self.connect().await {
            Ok(connected) => Ok(connected),
            Err(error) => {
                // A new installation has new CAs: read again what to trust.
                self.is_trust_stale = true;
                Err(error)
            }
        }
    }
}

fn client(channel: Channel) -> RelayClient<Channel> {
    RelayClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

impl Dial for Relay {
    async fn dial(&mut self) -> Result<Channel, DialError> {
        self.connect_by().await.map(|(channel, _)| channel)
    }

    fn discredit(&mut self) {
        self.is_discredited = true;
        self.is_trust_stale = true;
    }
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The relay's refusal.
    #[error("{}", .0.message())]
    Relay(Status),
    /// There is no way to it.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// How the relay was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By `--server`.
    Server(String),
    /// By the published address.
    Published(String),
    /// By a port-forward to this pod.
    Forwarded(String),
}

/// Host and port of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
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

/// A name that nobody knows is no network trouble that passes.
async fn resolve(address: &str) -> Result<(), DialError> {
    let why = match tokio::time::timeout(RESOLVE_LIMIT, tokio::net::lookup_host(address)).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", RESOLVE_LIMIT.as_secs()),
    };
    Err(DialError::Missing(format!(
        "the name of the relay {address} cannot be resolved: {why}. Check --server (RPROC_SERVER)"
    )))
}

/// Whether something answered that is not our relay: no TLS, or another certificate.
fn is_other_server(error: &remoteprocess_tls::Error) -> bool {
    let mut current: Option<&(dyn error::Error + 'static)> = Some(error);
    while let Some(error) = current {
        let is_tls = error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::InvalidData);
        if is_tls || matches!(error.downcast_ref(), Some(remoteprocess_tls::Error::WrongPeer { .. })) {
            return true;
        }
        current = error.source();
    }
    false
}

fn unreachable(target: &str, error: &remoteprocess_tls::Error) -> DialError {
    DialError::Unreachable(format!("the relay at {target}: {}", innermost(error)))
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
