//! Leadership by a Kubernetes Lease: every replica serves streams, only the holder of the lease reconciles.
//!
//! The rules are those of client-go: the lease of another replica counts as expired only when **this** replica has seen
//! no renewal for the lease's duration by its own clock, so that differences between the clocks of nodes do no harm; a
//! holder that could not renew for [`Timing::renew_deadline`] stops its work, which is before another replica may take
//! the lease.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Name of the Lease in the operator's namespace.
pub const LEASE_NAME: &str = remoteprocess_api::names::LEASE;

/// Maximum time for one request, so that one hung connection does not use up the whole renew deadline.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Maximum time for the work to end by itself on shutdown.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);

/// The candidate in the election, and the place of the Lease.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Unique among the replicas: the name of the pod.
    pub identity: String,
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
    /// Between two attempts to take or to renew.
    pub retry_period: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// What to do about a Lease that was just read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is ours already: write a new renew time.
    Renew,
    /// It is free, or its holder is silent: take it.
    Take,
    /// Another replica holds it.
    Wait,
}

/// Decides about a lease whose content has not changed for `unchanged_for` by
/// the local clock.
fn decide(lease: &LeaseSpec, unchanged_for: Duration, candidate: &Candidate) -> Step {
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    if holder == candidate.identity {
        return Step::Renew;
    }
    let duration = match lease.lease_duration_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.unsigned_abs().into()),
        _ => candidate.timing.lease_duration,
    };
    if holder.is_empty() || unchanged_for >= duration {
        Step::Take
    } else {
        Step::Wait
    }
}

