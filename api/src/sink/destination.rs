//! Where the events of a sink go.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::bridge::{BrokerTls, CREDENTIALS, kind};
use crate::rules;

/// Where the events of a sink go: exactly one of these.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::one_destination())]
pub struct DestinationSpec {
    /// A URL.
    pub http: Option<HttpDestination>,
    /// A subject of NATS JetStream.
    pub nats: Option<NatsDestination>,
    /// An exchange of RabbitMQ.
    pub rabbitmq: Option<RabbitMqDestination>,
    /// A topic of Google Pub/Sub.
    pub pubsub: Option<PubSubDestination>,
}

impl DestinationSpec {
    /// The kind of the destination, for people.
    pub fn kind(&self) -> &'static str {
        kind([
            self.http.is_some(),
            self.nats.is_some(),
            self.rabbitmq.is_some(),
            self.pubsub.is_some(),
        ])
    }

    /// Names of the Secrets that the bridge reads, each with the directory in which it finds it.
    pub fn secrets(&self) -> Vec<(&'static str, &str)> {
        let http = self.http.as_ref().map(|to| (&to.credentials_secret_name, &to.tls));
        let nats = self.nats.as_ref().map(|to| (&to.credentials_secret_name, &to.tls));
        let rabbitmq = self.rabbitmq.as_ref().map(|to| (&to.credentials_secret_name, &to.tls));
        let pubsub = self.pubsub.as_ref().map(|to| (&to.credentials_secret_name, &None));
        let all = http.into_iter().chain(nats).chain(rabbitmq).chain(pubsub);
        all.flat_map(|(credentials, tls)| {
            let credentials = credentials.as_deref().map(|name| (CREDENTIALS, name));
            credentials.into_iter().chain(tls.iter().flat_map(BrokerTls::secrets))
        })
        .collect()
    }
}

/// A URL to which each event is sent by `POST`, as a CloudEvent in structured mode (`application/cloudevents+json`). An
/// answer with a status of 200 to 299 confirms it. Redirects are not followed.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpDestination {
    /// The URL, for example `https://events.example.com/processes`. Without TLS, only a network that you trust is safe.
    #[schemars(
        length(min = 8, max = 2048),
        regex(pattern = "^https?://[^/@?#\\s]+([/?][^#\\s]*)?$")
    )]
    pub url: String,
    /// Secret with a `token`, which each request has in the header `Authorization: Bearer TOKEN`.
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret_name: Option<String>,
    /// How bridge and server trust each other.
    pub tls: Option<BrokerTls>,
}

/// A subject of NATS JetStream. The bridge makes no streams: the subject must belong to one, which confirms each event.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatsDestination {
    /// Addresses of the servers, for example `nats://nats.messaging:4222`, or `tls://` for TLS.
    #[schemars(length(min = 1, max = 16))]
    pub servers: Vec<String>,
    /// Subject of all events, without wildcards. The header `Nats-Msg-Id` has its source and id, so that the stream drops
    /// an event that is sent again within its duplicate window.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[^\\s*>]+$"))]
    pub subject: String,
    /// Secret with `username` and `password`, or `token`, or a credentials file `user.creds`.
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret_name: Option<String>,
    /// How bridge and server trust each other.
    pub tls: Option<BrokerTls>,
}

/// An exchange of RabbitMQ. The bridge declares nothing: a queue must be bound to the exchange for the routing key.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RabbitMqDestination {
    /// `host:port` of the server. The default port is 5672, or 5671 with TLS.
    #[schemars(length(min = 1, max = 261))]
    pub address: String,
    /// Virtual host. Defaults to `/`.
    #[schemars(length(min = 1, max = 256))]
    pub virtual_host: Option<String>,
    /// Name of the exchange. By default, the default exchange, for which the routing key is the name of a queue.
    #[schemars(length(min = 1, max = 255))]
    pub exchange: Option<String>,
    /// Routing key of all events.
    #[schemars(length(min = 1, max = 255))]
    pub routing_key: String,
    /// Secret with `username` and `password`.
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret_name: Option<String>,
    /// How bridge and server trust each other. If it is set, the bridge uses TLS.
    pub tls: Option<BrokerTls>,
}

/// A topic of Google Pub/Sub. The bridge makes no topics. Each event has the uid of its process as the ordering key, for
/// subscriptions with message ordering.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PubSubDestination {
    /// The project.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-z0-9.:-]+$"))]
    pub project: String,
    /// Name of the topic in it.
    #[schemars(length(min = 3, max = 255), regex(pattern = "^[A-Za-z][A-Za-z0-9._~+%-]+$"))]
    pub topic: String,
    /// `http://host:port` of an emulator, without authentication. By default, the service of Google.
    #[schemars(length(min = 1, max = 261), regex(pattern = "^https?://[^/\\s]+$"))]
    pub endpoint: Option<String>,
    /// Secret with the key file of a service account, `key.json`. By default, Workload Identity.
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret_name: Option<String>,
}
