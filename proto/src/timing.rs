//! How the two ends of a stream tell a silent line from a dead one.

use std::time::Duration;

/// How often a silent stream says that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// After so long without a message a line is dead: two heartbeats may be lost.
pub const SILENCE: Duration = Duration::from_secs(30);
