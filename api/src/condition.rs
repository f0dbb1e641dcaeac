//! Conditions, after the Kubernetes API conventions ("Typical status properties").

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use strum::{Display, EnumString, IntoStaticStr, VariantNames};

/// Types of our conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr, VariantNames)]
pub enum ConditionType {
    /// The pod has a node. False says why it waits. Written by the controller.
    Scheduled,
    /// The program was launched. Written by the controller.
    Started,
    /// The process ended, with success or not. Written by the controller.
    Finished,
    /// The process ended by itself with code 0. Written by the controller; the message carries the last lines.
    Succeeded,
    /// The process is paused on request; absent otherwise. Written by the controller.
    Paused,
    /// It is as it should be, according to `spec.readyWhen` (kstatus). Written by the controller.
    Ready,
    /// It is still changing; present only then (kstatus). Written by the controller.
    Reconciling,
    /// It will never become as it should be; present only then (kstatus). Written by the controller.
    Stalled,
    /// Byte counts and hashes of the output are fixed and the archive holds it. Written by the relay.
    OutputSealed,
    /// Output is missing; present only then. Written by the relay.
    OutputLost,
    /// The program is held back, because its spool is full; present once it was. Written by the relay.
    OutputBlocked,
    /// The archive takes no output (`StoreFull`, `StoreUnreachable`, `StoreRefused`), which therefore stays in the pod;
    /// present once that was so. Written by the relay.
    ArchiveUnavailable,
}

/// Whether the relay writes this condition; the controller and the relay write the others.
pub fn is_of_relay(condition: &Condition) -> bool {
    let of_relay = [
        ConditionType::OutputSealed,
        ConditionType::OutputLost,
        ConditionType::OutputBlocked,
        ConditionType::ArchiveUnavailable,
    ];
    condition.type_.parse().is_ok_and(|kind| of_relay.contains(&kind))
}

/// Reasons of the relay's conditions. OutputSealed and OutputLost also have the names of seal and gap reasons of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, IntoStaticStr)]
pub enum OutputReason {
    /// The archive holds the whole output.
    Archived,
    /// Output is missing, and the archive does not know why.
    Incomplete,
    /// The spool is full of output that the archive does not hold.
    SpoolFull,
    /// The relay takes no more output from the pod, because its agent sent what no agent sends.
    InvalidOutput,
    /// The store of the archive has no room: disk, quota or size of the bucket.
    StoreFull,
    /// The store does not answer, or answers with an error of its own.
    StoreUnreachable,
    /// The store refuses what is written: credentials, permissions, a missing bucket, a read-only volume.
    StoreRefused,
    /// The condition no longer holds.
    Resolved,
}

/// Reasons of Events that are not reasons or phases of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, IntoStaticStr)]
pub enum EventReason {
    /// The program will soon have run for as long as it may.
    DeadlineNear,
    /// The program cannot be paused.
    PauseFailed,
    /// The API server refuses what the relay writes into the status.
    StatusRefused,
    /// The program continues after a pause.
    Resumed,
}

/// What is done about it (`action` of an Event), if it is not a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, IntoStaticStr)]
pub enum EventAction {
    /// The program is warned.
    Warn,
    /// The program is to be paused.
    Pause,
    /// A fact is recorded in the status.
    Record,
    /// The process waits.
    Waiting,
    /// A pod was deleted that a foreign container kept alive.
    PodDeleted,
    /// The bridge of a trigger is made.
    Deploy,
}

/// Reasons of the conditions of a `CertificateSigningRequest` that the authority answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, IntoStaticStr)]
pub enum CsrReason {
    /// `Approved`: the request names only the user who made it.
    RemoteProcessUser,
    /// `Denied`, or `Failed` if another approved the request.
    RemoteProcessRefused,
}

/// The condition of the given type.
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    let name: &str = kind.into();
    conditions.iter().find(|condition| condition.type_ == name)
}

/// Whether the condition of the given type is there with status `True`.
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}
