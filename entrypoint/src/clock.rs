//! Time: one clock for deadlines, one for records.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

pub use crate::run_clock::Moment;

const ZERO: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Now, for deadlines: suspended time counts.
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

/// Becomes readable at a moment of [`now`]'s clock. `poll(2)` alone, and a runtime's timers, do not count the time
/// during which the machine is suspended.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// When the kernel has none left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// Sets it to this moment, or to none.
    pub fn set(&self, at: Option<Moment>) {
        // Zero would disarm the timer.
        let value = at.map_or(ZERO, |at| {
            let at = at.max(Duration::from_nanos(1));
            Timespec::try_from(at).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
        });
        let spec = Itimerspec {
            it_interval: ZERO,
            it_value: value,
        };
        // Refused only for an invalid time.
        let _ = timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &spec);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
