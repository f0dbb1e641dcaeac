//! The operator: a controller that keeps one pod per attempt, and a relay that carries and archives the output.
//!
//! Arrows: operator → api, proto, tls, runtime, election. Invariant: nothing that a client or the network does changes the
//! outcome of a process or silently loses a byte.

// The macros that print panic if the stream is closed.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod app;
pub mod args;
pub(crate) mod audit;
pub mod authority;
pub mod backoff;
pub mod controller;
pub mod directory;
#[cfg(test)]
pub(crate) mod fake_api;
#[cfg(test)]
pub(crate) mod fake_cluster;
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod hostile;
pub(crate) mod phase;
pub mod relay;
pub(crate) mod report;
pub(crate) mod status;
pub(crate) mod timeline;
pub mod trace;
