//! How a program ended, as the entrypoint reports it.

use serde::{Deserialize, Serialize};

use crate::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND};

/// How the program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Code, signal, or why it never ran.
    pub outcome: Outcome,
    /// When the program itself (not its leftovers) ended, in nanoseconds since the Unix epoch.
    pub at_unix_nanos: u64,
    /// Resources of the program and all descendants that were reaped.
    pub usage: Usage,
    /// Processes that were still alive when the program ended and had to be ended.
    pub leftovers: u32,
    /// Processes of the container that the kernel killed since the launch because memory ran out; 0 if the container
    /// cannot see its counter.
    pub oom_kills: u64,
    /// Whether the program itself is one of them.
    pub is_oom: bool,
    /// Why the stop path ran, if it did: the first cause.
    pub stop: Option<StopCause>,
}

/// The ending of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Ended by itself with this code, 0 to 255.
    Code(i32),
    /// Ended by this signal.
    Signal(i32),
    /// Never ran: no such program. Code 127.
    NotFound {
        /// A message for the user that names the program.
        message: String,
    },
    /// Never ran: the program exists and the kernel refused to start it. Code 126.
    NotExecutable {
        /// A message for the user that names the program.
        message: String,
    },
}

impl Outcome {
    /// The exit code as shells define it: the program's own, 128 + n for a signal, 127, 126.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Code(code) => *code,
            Self::Signal(number) => 128_i32.saturating_add(*number),
            Self::NotFound { .. } => EXIT_NOT_FOUND,
            Self::NotExecutable { .. } => EXIT_NOT_EXECUTABLE,
        }
    }
}

/// Resources used since the launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, microseconds: that of the container according to its cgroup, or that of all processes
    /// that were reaped (getrusage(2)).
    pub user_micros: u64,
    /// CPU time in the kernel, microseconds, likewise.
    pub system_micros: u64,
    /// Largest resident set of any one process, bytes.
    pub max_rss_bytes: u64,
    /// Peak memory of the whole container, including page cache, bytes; absent if the cgroup does not report it.
    pub peak_memory_bytes: Option<u64>,
    /// Read from block devices by the processes that were reaped, bytes.
    pub read_bytes: u64,
    /// Written to block devices likewise.
    pub written_bytes: u64,
}

/// Who requested the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopCause {
    /// [`ToEntrypoint::Stop`](crate::message::ToEntrypoint::Stop).
    Requested,
    /// A stop signal to PID 1: the kubelet ends the pod, or the program requested its own end.
    Terminated,
    /// No agent for longer than `agent_lost_millis`.
    AgentLost,
    /// The program ran for longer than `run_deadline`.
    Deadline,
}
