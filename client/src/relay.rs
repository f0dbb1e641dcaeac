//! Connects to the relay.
//!
//! It uses `--server`, the address that the operator publishes, or a port-forward through the API server, in this
//! order.

use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{error, io};

use futures::TryFutureExt;
use http::Uri;
use hyper_util::rt::TokioIo;
use remoteprocess_tls::{Dialer, Identity, Role};
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::dial::{Address, DIAL_LIMIT, Dial, DialError};
use crate::retry::innermost;
use crate::trust::Trust;
use crate::{forward, login};

/// How long to try the published address before a port-forward is used instead.
const PUBLISHED_LIMIT: Duration = Duration::from_secs(3);
/// Longest time between two looks at a certificate that is to be renewed.
const RENEWAL_STEP: Duration = Duration::from_secs(30);
/// Time limit for resolving the name of a relay.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

/// Connections to the relay, with a certificate that is renewed before it expires. After the first connection, the API
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
    /// A relay without a connection so far.
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

    /// The information that the operator publishes about itself.
    ///
    /// # Errors
    /// As [`Trust::read`].
    pub async fn trust(&mut self) -> Result<Trust, DialError> {
        // CAs rotate more slowly than certificates.
        let is_due = self
            .identity
            .as_ref()
            .is_some_and(|identity| identity.renew_at() <= SystemTime::now());
        let known = self.trust.clone().filter(|_| !self.is_trust_stale && !is_due);
        let trust = match (known, self.trust.clone()) {
            (Some(trust), _) => trust,
            (None, None) => Trust::read(&self.cluster).await?,
            // What was true before the API server became unavailable may still be.
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

    /// Connects to an address, directly or through the proxy of the cluster or the environment.
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

    /// Connects, and returns how.
    ///
    /// # Errors
    /// No way succeeded.
    pub async fn connect_by(&mut self) -> Result<(Channel, Way), DialError> {
        match self.connect().await {
            Ok(connected) => Ok(connected),
            Err(error) => {
                // A new installation has new CAs: read the trust again.
                self.is_trust_stale = true;
                Err(error)
            }
        }
    }
}

impl Relay {
    /// Returns when the certificate should be replaced; never before there is one.
    pub(crate) async fn renewal_is_due(&self) {
        let Some(identity) = &self.identity else {
            return std::future::pending().await;
        };
        // In steps, because the clock of this machine may be set, and a suspended machine counts no time.
        while let Ok(left) = identity.renew_at().duration_since(SystemTime::now()) {
            tokio::time::sleep(left.clamp(Duration::from_millis(10), RENEWAL_STEP)).await;
        }
    }

    /// Gets the next certificate and connects with it. The current one and its connections stay in use if it fails.
    pub(crate) async fn renew(&mut self) -> Option<Channel> {
        let trust = self.trust().await.ok()?;
        let identity = self.identity(&trust).await.ok()?;
        if identity.renew_at() <= SystemTime::now() {
            return None;
        }
        self.dial().await.ok()
    }

    /// How long to wait after a renewal that failed: several tries fit into the rest of the certificate's life.
    pub(crate) fn renewal_pause(&self) -> Duration {
        let end = self.identity.as_ref().map(|identity| identity.not_after());
        let left = end.and_then(|end| end.duration_since(SystemTime::now()).ok());
        (left.unwrap_or_default() / 8).clamp(Duration::from_secs(1), RENEWAL_STEP)
    }
}

impl Dial for Relay {
    async fn dial(&mut self) -> Result<Channel, DialError> {
        self.connect_by().await.map(|(channel, _)| channel)
    }

    fn renewed(&self) -> impl Future<Output = (Self, Channel)> + Send + 'static {
        let mut next = self.clone();
        async move {
            next.renewal_is_due().await;
            loop {
                if let Ok(Some(channel)) = tokio::time::timeout(DIAL_LIMIT, next.renew()).await {
                    return (next, channel);
                }
                tokio::time::sleep(next.renewal_pause()).await;
            }
        }
    }

    fn discredit(&mut self) {
        self.is_discredited = true;
        self.is_trust_stale = true;
    }
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

/// An unknown name is not a temporary network problem.
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

/// Whether another server than our relay answered: no TLS, or another certificate.
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
