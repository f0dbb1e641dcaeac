//! What the bridges of triggers and of sinks have in common: Secrets, TLS and conditions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use strum::{Display, EnumString, IntoStaticStr};

/// Directory in the bridge's container with the Secret of the credentials.
pub const CREDENTIALS: &str = "/etc/rproc-bridge/credentials";
/// Directory in the bridge's container with the Secret of the certificates to trust, `ca.crt`.
pub const CA: &str = "/etc/rproc-bridge/ca";
/// Directory in the bridge's container with the Secret of the own certificate, `tls.crt` and `tls.key`.
pub const CLIENT_TLS: &str = "/etc/rproc-bridge/tls";

/// The kind of a source or a destination, for people: the one of HTTP, NATS, RabbitMQ and PubSub that is set.
pub(crate) fn kind(is_set: [bool; 4]) -> &'static str {
    let kinds = ["HTTP", "NATS", "RabbitMQ", "PubSub"].into_iter().zip(is_set);
    kinds
        .filter(|(_, is_set)| *is_set)
        .map(|(kind, _)| kind)
        .next()
        .unwrap_or("none")
}

/// Most pods of a bridge.
pub const MAX_REPLICAS: u32 = 2;

/// The bridge of a trigger or a sink.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BridgeSpec {
    /// Number of its pods, 1 or 2. One works. With 2, the other waits as a stand-by, and takes over within a few seconds
    /// when the first ends, and within 20 seconds when its node is lost. Defaults to 1.
    #[schemars(range(min = 1, max = 2))]
    pub replicas: Option<u32>,
}

impl BridgeSpec {
    /// Number of pods of a bridge, 1 or 2, also for an object that passed no validation.
    pub fn replicas(spec: Option<&Self>) -> u32 {
        let replicas = spec.and_then(|spec| spec.replicas);
        replicas.unwrap_or(1).clamp(1, MAX_REPLICAS)
    }
}

/// How the bridge and a broker trust each other.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerTls {
    /// Secret with the certificates (`ca.crt`) of the authorities that the broker's certificate must come from. By default,
    /// the public authorities are trusted.
    #[schemars(length(min = 1, max = 253))]
    pub ca_secret_name: Option<String>,
    /// Secret of type kubernetes.io/tls with the certificate that the bridge shows to the broker.
    #[schemars(length(min = 1, max = 253))]
    pub client_certificate_secret_name: Option<String>,
}

impl BrokerTls {
    /// Names of the Secrets that it needs, each with the directory in which the bridge finds it.
    pub fn secrets(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let ca = self.ca_secret_name.as_deref().map(|name| (CA, name));
        let client = self.client_certificate_secret_name.as_deref();
        ca.into_iter().chain(client.map(|name| (CLIENT_TLS, name)))
    }
}

/// Types of the conditions of a trigger or a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr)]
pub enum BridgeCondition {
    /// Messages become processes, or events are sent. Written by the bridge.
    Ready,
    /// The bridge has its source or its destination. Written by the bridge.
    Connected,
    /// The Deployment of the bridge is as it should be. Written by the operator.
    Deployed,
}

/// Reasons of these conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr)]
pub enum BridgeReason {
    /// It is so.
    Connected,
    /// Messages are taken.
    Taking,
    /// Events are sent.
    Sending,
    /// As many processes run as may, or were created in this minute: messages wait.
    Limited,
    /// `spec.suspend` is set.
    Suspended,
    /// The source or destination does not answer.
    Unreachable,
    /// The source or destination refuses the credentials, or a permission is missing there.
    Unauthorized,
    /// Its certificate, or the way to it, is not trusted.
    Untrusted,
    /// The stream, queue, subscription, exchange, topic or URL does not exist.
    NotFound,
    /// The source would take its own results or dead letters as messages again.
    InvalidSource,
    /// The destination is none, or refuses an event.
    InvalidDestination,
    /// The API server does not let the ServiceAccount create, or watch and annotate, processes, or hold its Lease.
    Forbidden,
    /// The API server refuses the template.
    InvalidTemplate,
    /// Output of processes cannot be read.
    OutputUnavailable,
    /// The API server does not answer.
    Waiting,
    /// A Secret that the spec names is missing or has not the keys that it needs.
    InvalidSecret,
    /// The Deployment was made, and its pod runs.
    Deployed,
    /// The Deployment was made, and its pod does not run yet.
    Starting,
    /// The API server refuses the Deployment or the Service.
    Refused,
}
