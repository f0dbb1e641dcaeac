//! Where a process is, and why.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr, VariantNames};

/// Where a process is in its life. `Succeeded` and `Failed` are final.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    Display,
    EnumString,
    VariantNames,
    IntoStaticStr,
)]
pub enum Phase {
    /// No container of the current attempt runs yet.
    #[default]
    Pending,
    /// The pod is up and the start is being granted.
    Starting,
    /// The program runs.
    Running,
    /// The program is paused on request; it can continue.
    Paused,
    /// The program was asked to stop and has not ended.
    Stopping,
    /// The program ended with code 0 and was not stopped.
    Succeeded,
    /// Any other end.
    Failed,
}

impl Phase {
    /// Whether the phase never changes again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// Why a process is where it is: a closed set, one CamelCase word each (Kubernetes API conventions, "reason").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum Reason {
    /// The program ended with code 0.
    Completed,
    /// The program ended with another code than 0.
    NonZeroExit,
    /// A signal ended the program.
    Signaled,
    /// The kernel killed the program because memory ran out.
    OOMKilled,
    /// The end was requested.
    Stopped,
    /// There is no such program in the image (code 127).
    CommandNotFound,
    /// The program exists and cannot be run (code 126).
    CommandNotExecutable,
    /// The start was granted, and the pod vanished or its end was never reported.
    Interrupted,
    /// The node is gone.
    NodeLost,
    /// The pod was evicted: by the kubelet, by a drain, or by another use of the eviction API.
    Evicted,
    /// The scheduler took the pod away for one of a higher priority.
    Preempted,
    /// The agent was away for too long.
    AgentLost,
    /// Entrypoint and agent did not find each other.
    HandoverFailed,
    /// The image cannot be pulled.
    ImagePull,
    /// No node takes the pod.
    Unschedulable,
    /// Scheduling gates hold the pod back.
    Gated,
    /// A quota refuses the pod.
    Quota,
    /// Pod Security or another admission rule refuses the pod.
    Admission,
    /// A pod of the same name has another owner.
    NameConflict,
    /// The specification cannot be turned into a pod.
    InvalidSpec,
    /// The kubelet cannot make the container (a missing Secret, say).
    CreateContainer,
    /// Containers are being made.
    ContainerCreating,
    /// The agent is enrolling or asks for the start.
    Enrolling,
    /// Attempts without a start ended too often.
    StartFailed,
    /// A deadline has passed: that of the run, or that of the start without a known reason for the delay.
    DeadlineExceeded,
    /// An attempt ended and another follows.
    Retrying,
    /// A container that is not ours keeps the program from its start, or the pod of an ended attempt alive.
    ForeignContainer,
    /// The program is running.
    Running,
    /// A pause was requested.
    Paused,
    /// The stop path is under way.
    Stopping,
    /// Waits for the first pass of the controller.
    Waiting,
}
