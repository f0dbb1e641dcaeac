//! One vocabulary on the wire and in the status: each phase and each reason has the same name in both.

use remoteprocess_api as api;
use remoteprocess_proto::v1;

/// Two exhaustive matches from one list: a new reason of the API or of the wire does not compile without its
/// counterpart.
macro_rules! reasons {
    ($($api:ident = $wire:ident),* ; $($only_wire:ident),*) => {
        /// A reason of the status in its form on the wire.
        pub fn to_wire(reason: api::Reason) -> v1::Reason {
            match reason {
                $(api::Reason::$api => v1::Reason::$wire,)*
            }
        }

        /// A reason of the wire in its form in the status; `None` for those that no status has.
        pub fn from_wire(reason: v1::Reason) -> Option<api::Reason> {
            match reason {
                $(v1::Reason::$wire => Some(api::Reason::$api),)*
                $(v1::Reason::$only_wire)|* => None,
            }
        }
    };
}

reasons! {
    Completed = Completed,
    NonZeroExit = NonZeroExit,
    Signaled = Signaled,
    OOMKilled = OomKilled,
    Stopped = Stopped,
    CommandNotFound = CommandNotFound,
    CommandNotExecutable = CommandNotExecutable,
    Interrupted = Interrupted,
    NodeLost = NodeLost,
    Evicted = Evicted,
    Preempted = Preempted,
    AgentLost = AgentLost,
    HandoverFailed = HandoverFailed,
    ImagePull = ImagePull,
    Unschedulable = Unschedulable,
    Gated = Gated,
    Quota = Quota,
    Admission = Admission,
    NameConflict = NameConflict,
    InvalidSpec = InvalidSpec,
    CreateContainer = CreateContainer,
    ContainerCreating = ContainerCreating,
    Enrolling = Enrolling,
    StartFailed = StartFailed,
    DeadlineExceeded = DeadlineExceeded,
    Retrying = Retrying,
    ForeignContainer = ForeignContainer,
    Running = Running,
    Paused = Paused,
    Stopping = Stopping,
    Waiting = Waiting;
    Unspecified, DeadlineNear, SessionLost
}

/// A phase of the status in its form on the wire.
pub fn phase_to_wire(phase: api::Phase) -> v1::Phase {
    match phase {
        api::Phase::Pending => v1::Phase::Pending,
        api::Phase::Starting => v1::Phase::Starting,
        api::Phase::Running => v1::Phase::Running,
        api::Phase::Paused => v1::Phase::Paused,
        api::Phase::Stopping => v1::Phase::Stopping,
        api::Phase::Succeeded => v1::Phase::Succeeded,
        api::Phase::Failed => v1::Phase::Failed,
    }
}

#[cfg(test)]
mod tests {
    use strum::VariantArray;

    use super::*;

    #[test]
    fn a_reason_has_one_name_everywhere() {
        for wire in v1::Reason::VARIANTS {
            if let Some(reason) = from_wire(*wire) {
                assert_eq!((to_wire(reason), reason.to_string()), (*wire, wire.to_string()));
            }
        }
    }
}
