//! Where the messages of a trigger come from.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::bridge::{BrokerTls, CLIENT_TLS, CREDENTIALS, kind};
use crate::rules;

/// Where the messages of a trigger come from: exactly one of these.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::one_source())]
pub struct SourceSpec {
    /// Requests to a webhook.
    pub http: Option<HttpSource>,
    /// A stream of NATS JetStream.
    pub nats: Option<NatsSource>,
    /// A queue of RabbitMQ.
    pub rabbitmq: Option<RabbitMqSource>,
    /// A subscription of Google Pub/Sub.
    pub pubsub: Option<PubSubSource>,
}

impl SourceSpec {
    /// The kind of the source, for people.
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
        let mut secrets = Vec::new();
        if let Some(http) = &self.http {
            secrets.push((CREDENTIALS, http.secret_name.as_str()));
            secrets.extend(http.tls_secret_name.as_deref().map(|name| (CLIENT_TLS, name)));
        }
        let nats = self
            .nats
            .as_ref()
            .map(|nats| (&nats.credentials_secret_name, &nats.tls));
        let rabbitmq = self
            .rabbitmq
            .as_ref()
            .map(|queue| (&queue.credentials_secret_name, &queue.tls));
        for (credentials, tls) in nats.into_iter().chain(rabbitmq) {
            secrets.extend(credentials.as_deref().map(|name| (CREDENTIALS, name)));
            secrets.extend(tls.iter().flat_map(BrokerTls::secrets));
        }
        let pubsub = self
            .pubsub
            .as_ref()
            .and_then(|pubsub| pubsub.credentials_secret_name.as_deref());
        secrets.extend(pubsub.map(|name| (CREDENTIALS, name)));
        secrets
    }
}

/// Port of the webhook in the bridge's container.
pub const WEBHOOK_PORT: u16 = 8081;

/// Requests to a webhook: `POST /` at the Service of the trigger, named `NAME-trigger`.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Secret that authenticates senders. With the key `signingKey`, each request is signed as in Standard Webhooks
    /// (`Webhook-Id`, `Webhook-Timestamp`, `Webhook-Signature`: HMAC-SHA256, at most five minutes old). With the key
    /// `token`, each request has the header `Authorization: Bearer TOKEN`. With both, either is accepted.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// Secret of type kubernetes.io/tls with the certificate of the webhook. By default, the webhook speaks plain HTTP, for
    /// a gateway or an Ingress in front of it.
    #[schemars(length(min = 1, max = 253))]
    pub tls_secret_name: Option<String>,
}

/// A stream of NATS JetStream. The bridge makes its durable pull consumer itself, and never the stream.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatsSource {
    /// Addresses of the servers, for example `nats://nats.messaging:4222`, or `tls://` for TLS.
    #[schemars(length(min = 1, max = 16))]
    pub servers: Vec<String>,
    /// Name of the stream.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[^\\s.*>/\\\\]+$"))]
    pub stream: String,
    /// Subject to take messages of, with wildcards. By default, all of the stream.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^\\S+$"))]
    pub subject: Option<String>,
    /// Name of the durable consumer. Defaults to `rproc-NAMESPACE_NAME` of the trigger.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[^\\s.*>/\\\\]+$"))]
    pub consumer: Option<String>,
    /// Secret with `username` and `password`, or `token`, or a credentials file `user.creds`.
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret_name: Option<String>,
    /// How bridge and server trust each other.
    pub tls: Option<BrokerTls>,
    /// Subject of a stream that gets the results. A message's own header `Reply-To` comes first.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[^\\s*>]+$"))]
    pub result_subject: Option<String>,
    /// Subject of a stream that gets the messages whose process failed or could not be created. By default, the server
    /// keeps them in the stream and is told to deliver them no more (`+TERM`).
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[^\\s*>]+$"))]
    pub dead_letter_subject: Option<String>,
}

/// A queue of RabbitMQ. The bridge declares nothing.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RabbitMqSource {
    /// `host:port` of the server. The default port is 5672, or 5671 with TLS.
    #[schemars(length(min = 1, max = 261))]
    pub address: String,
    /// Virtual host. Defaults to `/`.
    #[schemars(length(min = 1, max = 256))]
    pub virtual_host: Option<String>,
    /// Name of the queue. Use a quorum queue, which survives the loss of a server.
    #[schemars(length(min = 1, max = 255))]
    pub queue: String,
    /// Secret with `username` and `password`.
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret_name: Option<String>,
    /// How bridge and server trust each other. If it is set, the bridge uses TLS.
    pub tls: Option<BrokerTls>,
    /// Exchange for the messages whose process failed or could not be created; the routing key is the name of the queue. By
    /// default, such a message is rejected, which sends it to the dead-letter exchange of the queue, if it has one.
    #[schemars(length(min = 1, max = 255))]
    pub dead_letter_exchange: Option<String>,
    /// Queue in which the dead letters arrive. Only `rproc trigger replay` needs it, which takes them from there.
    #[schemars(length(min = 1, max = 255))]
    pub dead_letter_queue: Option<String>,
}

/// A subscription of Google Pub/Sub. The bridge makes neither topics nor subscriptions.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PubSubSource {
    /// The project.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-z0-9.:-]+$"))]
    pub project: String,
    /// Name of the subscription in it.
    #[schemars(length(min = 3, max = 255), regex(pattern = "^[A-Za-z][A-Za-z0-9._~+%-]+$"))]
    pub subscription: String,
    /// `http://host:port` of an emulator, without authentication. By default, the service of Google.
    #[schemars(length(min = 1, max = 261), regex(pattern = "^https?://[^/\\s]+$"))]
    pub endpoint: Option<String>,
    /// Secret with the key file of a service account, `key.json`. By default, Workload Identity.
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret_name: Option<String>,
    /// Topic in the project that gets the results. A message's own attribute `reply-to` comes first.
    #[schemars(length(min = 3, max = 255), regex(pattern = "^[A-Za-z][A-Za-z0-9._~+%-]+$"))]
    pub result_topic: Option<String>,
    /// Topic in the project that gets the messages whose process failed or could not be created. By default, such a message
    /// is not acknowledged, so that the dead-letter policy of the subscription applies.
    #[schemars(length(min = 3, max = 255), regex(pattern = "^[A-Za-z][A-Za-z0-9._~+%-]+$"))]
    pub dead_letter_topic: Option<String>,
    /// Subscription of the topic with the dead letters. Only `rproc trigger replay` needs it, which takes them from there.
    #[schemars(length(min = 3, max = 255), regex(pattern = "^[A-Za-z][A-Za-z0-9._~+%-]+$"))]
    pub dead_letter_subscription: Option<String>,
}
