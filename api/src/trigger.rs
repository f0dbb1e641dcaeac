//! `ProcessTrigger`: a process for each message of a source.

#![allow(unreachable_pub, reason = "KubeSchema makes a private copy of each struct")]

mod source;
mod status;

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use strum::{Display, EnumString, IntoStaticStr};

use crate::bridge::BridgeSpec;
use crate::rules;
use crate::spec::RemoteProcessSpec;

pub use source::{HttpSource, NatsSource, PubSubSource, RabbitMqSource, SourceSpec, WEBHOOK_PORT};
pub use status::{ProcessTriggerStatus, ReplayProgress, ReplayStatus};

/// Longest name of a trigger, in bytes: the names of its processes add a hyphen and a hash.
pub const MAX_TRIGGER_NAME: usize = 31;
/// Largest payload in bytes that can be set: a ConfigMap holds 1 MiB in all, and base64 adds a third.
pub const MAX_PAYLOAD_BYTES: u32 = 512 * 1024;
/// Largest payload in bytes in an environment variable: the size of a RemoteProcess is limited as a whole.
pub const MAX_ENV_PAYLOAD_BYTES: u32 = 32 * 1024;
/// Most processes at once if the spec does not say.
pub const DEFAULT_MAX_RUNNING: u32 = 10;
/// Seconds for which the id of a message is remembered after its process has ended, if the spec does not say: one day.
pub const DEFAULT_REMEMBER_SECONDS: u32 = 86_400;
/// Name of the file with the payload.
pub const PAYLOAD_FILE: &str = "payload";
/// Environment variable with the payload, and of its file, if the spec does not say.
pub const DEFAULT_PAYLOAD_ENV: &str = "MESSAGE";
/// Directory of the file with the payload, if the spec does not say.
pub const DEFAULT_PAYLOAD_DIRECTORY: &str = "/var/run/rproc-message";

/// Most bytes of the annotation [`names::ANNOTATION_TEST_MESSAGE`](crate::names::ANNOTATION_TEST_MESSAGE).
pub const MAX_TEST_MESSAGE_BYTES: usize = 64 * 1024;
/// Seconds after which the bridge ignores a [`TestMessage`] or a [`ReplayRequest`]: it is still there when the bridge
/// starts again.
pub const TEST_MESSAGE_SECONDS: u32 = 600;
/// Most dead letters that one [`ReplayRequest`] sends again.
pub const MAX_REPLAY: u32 = 1000;

