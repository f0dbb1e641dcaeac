//! The relay: takes agents in, carries each output from one upstream to many followers, and archives it.

pub mod archive;
pub mod authorize;
pub mod directory;
pub mod enrol;
pub mod frame;
pub mod metrics;
pub mod oversee;
pub mod peers;
pub mod piece;
pub mod record;
pub mod service;
pub mod session;

#[cfg(test)]
mod tests;
