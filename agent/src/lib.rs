//! The agent: the sidecar that owns the output of one process.
//!
//! It takes the read ends of the pipes from the entrypoint, keeps the output on a spool until it is archived, and
//! serves the operator with `Executor` over mutual TLS.
//!
//! Arrows: proto, tls, runtime, entrypoint (its library). No Kubernetes here.
//! Invariant: a kill of this process at any instant neither loses a byte nor touches the program.

// The macros that print panic if the stream is closed.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod app;
pub mod args;
mod backoff;
pub mod clock;
pub mod crash;
pub mod enroll;
pub mod exit;
pub mod home;
pub mod install;
pub mod mask;
pub mod process;
pub mod service;
pub mod spool;
pub mod supervise;
