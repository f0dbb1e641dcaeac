//! Time: one clock for deadlines, one for records.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// A point in time: how long after the machine started, suspended time included.
pub type Moment = Duration;

/// Now, for deadlines.
pub fn now() -> Moment {
    duration(clock_gettime(ClockId::Boottime))
}

/// Now, for records: nanoseconds since the Unix epoch.
pub fn unix_nanos() -> u64 {
    u64::try_from(duration(clock_gettime(ClockId::Realtime)).as_nanos()).unwrap_or(u64::MAX)
}

fn duration(time: Timespec) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}
