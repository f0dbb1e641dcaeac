//! How the two ends of a stream distinguish a silent connection from a dead one.

use std::time::Duration;

/// How often a silent stream sends a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// After this long without a message a connection is dead: two heartbeats may be lost.
pub const SILENCE: Duration = Duration::from_secs(30);