/// A source of messages, each of which becomes exactly one RemoteProcess.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "remoteprocess.dev",
    version = "v1alpha1",
    kind = "ProcessTrigger",
    plural = "processtriggers",
    shortname = "ptrig",
    namespaced,
    status = "ProcessTriggerStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A source of messages, each of which becomes exactly one RemoteProcess.",
    validation = rules::trigger_name(),
    printcolumn(name = "Source", type_ = "string", json_path = ".status.source"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.running"),
    printcolumn(name = "Succeeded", type_ = "integer", json_path = ".status.succeeded"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failed"),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.lag"),
    printcolumn(name = "Last-Message", type_ = "date", json_path = ".status.lastMessageTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Dead-Lettered", type_ = "integer", json_path = ".status.deadLettered", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct ProcessTriggerSpec {
    /// ServiceAccount, in the namespace of the trigger, under which the bridge takes messages and creates processes. Bind
    /// it to the ClusterRole `remoteprocess-trigger`.
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: String,
    /// Where messages come from. Set exactly one source.
    pub source: SourceSpec,
    /// How the id of a message is found, and how its payload reaches the program.
    pub message: Option<MessageSpec>,
    /// The processes to create.
    pub template: ProcessTemplate,
    /// How many processes there are at once, and what happens to messages and processes in the end.
    pub policy: Option<PolicySpec>,
    /// Whether the bridge takes no messages. They wait in the broker; the HTTP source answers 503. Processes that run
    /// continue, and their results are sent. Defaults to false.
    pub suspend: Option<bool>,
    /// The pods of the bridge. By default, there is one.
    pub bridge: Option<BridgeSpec>,
}

/// How the id of a message is found, and how its payload reaches the program.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::header_needs_its_name(), validation = rules::payload_environment_is_small())]
pub struct MessageSpec {
    /// What makes two messages the same one. Auto (default) is the id that the broker or the sender gives: `Nats-Msg-Id`
    /// or the sequence in the stream; `message_id` of AMQP; the attribute `message-id` or the message id of Pub/Sub; the
    /// headers `Webhook-Id` or `Idempotency-Key` of HTTP; before them source and id of a CloudEvent; and the SHA-256 of
    /// the payload if there is none of these. Header is the value of `idHeader`. Body is the SHA-256 of the payload.
    pub id: Option<MessageId>,
    /// Name of the header with the id. A message without it is refused.
    #[schemars(length(min = 1, max = 256))]
    pub id_header: Option<String>,
    /// How the payload reaches the program. File (default) is a file `payload` in the directory `payloadDirectory`, and the
    /// environment variable `payloadEnv` has its path. Env is the environment variable `payloadEnv` itself. Stdin is the
    /// standard input of the program. None: the program does not get it. It is never part of the arguments.
    pub payload: Option<Payload>,
    /// Name of the environment variable for the payload or its path. Defaults to MESSAGE.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub payload_env: Option<String>,
    /// Directory for the file. Defaults to /var/run/rproc-message.
    #[schemars(length(min = 2, max = 256), regex(pattern = "^/[^:]*$"))]
    pub payload_directory: Option<String>,
    /// Largest payload in bytes. A larger message is dead-lettered. Defaults to 524288, or 32768 with Env, which are the
    /// largest values.
    #[schemars(range(min = 0, max = 524_288))]
    pub max_bytes: Option<u32>,
}

/// What makes two messages the same one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum MessageId {
    /// The id that the broker or the sender gives, or else the SHA-256 of the payload.
    #[default]
    Auto,
    /// The value of a header.
    Header,
    /// The SHA-256 of the payload.
    Body,
}

/// How the payload reaches the program.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum Payload {
    /// As a file.
    #[default]
    File,
    /// As an environment variable.
    Env,
    /// As the standard input.
    Stdin,
    /// Not at all.
    None,
}

/// The processes to create.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::template_has_no_ttl(), validation = rules::template_has_no_input())]
pub struct ProcessTemplate {
    /// Labels and annotations of the processes.
    pub metadata: Option<TemplateMetadata>,
    /// The spec of a RemoteProcess. Of `deadlines`, `startSeconds` counts from the creation of the process, not from the
    /// arrival of the message.
    pub spec: RemoteProcessSpec,
}

/// Labels and annotations of the processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::template_labels(), validation = rules::template_annotations())]
pub struct TemplateMetadata {
    /// Labels. The prefix remoteprocess.dev/ is reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations. The prefix remoteprocess.dev/ is reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How many processes there are at once, and what happens to messages and processes in the end.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    /// Most processes of this trigger that have not ended, 1 to 1000. Further messages wait in the broker; the HTTP source
    /// answers 429. Defaults to 10.
    #[schemars(range(min = 1, max = 1000))]
    pub max_running: Option<u32>,
    /// Most processes that are created in a minute, 1 to 60000. By default, there is no limit.
    #[schemars(range(min = 1, max = 60_000))]
    pub max_per_minute: Option<u32>,
    /// When a message is acknowledged. Created (default): when its process exists. Finished: when its process has ended.
    /// Either way, a message that is delivered again does not become a second process.
    pub acknowledge: Option<Acknowledge>,
    /// Seconds for which the process, and with it the id of its message, is kept after its end: 60 to 2592000. A message
    /// with this id that arrives later is a new one. Defaults to 86400.
    #[schemars(range(min = 60, max = 2_592_000))]
    pub remember_seconds: Option<u32>,
}

