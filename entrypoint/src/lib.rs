//! The messages between entrypoint and agent, the socket that carries them, and the clock that both use.
//!
//! The `entrypoint` program (`main.rs` of this crate) is PID 1 of the user's container; the agent is a sidecar in the
//! same pod. They share one directory, the handover volume, with one Unix socket in it ([`SOCKET_PATH`]). The agent
//! listens, the entrypoint connects, and reconnects as long as the container lives.
//!
//! Arrows: this crate depends on no sibling; the agent uses the library.
//!
//! Invariant: whatever bytes the other side sends, [`message::decode`] and
//! [`socket::Connection::receive`] return a value or an error; they neither panic nor keep more
//! than one packet and [`socket::MAX_DESCRIPTORS`] descriptors.

// The macros that print panic if the stream is closed.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod clock;
mod exit;
pub mod input;
pub mod message;
pub mod run_clock;
pub mod session;
pub mod socket;

/// Where the agent listens, as seen from both containers.
pub const SOCKET_PATH: &str = "/.rproc/socket";

/// Where the program's input is, if it comes from a file ([`message::Launch::stdin_from_file`]): on a volume that only the
/// kubelet writes.
pub const STDIN_FILE: &str = "/.rproc-stdin/stdin";

/// Exit code of the entrypoint where the platform failed and the program never ran: no agent, not
/// PID 1, wrong arguments.
pub const EXIT_PLATFORM: i32 = 125;

/// Exit code for [`message::Outcome::NotExecutable`], as shells have it.
pub const EXIT_NOT_EXECUTABLE: i32 = 126;

/// Exit code for [`message::Outcome::NotFound`], as shells have it.
pub const EXIT_NOT_FOUND: i32 = 127;
