//! What a user writes.

#![allow(unreachable_pub, reason = "KubeSchema makes a private copy of each struct")]

mod lifecycle;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvFromSource, EnvVar, LocalObjectReference, PodSchedulingGate, PodSecurityContext, ResourceRequirements,
    SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use strum::{Display, EnumString, IntoStaticStr};

use crate::phase::Phase;
use crate::rules;
use crate::signal::SIGNALS;
use crate::status::RemoteProcessStatus;

pub use lifecycle::{
    BackoffSpec, DEFAULT_BACKOFF_SECONDS, DEFAULT_MAX_BACKOFF_SECONDS, DeadlinesSpec, DesiredState, ExitCodes,
    Leftovers, ReadyWhen, RetriesSpec, RetryAfter, StopSpec, TtlSpec,
};

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TtySize {
    /// Number of lines, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub rows: u16,
    /// Number of characters in a line, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub columns: u16,
}

/// A command to run in a pod. You cannot change anything but `desiredState`, `deadlines.runSeconds` and `ttl` after
/// creation.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "remoteprocess.dev",
    version = "v1alpha1",
    kind = "RemoteProcess",
    plural = "remoteprocesses",
    shortname = "rproc",
    category = "all",
    namespaced,
    status = "RemoteProcessStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A command that runs once in a pod and whose output, end and exit code are never lost in silence.",
    validation = rules::name(),
    selectable = ".status.phase",
    selectable = ".status.reason",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Exit", type_ = "integer", json_path = ".status.exitCode"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt"),
    printcolumn(name = "Started", type_ = "date", json_path = ".status.startedAt"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.duration"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.attempts[-1:].node", priority = 1),
    printcolumn(name = "Command", type_ = "string", json_path = ".spec.command", priority = 1)
)]
#[x_kube(
    validation = rules::fixed_required("image"),
    validation = rules::fixed("imagePullPolicy"),
    validation = rules::fixed_required("command"),
    validation = rules::fixed("args"),
    validation = rules::fixed("env"),
    validation = rules::fixed("envFrom"),
    validation = rules::fixed("workingDir"),
    validation = rules::fixed("resources"),
    validation = rules::fixed("volumeMounts"),
    validation = rules::fixed("securityContext"),
    validation = rules::fixed("stop"),
    validation = rules::fixed("stdin"),
    validation = rules::fixed("stdinFrom"),
    validation = rules::one_standard_input(),
    validation = rules::fixed("tty"),
    validation = rules::fixed("ttySize"),
    validation = rules::tty_size_needs_tty(),
    validation = rules::fixed("leftovers"),
    validation = rules::fixed("output"),
    validation = rules::fixed("agent"),
    validation = rules::fixed("pod"),
    validation = rules::fixed("retries"),
    validation = rules::fixed_within("deadlines", "startSeconds"),
    validation = rules::fixed_within("deadlines", "warnSignal"),
    validation = rules::fixed_within("deadlines", "warnBeforeSeconds"),
    validation = rules::fixed_within("deadlines", "countPaused"),
    validation = rules::fixed("readyWhen"),
    validation = rules::stopped_is_final(),
    validation = rules::mounts(),
)]
#[serde(rename_all = "camelCase")]
pub struct RemoteProcessSpec {
    /// Image of the user's container, as in a pod. It needs to contain only the program.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,
    /// When to pull the image: Always, IfNotPresent or Never. Defaults to the default of Kubernetes.
    #[schemars(extend("enum" = ["Always", "IfNotPresent", "Never"]))]
    pub image_pull_policy: Option<String>,
    /// The program and its first arguments. Required, because the entrypoint of the image is never used. `$(VAR)` is
    /// expanded from the environment, as in a pod; `$$(VAR)` is not.
    #[schemars(length(min = 1, max = 512))]
    pub command: Vec<String>,
    /// More arguments, after those in `command`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub args: Vec<String>,
    /// Environment variables, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub env: Vec<EnvVar>,
    /// Environment variables from ConfigMaps and Secrets, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub env_from: Vec<EnvFromSource>,
    /// Directory in which the program starts. Defaults to that of the image.
    #[schemars(length(max = 4096))]
    pub working_dir: Option<String>,
    /// Whether clients can write to the program's standard input (`rproc attach -i`). Otherwise the input is empty.
    pub stdin: Option<bool>,
    /// A key of a ConfigMap or Secret in the namespace whose value is the program's standard input, instead of `stdin`
    /// and without `tty`. The program starts when the key exists. Each attempt reads the value that the key has when its
    /// pod starts, from the beginning.
    pub stdin_from: Option<StdinSource>,
    /// Whether the program has a terminal. Its output is then one stream, and with `stdin` a client can type into it.
    pub tty: Option<bool>,
    /// Size of the terminal when the program starts. Defaults to 24 rows and 80 columns. `rproc run -t` sets it to the
    /// size of your window.
    pub tty_size: Option<TtySize>,
    /// Requests and limits of the user's container. They apply only to the program.
    pub resources: Option<ResourceRequirements>,
    /// Mounts of the volumes in `pod.volumes` in the user's container. `/`, and the paths at and below `/.rproc` and
    /// `/.rproc-stdin`, are reserved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub volume_mounts: Vec<VolumeMount>,
    /// Security context of the user's container. Defaults to seccomp RuntimeDefault and no privilege escalation.
    pub security_context: Option<SecurityContext>,
    /// Running (default), Paused or Stopped. Paused freezes the program's processes, and does not start a program that
    /// does not run yet. Running lets them continue. Stopped ends the process with its stop path and is final. The
    /// annotation `remoteprocess.dev/reason` appears as the reason in status and Events.
    #[serde(default)]
    pub desired_state: DesiredState,
    /// How the process is stopped.
    pub stop: Option<StopSpec>,
    /// What happens to processes that outlive the program.
    pub leftovers: Option<Leftovers>,
    /// Whether another attempt follows an attempt that failed. By default, none follows.
    pub retries: Option<RetriesSpec>,
    /// Time limits of the process.
    pub deadlines: Option<DeadlinesSpec>,
    /// When the object is deleted after its end. You can change it at any time. By default, it is never deleted.
    pub ttl: Option<TtlSpec>,
    /// When the condition Ready is true.
    pub ready_when: Option<ReadyWhen>,
    /// What happens to the output.
    pub output: Option<OutputSpec>,
    /// The agent next to the user's container.
    pub agent: Option<AgentSpec>,
    /// The pod around the containers.
    pub pod: Option<PodSpec>,
}

