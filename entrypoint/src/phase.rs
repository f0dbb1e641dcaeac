//! What the supervisor remembers from one phase to the next, and how long it waits for an agent.

use std::collections::HashSet;
use std::time::Duration;

use remoteprocess_entrypoint::message::{Exited, Outcome, StopCause};
use remoteprocess_entrypoint::run_clock::RunClock;

use crate::clock::Moment;
use crate::link::Presence;

/// How long a connected agent may take to send `Recorded`. The kubelet looks once a second, and a stopped agent may
/// hide the end of the container for at most 3 s. The agent holds the pipes and the exit is in its queue, so nothing is
/// lost.
const RECORDED_WAIT: Duration = Duration::from_secs(1);
/// How long a disconnected agent may take to come back for the exit.
const RETURN_WAIT: Duration = Duration::from_secs(5);
/// How long to report the exit to an agent that connects and disconnects.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// The phase of the run.
pub(crate) enum Phase {
    /// No `Launch` yet.
    Waiting,
    /// The program runs.
    Running,
    /// The program has ended, its leftovers have not.
    Sweeping {
        /// Of the program.
        outcome: Outcome,
        /// Whether the kernel killed it because memory ran out.
        is_oom: bool,
        /// When the program ended.
        at_unix_nanos: u64,
        /// Reaped so far.
        leftovers: u32,
    },
    /// Everything has ended; the agent is told.
    Reporting {
        /// What it is told.
        exited: Exited,
        /// When it was first sent.
        since: Moment,
    },
    /// Exit with this code.
    Done(i32),
}

/// The program, from its start on.
#[derive(Clone, Copy)]
pub(crate) struct Program {
    /// Also its process group.
    pub pid: u32,
    /// When it was started.
    pub at_unix_nanos: u64,
    /// How long it has run and may run.
    pub clock: RunClock,
}

/// The stop path, once it has begun.
pub(crate) struct Stop {
    /// The first cause.
    pub cause: StopCause,
    /// The last signal.
    pub signal: i32,
    /// Processes that were there when the signal was sent.
    pub signalled: HashSet<i32>,
}

/// Until when an exit that was first sent at `since` waits for `Recorded`.
pub(crate) fn report_until(since: Moment, presence: Presence) -> Moment {
    let patience = match presence {
        Presence::Here(at) => at.max(since) + RECORDED_WAIT,
        Presence::Away(at) => at.max(since) + RETURN_WAIT,
    };
    patience.min(since + REPORT_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_agent_has_time_to_record_or_to_return_but_not_for_ever() {
        assert_eq!(report_until(at(100), Presence::Here(at(7))), at(101));
        assert_eq!(report_until(at(100), Presence::Away(at(7))), at(105));
        assert_eq!(report_until(at(100), Presence::Away(at(101))), at(106));
        assert_eq!(report_until(at(100), Presence::Here(at(104))), at(105));
        assert_eq!(report_until(at(100), Presence::Away(at(109))), at(110));
    }
}
