//! What the bridge reports about a trigger.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use strum::{Display, EnumString, IntoStaticStr};

/// Observed state of a ProcessTrigger. The counts go on over restarts of the bridge; what it counted in the last seconds
/// before it was killed is missing.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessTriggerStatus {
    /// Generation of the spec that this status describes.
    pub observed_generation: Option<i64>,
    /// Kind of the source: HTTP, NATS, RabbitMQ or PubSub.
    pub source: Option<String>,
    /// Ready, whether messages become processes; Connected, whether the bridge has its source; Deployed, whether the
    /// operator could make the bridge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// Messages that were delivered, also if the broker delivered one again.
    pub received: Option<u64>,
    /// Processes that were created.
    pub started: Option<u64>,
    /// Messages whose process existed already.
    pub duplicates: Option<u64>,
    /// Processes that succeeded.
    pub succeeded: Option<u64>,
    /// Processes that failed.
    pub failed: Option<u64>,
    /// Messages that were dead-lettered.
    pub dead_lettered: Option<u64>,
    /// Requests or messages that were refused before anything was stored: wrong signatures, and so on.
    pub refused: Option<u64>,
    /// Processes that have not ended.
    pub running: Option<u32>,
    /// Messages that wait in the broker. Absent if it does not tell.
    pub lag: Option<u64>,
    /// When the last message arrived.
    pub last_message_time: Option<Timestamp>,
}

/// Types of the conditions of a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr)]
pub enum TriggerCondition {
    /// Messages become processes. Written by the bridge.
    Ready,
    /// The bridge has its source. Written by the bridge.
    Connected,
    /// The Deployment of the bridge is as it should be. Written by the operator.
    Deployed,
}

/// Reasons of these conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr)]
pub enum TriggerReason {
    /// It is so.
    Connected,
    /// Messages are taken.
    Taking,
    /// As many processes run as may, or were created in this minute: messages wait.
    Limited,
    /// `spec.suspend` is set.
    Suspended,
    /// The source does not answer.
    Unreachable,
    /// The source refuses the credentials or a permission is missing there.
    Unauthorized,
    /// The certificate of the source, or the way to it, is not trusted.
    Untrusted,
    /// The stream, queue or subscription does not exist.
    NotFound,
    /// The source would take its own results or dead letters as messages again.
    InvalidSource,
    /// The API server does not let the ServiceAccount create processes.
    Forbidden,
    /// The API server refuses the template.
    InvalidTemplate,
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