/// When a message is acknowledged.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum Acknowledge {
    /// When its process exists.
    #[default]
    Created,
    /// When its process has ended.
    Finished,
}

/// A message that `rproc trigger test` asks the bridge to send to the source of its trigger: the JSON in the annotation
/// [`names::ANNOTATION_TEST_MESSAGE`](crate::names::ANNOTATION_TEST_MESSAGE), at most [`MAX_TEST_MESSAGE_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TestMessage {
    /// Differs for each test. A nonce that the bridge has seen is ignored.
    pub nonce: String,
    /// When the test was made. A test older than [`TEST_MESSAGE_SECONDS`] is ignored.
    pub time: Timestamp,
    /// The id that the sender gives: `Nats-Msg-Id`, `message_id` of AMQP, the attribute `message-id` of Pub/Sub, or
    /// `Webhook-Id`.
    pub id: String,
    /// Headers, or attributes.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The payload in base64 (RFC 4648, section 4).
    #[serde(default)]
    pub data: String,
}

/// A request of `rproc trigger replay` to send dead letters to the source of the trigger again: the JSON in the annotation
/// [`names::ANNOTATION_REPLAY`](crate::names::ANNOTATION_REPLAY). The bridge answers in [`ReplayStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplayRequest {
    /// Differs for each request. One that the status names already is ignored.
    pub nonce: String,
    /// When the request was made. One older than [`TEST_MESSAGE_SECONDS`] is ignored.
    pub time: Timestamp,
    /// Most dead letters to send, at most [`MAX_REPLAY`]. With 0, the bridge only counts them.
    pub limit: u32,
}

impl ProcessTriggerSpec {
    /// How the payload reaches the program.
    pub fn payload(&self) -> Payload {
        let payload = self.message.as_ref().and_then(|message| message.payload);
        payload.unwrap_or_default()
    }

    /// Name of the environment variable for the payload or its path.
    pub fn payload_env(&self) -> &str {
        let name = self.message.as_ref().and_then(|message| message.payload_env.as_deref());
        name.unwrap_or(DEFAULT_PAYLOAD_ENV)
    }

    /// Directory for the file with the payload.
    pub fn payload_directory(&self) -> &str {
        let path = self
            .message
            .as_ref()
            .and_then(|message| message.payload_directory.as_deref());
        path.unwrap_or(DEFAULT_PAYLOAD_DIRECTORY)
    }

    /// Largest payload in bytes.
    pub fn max_payload_bytes(&self) -> u32 {
        let largest = match self.payload() {
            Payload::Env => MAX_ENV_PAYLOAD_BYTES,
            Payload::File | Payload::Stdin | Payload::None => MAX_PAYLOAD_BYTES,
        };
        let bytes = self.message.as_ref().and_then(|message| message.max_bytes);
        bytes.unwrap_or(largest).min(largest)
    }

    /// Most processes that have not ended.
    pub fn max_running(&self) -> u32 {
        let limit = self.policy.as_ref().and_then(|policy| policy.max_running);
        limit.unwrap_or(DEFAULT_MAX_RUNNING)
    }

    /// When a message is acknowledged.
    pub fn acknowledge(&self) -> Acknowledge {
        let when = self.policy.as_ref().and_then(|policy| policy.acknowledge);
        when.unwrap_or_default()
    }

    /// Seconds for which a process is kept after its end.
    pub fn remember_seconds(&self) -> u32 {
        let seconds = self.policy.as_ref().and_then(|policy| policy.remember_seconds);
        seconds.unwrap_or(DEFAULT_REMEMBER_SECONDS)
    }

    /// Whether no messages are taken.
    pub fn is_suspended(&self) -> bool {
        self.suspend.unwrap_or_default()
    }
}