/// A key that is the standard input of a program: exactly one of these.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::one_stdin_source())]
pub struct StdinSource {
    /// A key of a ConfigMap, of its `data` or `binaryData`.
    pub config_map_key_ref: Option<ConfigMapKey>,
    /// A key of a Secret.
    pub secret_key_ref: Option<SecretKey>,
}

/// A key of a ConfigMap in the namespace of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// What happens to the output.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutputSpec {
    /// Disk space in the pod for output that is not in the archive yet. Defaults to 256Mi, at least 1Mi. `whenFull`
    /// decides what happens when it is full.
    pub spool_size: Option<Quantity>,
    /// What happens when the spool is full.
    pub when_full: Option<WhenFull>,
    /// Values that are replaced by `***` in the output, inside the pod, before any output is stored or sent. Offsets
    /// count the bytes after the replacement. At most 32 values of at most 4 KiB; an empty value is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub mask: Vec<MaskSource>,
    /// How much of the output the container's own log gets.
    pub echo: Option<Echo>,
    /// Whether both streams use one pipe. This keeps their true order, and all output is standard output.
    pub merge: Option<bool>,
    /// When status shows the last lines of the output.
    pub tail_in_status: Option<TailInStatus>,
}

/// What happens when the spool is full. Auto (default) holds the program back while the archive makes progress, and
/// drops the oldest output after 30 s without progress. Block holds the program back for as long as it takes.
/// DropOldest never holds it back. Dropped output is a gap in the stream and a number in the status.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum WhenFull {
    /// Hold the program back while the archive makes progress; drop the oldest output after 30 s without progress.
    #[default]
    Auto,
    /// Hold the program back for as long as it takes.
    Block,
    /// Drop the oldest output at once.
    DropOldest,
}

/// Source of a value to mask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaskSource {
    /// A key of a Secret in the namespace of the process.
    pub secret_key_ref: SecretKey,
}

/// A key of a Secret in the namespace of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// How much of the output goes to the container's own log, for `kubectl logs` and log collectors: Limited (default, the
/// first 1 MiB), All (what the log accepts without delay) or None.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum Echo {
    /// The first 1 MiB.
    #[default]
    Limited,
    /// As much as the log accepts without delay.
    All,
    /// Nothing.
    None,
}

