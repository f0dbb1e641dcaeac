//! Fault injection: a stream protocol on a simulated network and clock, a controller on a real API server whose
//! connection fails at each call and each event, a proxy that cuts connections, and scenarios on a real cluster that
//! end its parts in mid-stream.
//!
//! Arrows: a test crate, it may use any of ours; nothing depends on it. Invariant: whatever is broken, a follower
//! receives exactly what the program wrote, or the loss is reported; and the process ends as it would have.

pub mod attacks;
pub mod cluster;
pub mod proxy;
pub mod reconcile;
pub mod seeds;
pub mod simulation;
