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
#[must_use]
pub fn is_of_relay(condition: &Condition) -> bool {
    let of_relay = [
        ConditionType::OutputSealed,
        ConditionType::OutputLost,
        ConditionType::OutputBlocked,
        ConditionType::ArchiveUnavailable,
    ];
    condition.type_.parse().is_ok_and(|kind| of_relay.contains(&kind))
}

/// The condition of the given type.
#[must_use]
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    let name: &str = kind.into();
    conditions.iter().find(|condition| condition.type_ == name)
}

/// Whether the condition of the given type is there with status `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}
