//! The way to the API server and to the relay.
//!
//! The relay is reached by `--server`, by the address that the operator publishes, or by a port-forward through the API
//! server, in this order.

use std::time::{Duration, SystemTime};
use std::{error, sync::Arc};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use remoteprocess_api::names;
use remoteprocess_proto::{MAX_MESSAGE, v1::relay_client::RelayClient};
use remoteprocess_tls::{Dialer, Identity, Role, TrustDomain};
use tonic::transport::Channel;
use tonic::{Code, Status};

pub use cluster::{Cluster, Error, Rule};
pub use shared::Shared;

use crate::follow::{Backoff, Dial, DialError};
use crate::login;

mod cluster;
mod credential;
mod forward;
mod shared;

/// How long the published address may take before a port-forward is tried instead.
const PUBLISHED_LIMIT: Duration = Duration::from_secs(3);
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
            let channel = dialer
                .connect(address, &Role::Operator)
                .await
                .map_err(|error| unreachable(address, &error))?;
            return Ok((channel, Way::Server(address.clone())));
        }
        if let Some(address) = &trust.server {
            let connected = tokio::time::timeout(PUBLISHED_LIMIT, dialer.connect(address, &Role::Operator)).await;
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
