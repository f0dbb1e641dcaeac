//! Faults on purpose: a stream protocol on a simulated network and clock, a controller on a real API server whose line
//! fails at each call and each event, a proxy that cuts, and scenarios on a real cluster that end its parts in mid-stream.
//!
//! Arrows: a test crate, it may use any of ours; nothing depends on it. Invariant: whatever is broken, what a follower
//! got is exactly what the program wrote, or the loss has a name; and the process ends as it would have.

pub mod cluster;
pub mod proxy;
pub mod reconcile;
pub mod seeds;
pub mod simulation;
