//! Who takes part in an election, by which times, and where it stands.

use std::time::Duration;

use crate::lease::Mark;
use crate::trouble::Obstacle;

/// The candidate in the election, and the place of the Lease.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// Unique among the candidates: the name of the pod. One that begins again under the same name takes its own lease
    /// over at once.
    pub identity: String,
    /// What tells the Lease from one of another program.
    pub mark: Mark,
    /// The election's times.
    pub timing: Timing,
}

/// The times of the election; the defaults are those of client-go's components.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a lease holds after its last renewal.
    pub lease_duration: Duration,
    /// A holder that could not renew for this long stops its work.
    pub renew_deadline: Duration,
    /// Between two renewals.
    pub renew_period: Duration,
    /// Between two attempts to take the lease, and after a renewal that failed.
    pub retry_period: Duration,
    /// How long the work may take to end by itself on shutdown. The lease is renewed in the meantime.
    pub handover: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            renew_period: Duration::from_secs(2),
            retry_period: Duration::from_secs(2),
            handover: Duration::from_secs(5),
        }
    }
}

/// What a candidate knows about its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet, or it has just lost the lease.
    #[default]
    Unknown,
    /// Another holds the lease, and this one waits.
    StandBy {
        /// The holder.
        holder: String,
    },
    /// It holds the lease.
    Leading,
    /// It does not hold the lease, and cannot read or take it.
    Failing {
        /// What keeps it from the lease.
        obstacle: Obstacle,
        /// Nobody holds the lease: it could be read, and cannot be written.
        is_free: bool,
        /// A sentence with the name of the Lease and the cause.
        message: String,
    },
}
