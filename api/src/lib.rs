//! The objects `RemoteProcess`, `ProcessTrigger` and `ProcessSink`: their fields, their rules, their conditions and every name on which several parts must agree.
//!
//! Arrows: none to a sibling; no client, no async runtime, nothing of the wire protocol.
//! Invariant: every field of the spec has an effect; what is not built yet is not here.

pub mod bridge;
pub mod condition;
pub mod crd;
pub mod identifier;
pub mod names;
pub mod phase;
pub mod requester;
pub mod rules;
pub mod sanitize;
pub mod signal;
pub mod sink;
pub mod spec;
pub mod status;
pub mod trigger;

pub use bridge::{BridgeCondition, BridgeReason, BrokerTls};
pub use condition::{Condition, ConditionType, CsrReason, EventAction, EventReason, OutputReason};
pub use phase::{Phase, Reason};
pub use requester::Requester;
pub use sink::{ProcessSink, ProcessSinkSpec, ProcessSinkStatus};
pub use spec::{
    AgentSpec, ConfigMapKey, DesiredState, Echo, Leftovers, MaskSource, OutputSpec, PodSpec, ReadyWhen, RemoteProcess,
    RemoteProcessSpec, RetryAfter, SecretKey, StdinSource, StopSpec, TailInStatus, WhenFull,
};
pub use status::{
    AttemptExit, AttemptOutput, AttemptStatus, ExitSource, OutputStatus, RemoteProcessStatus, RetriesStatus,
    StopStatus, StreamStatus, UsageStatus,
};
pub use trigger::{ProcessTrigger, ProcessTriggerSpec, ProcessTriggerStatus};
