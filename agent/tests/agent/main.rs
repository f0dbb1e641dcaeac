//! The real agent and the real entrypoint as processes, with a relay in the test.

// Everything here is a test, though clippy sees only functions marked so.
#![allow(clippy::unwrap_used)]

mod attach;
mod crashes;
mod endings;
mod exec;
mod kills;
mod masking;
mod pod;
mod policies;
mod relay;
mod run;
mod verbs;
mod wait;

use wait::{in_time, until};
