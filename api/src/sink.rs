//! `ProcessSink`: an event for each change of a process.

#![allow(unreachable_pub, reason = "KubeSchema makes a private copy of each struct")]

mod destination;
mod status;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use strum::{Display, EnumString, IntoStaticStr};

use crate::bridge::BridgeSpec;
use crate::rules;

pub use destination::{DestinationSpec, HttpDestination, NatsDestination, PubSubDestination, RabbitMqDestination};
pub use status::ProcessSinkStatus;

/// Longest name of a sink, in bytes: the names of its pods add 22.
pub const MAX_SINK_NAME: usize = 40;
/// Most bytes of output in one event. Blocks of [`OutputFormat::Chunks`] begin at multiples of it, and a line that is
/// longer is divided.
pub const MAX_OUTPUT_BYTES: usize = 32 * 1024;
/// Most bytes of the annotation with the cursor of a sink.
pub const MAX_CURSOR_BYTES: usize = 512;

/// A destination of events about the processes of its namespace.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "remoteprocess.dev",
    version = "v1alpha1",
    kind = "ProcessSink",
    plural = "processsinks",
    shortname = "psink",
    namespaced,
    status = "ProcessSinkStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A destination of events about the processes of its namespace: one CloudEvent for each change, and if wanted for \
           their output.",
    validation = rules::sink_name(),
    printcolumn(name = "Destination", type_ = "string", json_path = ".status.destination"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Sent", type_ = "integer", json_path = ".status.sent"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.waiting"),
    printcolumn(name = "Last-Event", type_ = "date", json_path = ".status.lastEventTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Resent", type_ = "integer", json_path = ".status.resent", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct ProcessSinkSpec {
    /// ServiceAccount, in the namespace of the sink, under which the bridge watches processes, reads their output and sends
    /// the events. Bind it to the ClusterRole `remoteprocess-sink`.
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: String,
    /// Which processes, by their labels. By default, all of the namespace. A process that is selected only later gets all
    /// of its events then.
    pub selector: Option<LabelSelector>,
    /// Where events go. Set exactly one destination.
    pub destination: DestinationSpec,
    /// The output to send. By default, none.
    pub output: Option<SinkOutput>,
    /// Whether the bridge sends no events. They are sent later, except of processes that are deleted until then. Defaults
    /// to false.
    pub suspend: Option<bool>,
    /// The pods of the bridge. By default, there is one.
    pub bridge: Option<BridgeSpec>,
}

/// The output to send. A process has its last event, which says how it ended, after the last event of its output.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::each_stream_once())]
pub struct SinkOutput {
    /// How the output is divided into events. Chunks: blocks of 32 KiB. A block is sent when it is full, or when the
    /// attempt has ended. Lines: one event for each line, which is sent when the line is complete or the attempt has
    /// ended; a line of more than 32 KiB is divided.
    #[serde(rename = "as")]
    pub format: OutputFormat,
    /// Streams to send, Stdout and Stderr. Defaults to both. A process with a terminal has only Stdout.
    #[schemars(length(min = 1, max = 2))]
    pub streams: Option<Vec<OutputStream>>,
}

/// How the output is divided into events.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum OutputFormat {
    /// Blocks of [`MAX_OUTPUT_BYTES`].
    #[default]
    Chunks,
    /// Lines of at most [`MAX_OUTPUT_BYTES`].
    Lines,
}

/// A stream of output.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    Display,
    EnumString,
    IntoStaticStr,
)]
pub enum OutputStream {
    /// The standard output.
    Stdout,
    /// The standard error.
    Stderr,
}

impl ProcessSinkSpec {
    /// Whether no events are sent.
    pub fn is_suspended(&self) -> bool {
        self.suspend.unwrap_or_default()
    }
}

impl SinkOutput {
    /// Whether this stream is sent.
    pub fn has(&self, stream: OutputStream) -> bool {
        self.streams.as_ref().is_none_or(|streams| streams.contains(&stream))
    }
}
