//! The follower, the writer and further commands against relays of the test whose connections break: every byte once,
//! in order, and the right end.

// All of this is test code, but clippy recognizes only functions that are marked as tests.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod attach;
mod exec;
mod follow;
mod fragile;
mod off;
mod proxy;
mod renewal;
mod terminal;
#[path = "../login/world.rs"]
#[allow(dead_code, reason = "the tests of the login use all of it")]
mod world;
