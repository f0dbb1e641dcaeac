//! The relay: enrolls agents, carries each output from one upstream to many followers, and archives it.

pub mod archive;
pub mod attempt;
pub(crate) mod calls;
pub mod core;
pub mod enroll;
pub mod error;
pub mod faces;
pub mod grpc;
pub(crate) mod http;
pub mod live;
pub mod metrics;
pub mod piece;
pub mod reconcile;
pub mod status;

#[cfg(test)]
mod tests;
