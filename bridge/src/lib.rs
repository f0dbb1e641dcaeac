//! The bridge of one ProcessTrigger: takes messages from its source, creates one RemoteProcess for each, and sends the
//! results back. Or of one ProcessSink: sends events about processes to its destination.
//!
//! Arrows: bridge → client, api, proto, runtime, tls, election.
//! Invariant of triggers: the name of a process follows from the trigger and the id of the message, and a message is settled
//! only after the process exists. So a message is neither lost nor run twice, whichever part dies.
//! Invariant of sinks: the cursor of a process moves only after what it passes was confirmed, and an event that is sent
//! again is the same, byte for byte.

// The macros that print panic if the stream is closed.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod app;
pub mod args;
pub mod backoff;
pub mod engine;
pub mod kubernetes;
pub mod message;
pub mod outcome;
pub mod process;
pub mod runs;
pub mod sink;
pub mod source;
pub mod standby;
pub mod status;