/// Whether the status contains the last lines of the output: Always (default), OnFailure or Never. Every user who can
/// read the object can read them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum TailInStatus {
    /// After every end.
    #[default]
    Always,
    /// After every end except success.
    OnFailure,
    /// Never.
    Never,
}

/// The agent next to the user's container.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// Requests and limits of the agent's container. Defaults to those of the installation.
    pub resources: Option<ResourceRequirements>,
}

/// The pod around the containers: fields as in a Kubernetes PodSpec.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::volume_names(), validation = rules::labels(), validation = rules::annotations())]
pub struct PodSpec {
    /// ServiceAccount of the pod. Defaults to `default`.
    #[schemars(length(max = 253))]
    pub service_account_name: Option<String>,
    /// Whether the user's container gets the token of the ServiceAccount. Defaults to false.
    pub automount_service_account_token: Option<bool>,
    /// Whether each Service of the namespace adds its variables (`NAME_SERVICE_HOST` and so on) to the environment.
    /// Defaults to false, unlike in a pod, because the variables of a large namespace do not fit into the environment.
    pub enable_service_links: Option<bool>,
    /// Secrets for pulling images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// Scheduling constraints of the pod.
    pub affinity: Option<Affinity>,
    /// PriorityClass of the pod.
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
    /// RuntimeClass of the pod.
    #[schemars(length(max = 253))]
    pub runtime_class_name: Option<String>,
    /// Gates that keep the pod from being scheduled until they are removed, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub scheduling_gates: Vec<PodSchedulingGate>,
    /// Security context of the pod.
    pub security_context: Option<PodSecurityContext>,
    /// Volumes for `volumeMounts`. Names that begin with `rproc-` are reserved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub volumes: Vec<Volume>,
    /// Labels of the pod. The prefix remoteprocess.dev/ is reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod. The prefix remoteprocess.dev/ is reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

fn signal_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
    schemars::json_schema!({ "type": "string", "nullable": true, "enum": names, "maxLength": 16 })
}

/// Seconds between the stop signal and KILL if the spec does not set them, as in a pod.
pub const DEFAULT_GRACE_SECONDS: u32 = 30;
/// Spool size in bytes if the spec does not set it.
pub const DEFAULT_SPOOL_BYTES: u64 = 256 * 1024 * 1024;
/// Smallest spool in bytes.
pub const MIN_SPOOL_BYTES: u64 = 1024 * 1024;

impl RemoteProcess {
    /// Whether the phase is one that never changes again.
    pub fn is_final(&self) -> bool {
        let phase = self.status.as_ref().and_then(|status| status.phase);
        phase.is_some_and(Phase::is_final)
    }
}

impl RemoteProcessSpec {
    /// The program with all its arguments.
    pub fn argv(&self) -> Vec<String> {
        self.command.iter().chain(&self.args).cloned().collect()
    }

    /// Name of the first signal of the stop path.
    pub fn stop_signal(&self) -> &str {
        self.stop
            .as_ref()
            .and_then(|stop| stop.signal.as_deref())
            .unwrap_or("SIGTERM")
    }

    /// Seconds between that signal and KILL.
    pub fn stop_grace_seconds(&self) -> u32 {
        self.stop
            .as_ref()
            .and_then(|stop| stop.grace_period_seconds)
            .unwrap_or(DEFAULT_GRACE_SECONDS)
    }

    /// Size of the program's terminal at its start, if it has one.
    pub fn terminal(&self) -> Option<TtySize> {
        let has_terminal = self.tty.unwrap_or_default();
        has_terminal.then(|| self.tty_size.unwrap_or(TtySize { rows: 24, columns: 80 }))
    }

    /// How much of the output goes to the container's log.
    pub fn echo(&self) -> Echo {
        self.output.as_ref().and_then(|output| output.echo).unwrap_or_default()
    }

    /// What happens when the spool is full.
    pub fn when_full(&self) -> WhenFull {
        self.output
            .as_ref()
            .and_then(|output| output.when_full)
            .unwrap_or_default()
    }

    /// Whether both streams share one pipe.
    pub fn merge(&self) -> bool {
        self.output.as_ref().and_then(|output| output.merge).unwrap_or_default()
    }

    /// When status shows the last lines of the output.
    pub fn tail_in_status(&self) -> TailInStatus {
        self.output
            .as_ref()
            .and_then(|output| output.tail_in_status)
            .unwrap_or_default()
    }
}
