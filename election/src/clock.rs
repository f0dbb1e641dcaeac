//! The clock of the question whether the lease is still held: the time in which the machine was suspended counts. The
//! timers of the runtime leave it out.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine started, suspended time included. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Default for Clock {
    fn default() -> Self {
        Self::new(|| Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Clock").field(&self.now()).finish()
    }
}

impl Clock {
    pub(crate) fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> Duration {
        (self.0)()
    }
}

/// Until when the lease is certainly held by this clock.
#[derive(Debug)]
pub(crate) struct Fence {
    clock: Clock,
    /// A holder that could not renew for this long holds it no more.
    deadline: Duration,
    /// When the request that renewed it was sent, in nanoseconds.
    renewed: AtomicU64,
}

impl Fence {
    pub(crate) fn new(clock: Clock, deadline: Duration, renewed: Duration) -> Self {
        Self {
            clock,
            deadline,
            renewed: AtomicU64::new(nanos(renewed)),
        }
    }

    /// The moment before a request is sent.
    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// The request that was sent at this moment has renewed it.
    pub(crate) fn renew(&self, sent: Duration) {
        self.renewed.store(nanos(sent), Ordering::Relaxed);
    }

    /// Whether it may have been over since the last renewal.
    pub(crate) fn is_over(&self) -> bool {
        let renewed = Duration::from_nanos(self.renewed.load(Ordering::Relaxed));
        self.now().saturating_sub(renewed) >= self.deadline
    }
}

/// 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
