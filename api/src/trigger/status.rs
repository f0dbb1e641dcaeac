//! What the bridge reports about a trigger.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

/// Observed state of a ProcessTrigger. The counts continue over restarts of the bridge; what it counted in the last seconds
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
    /// The last replay of dead letters (`rproc trigger replay`).
    pub replay: Option<ReplayStatus>,
    /// A replay that has begun and not ended. If the bridge is killed, the next one continues there.
    pub replaying: Option<ReplayProgress>,
}

/// How far a replay is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplayProgress {
    /// Of the request.
    pub nonce: String,
    /// Dead letters that the source has confirmed.
    pub replayed: u32,
}

/// What came of a request to send dead letters to the source again.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplayStatus {
    /// Of the request.
    pub nonce: String,
    /// When it ended.
    pub time: Option<Timestamp>,
    /// Dead letters that the source has confirmed.
    pub replayed: u32,
    /// Dead letters that remain. Absent if the broker does not tell.
    pub left: Option<u64>,
    /// Why it ended before its limit, if something went wrong.
    pub message: Option<String>,
}
