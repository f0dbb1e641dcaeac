//! The follower, the writer and further commands against relays of ours whose connections break: every byte once, in order,
//! and the right end.

// Everything here is a test, though clippy sees only functions marked so.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod attach;
mod exec;
mod follow;
mod fragile;