/// The lease's content after `candidate` took or renewed it at `now`.
fn claimed(previous: Option<&LeaseSpec>, candidate: &Candidate, now: Timestamp) -> LeaseSpec {
    let renewing = previous.filter(|lease| lease.holder_identity.as_ref() == Some(&candidate.identity));
    let transitions = previous.and_then(|lease| lease.lease_transitions).unwrap_or(0);
    let seconds = candidate.timing.lease_duration.as_secs().max(1);
    LeaseSpec {
        holder_identity: Some(candidate.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
        acquire_time: renewing
            .and_then(|lease| lease.acquire_time.clone())
            .or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(match (previous, renewing) {
            (Some(_), None) => transitions.saturating_add(1),
            _ => transitions,
        }),
        ..LeaseSpec::default()
    }
}

/// Campaigns for the lease until `shutdown`, and runs `lead` each time that this
/// replica holds it.
///
/// `lead` gets a token that is cancelled when its time is over. When the lease
/// is lost its future is dropped at once, before another replica may take the
/// lease; on shutdown it has five seconds to end, then the lease is released so
/// that the next replica need not wait for it to expire. When `lead` returns by
/// itself, the function releases the lease and campaigns again.
pub async fn run_as_leader<Lead, Work>(
    client: Client,
    candidate: Candidate,
    shutdown: CancellationToken,
    mut lead: Lead,
) where
    Lead: FnMut(CancellationToken) -> Work,
    Work: Future<Output = ()>,
{
    let mut election = Election::new(client, candidate);
    while let Some(term) = election.acquire(&shutdown).await {
        info!(identity = %election.candidate.identity, "leading: this replica holds the lease");
        let token = CancellationToken::new();
        let _end_children = token.clone().drop_guard();
        if election.serve(term, &shutdown, &token, lead(token.clone())).await {
            election.release().await;
        }
        info!("no longer leading");
    }
}

/// Since when the lease is certainly held: the moment before the request that renewed it was sent.
#[derive(Clone, Copy, Debug)]
struct Term {
    renewed: Instant,
}

struct Election {
    leases: Api<Lease>,
    candidate: Candidate,
    seen: Option<(LeaseSpec, Instant)>,
}

impl Election {
    fn new(client: Client, candidate: Candidate) -> Self {
        Self {
            leases: Api::namespaced(client, &candidate.namespace),
            candidate,
            seen: None,
        }
    }

    /// Waits for the lease; `None` on shutdown.
    async fn acquire(&mut self, shutdown: &CancellationToken) -> Option<Term> {
        loop {
            let sent = Instant::now();
            let limit = sent + REQUEST_TIMEOUT;
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return None,
                outcome = timeout_at(limit, self.attempt()) => outcome,
            };
            match outcome {
                Ok(Ok(true)) => return Some(Term { renewed: sent }),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => warn!(%error, "cannot read or take the lease"),
                Err(_) => warn!("no answer about the lease from the API server"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = sleep_until(sent + self.candidate.timing.retry_period) => {}
            }
        }
    }

    /// Runs the work while the lease is renewed. Returns true if the lease is still ours at the end and can be
    /// released.
    async fn serve(
        &mut self,
        term: Term,
        shutdown: &CancellationToken,
        token: &CancellationToken,
        work: impl Future<Output = ()>,
    ) -> bool {
        let mut work = pin!(work);
        let ending = {
            let mut lost = pin!(self.renew_until_lost(term));
            tokio::select! {
                biased;
                () = &mut lost => return false,
                () = &mut work => return true,
                () = shutdown.cancelled() => {}
            }
            token.cancel();
            // Renewals continue in the meantime: the work must not outlive the lease.
            tokio::select! {
                biased;
                () = &mut lost => false,
                () = &mut work => true,
                () = tokio::time::sleep(HANDOVER_TIMEOUT) => true,
            }
        };
        debug!(ending, "the leader's work is over");
        ending
    }

    /// Renews the lease until another holds it or the deadline has passed.
    async fn renew_until_lost(&mut self, mut term: Term) {
        let Timing {
            renew_deadline,
            retry_period,
            ..
        } = self.candidate.timing;
        loop {
            let deadline = term.renewed + renew_deadline;
            sleep_until(deadline.min(Instant::now() + retry_period)).await;
            let sent = Instant::now();
            match timeout_at(deadline.min(sent + REQUEST_TIMEOUT), self.attempt()).await {
                Ok(Ok(true)) => term.renewed = sent,
                Ok(Ok(false)) => {
                    warn!("another replica holds the lease");
                    return;
                }
                Ok(Err(error)) => warn!(%error, "cannot renew the lease"),
                Err(_) => warn!("no answer about the lease from the API server"),
            }
            if Instant::now() >= term.renewed + renew_deadline {
                warn!("the lease could not be renewed in time");
                return;
            }
        }
    }

    /// Reads the lease once, and makes the write that follows. Returns true if it is ours afterwards.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let current = self.leases.get_opt(LEASE_NAME).await?;
        let spec = current.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        if let Some(spec) = &spec {
            let unchanged_for = self.observe(spec);
            if decide(spec, unchanged_for, &self.candidate) == Step::Wait {
                return Ok(false);
            }
        }
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(LEASE_NAME.into()),
                // The lock: of two that take it at once, one gets a conflict.
                resource_version: current.as_ref().and_then(ResourceExt::resource_version),
                ..ObjectMeta::default()
            },
            spec: Some(claimed(spec.as_ref(), &self.candidate, Timestamp::now())),
        };
        // A conflict is treated as any error: the next read shows which replica won.
        match current {
            Some(_) => self.leases.replace(LEASE_NAME, &PostParams::default(), &lease).await?,
            None => self.leases.create(&PostParams::default(), &lease).await?,
        };
        Ok(true)
    }

    /// For how long this content of the lease has been seen unchanged.
    fn observe(&mut self, spec: &LeaseSpec) -> Duration {
        let now = Instant::now();
        match &self.seen {
            Some((seen, since)) if seen == spec => now - *since,
            _ => {
                self.seen = Some((spec.clone(), now));
                Duration::ZERO
            }
        }
    }

    /// Releases the lease, so that no replica has to wait for it to expire.
    async fn release(&mut self) {
        let limit = Instant::now() + REQUEST_TIMEOUT;
        match timeout_at(limit, self.write_release()).await {
            Ok(Ok(())) => debug!("lease released"),
            Ok(Err(error)) => warn!(%error, "cannot release the lease; it expires by itself"),
            Err(_) => warn!("no answer to the release of the lease; it expires by itself"),
        }
    }

    async fn write_release(&mut self) -> kube::Result<()> {
        let Some(mut lease) = self.leases.get_opt(LEASE_NAME).await? else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_ref() != Some(&self.candidate.identity) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        lease.metadata.managed_fields = None;
        self.leases.replace(LEASE_NAME, &PostParams::default(), &lease).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
