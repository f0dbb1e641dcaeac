//! How the two ends of a stream distinguish a silent connection from a dead one.

use std::time::Duration;

/// How often a silent stream sends a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// After this long without a message a connection is dead: two heartbeats may be lost.
pub const SILENCE: Duration = Duration::from_secs(30);

/// A time span as messages have it. One of more than 292 billion years becomes none.
pub fn to_wire(span: Duration) -> Option<prost_types::Duration> {
    span.try_into().ok()
}
