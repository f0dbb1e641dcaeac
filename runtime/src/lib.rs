//! What every server shares: logs, the shutdown token, and the admin port with health and metrics.
//!
//! Arrows: none to a sibling. Invariant: nothing here reads the environment or decides anything about processes.

// The macros that print panic if the stream is closed.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod admin;
mod logs;
mod shutdown;

pub use admin::{Gate, Readiness, admin};
pub use logs::{AuditFile, LogError, LogFormat, init_logs};
pub use prometheus_client;
pub use shutdown::shutdown_token;
