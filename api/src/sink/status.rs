//! What the bridge reports about a sink.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

/// Observed state of a ProcessSink. The counts continue over restarts of the bridge; what it counted in the last seconds
/// before it was killed is missing.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessSinkStatus {
    /// Generation of the spec that this status describes.
    pub observed_generation: Option<i64>,
    /// Kind of the destination: HTTP, NATS, RabbitMQ or PubSub.
    pub destination: Option<String>,
    /// Ready, whether events are sent; Connected, whether the bridge has its destination; Deployed, whether the operator
    /// could make the bridge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// Events that the destination has confirmed.
    pub sent: Option<u64>,
    /// Times that an event was sent again, because the destination had not confirmed it.
    pub resent: Option<u64>,
    /// Processes with events that are not sent yet.
    pub waiting: Option<u32>,
    /// When the last event was confirmed.
    pub last_event_time: Option<Timestamp>,
}
