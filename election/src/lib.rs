//! Leadership by a Kubernetes Lease: of several pods that could do a work, only the holder of the lease does it.
//!
//! The rules are those of client-go: the lease of another pod counts as expired only when **this** pod has seen no renewal
//! for the lease's duration by its own clock, so that differences between the clocks of nodes do no harm; a holder that
//! could not renew for [`Timing::renew_deadline`] stops its work, which is before another pod may take the lease.
//!
//! Arrows: none.
//! Invariant: the work is polled only while the lease is certainly held, and never after another pod could have taken it.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Maximum time for one request, so that one hung connection does not use up the whole renew deadline.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

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
    /// With what a new Lease is deleted.
    pub owner: Option<OwnerReference>,
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
        /// Whether the API server refuses it because a right is missing.
        is_forbidden: bool,
        /// What the API server said.
        message: String,
    },
}

/// What to do about a Lease that was just read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is ours already: write a new renew time.
    Renew,
    /// It is free, or its holder is silent: take it.
    Take,
    /// Another holds it.
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

/// Since when the lease is certainly held: the moment before the request that renewed it was sent.
#[derive(Clone, Copy, Debug)]
struct Term {
    renewed: Instant,
}

/// A candidate in its election.
pub struct Election {
    leases: Api<Lease>,
    candidate: Candidate,
    /// The content that the lease had last, and since when it is known.
    seen: Option<(LeaseSpec, Instant)>,
    standing: watch::Sender<Standing>,
}

impl Election {
    /// A candidate that does nothing yet.
    pub fn new(client: Client, candidate: Candidate) -> Self {
        Self {
            leases: Api::namespaced(client, &candidate.namespace),
            candidate,
            seen: None,
            standing: watch::Sender::default(),
        }
    }

    /// What the candidate knows about its place, now and later.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Campaigns for the lease until `shutdown`, and runs `lead` each time that this candidate holds it.
    ///
    /// `lead` gets a token that is canceled when its time is over. When the lease is lost its future is dropped at once,
    /// before another may take the lease; on shutdown it has [`Timing::handover`] to end, then the lease is released so
    /// that the next holder need not wait for it to expire. When `lead` returns by itself, the lease is released, and the
    /// candidate campaigns again. What `lead` spawns must end with its future: only what is polled with it is fenced.
    pub async fn run<Lead, Work>(mut self, shutdown: CancellationToken, mut lead: Lead)
    where
        Lead: FnMut(CancellationToken) -> Work,
        Work: Future<Output = ()>,
    {
        while let Some(term) = self.acquire(&shutdown).await {
            info!(identity = %self.candidate.identity, lease = %self.candidate.lease, "leading: this pod holds the lease");
            self.stand(Standing::Leading);
            let token = CancellationToken::new();
            let _end_children = token.clone().drop_guard();
            if self.serve(term, &shutdown, &token, lead(token.clone())).await {
                self.release().await;
            }
            self.stand(Standing::Unknown);
            info!("no longer leading");
        }
    }

    fn stand(&self, standing: Standing) {
        self.standing.send_if_modified(|former| {
            let is_other = *former != standing;
            *former = standing;
            is_other
        });
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
                Ok(Ok(false)) => {
                    let holder = self.seen.as_ref().and_then(|(lease, _)| lease.holder_identity.clone());
                    let holder = holder.unwrap_or_default();
                    if *self.standing.borrow() != (Standing::StandBy { holder: holder.clone() }) {
                        info!(holder, "stand-by: another pod holds the lease");
                    }
                    self.stand(Standing::StandBy { holder });
                }
                Ok(Err(error)) => {
                    warn!(%error, "cannot read or take the lease");
                    self.stand(failing(&error));
                }
                Err(_) => {
                    let message = "no answer about the lease from the API server".to_owned();
                    warn!("{message}");
                    self.stand(Standing::Failing {
                        is_forbidden: false,
                        message,
                    });
                }
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
        let handover = self.candidate.timing.handover;
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
                () = tokio::time::sleep(handover) => true,
            }
        };
        debug!(ending, "the leader's work is over");
        ending
    }

    /// Renews the lease until another holds it or the deadline has passed.
    async fn renew_until_lost(&mut self, mut term: Term) {
        let Timing {
            renew_deadline,
            renew_period,
            retry_period,
            ..
        } = self.candidate.timing;
        let mut pause = renew_period;
        loop {
            let deadline = term.renewed + renew_deadline;
            sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = retry_period;
            let sent = Instant::now();
            match timeout_at(deadline.min(sent + REQUEST_TIMEOUT), self.attempt()).await {
                Ok(Ok(true)) => {
                    term.renewed = sent;
                    pause = renew_period;
                }
                Ok(Ok(false)) => {
                    warn!("another pod holds the lease");
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
        let name = self.candidate.lease.clone();
        let current = self.leases.get_opt(&name).await?;
        let spec = current.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        if let Some((known, unchanged_for)) = self.observe(spec.as_ref())
            && decide(&known, unchanged_for, &self.candidate) == Step::Wait
        {
            return Ok(false);
        }
        let claimed = claimed(spec.as_ref(), &self.candidate, Timestamp::now());
        // Of two that take it at once, one gets a conflict, because of the resourceVersion or the name. That is treated as
        // any error: the next read shows which one won.
        match current {
            Some(mut lease) => {
                lease.spec = Some(claimed);
                lease.metadata.managed_fields = None;
                self.leases.replace(&name, &PostParams::default(), &lease).await?
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(name),
                    owner_references: self.candidate.owner.clone().map(|owner| vec![owner]),
                    ..ObjectMeta::default()
                };
                let lease = Lease {
                    metadata,
                    spec: Some(claimed),
                };
                self.leases.create(&PostParams::default(), &lease).await?
            }
        };
        Ok(true)
    }

    /// The content of the lease, and for how long it has been seen unchanged. A lease that was deleted counts as it was
    /// seen last: its holder may not know yet. `None`: there never was one.
    fn observe(&mut self, found: Option<&LeaseSpec>) -> Option<(LeaseSpec, Duration)> {
        let now = Instant::now();
        match (found, &self.seen) {
            (None, None) => None,
            (None, Some((seen, since))) => Some((seen.clone(), now - *since)),
            (Some(found), Some((seen, since))) if seen == found => Some((seen.clone(), now - *since)),
            (Some(found), _) => {
                self.seen = Some((found.clone(), now));
                Some((found.clone(), Duration::ZERO))
            }
        }
    }

    /// Releases the lease, so that no other has to wait for it to expire.
    async fn release(&mut self) {
        let limit = Instant::now() + REQUEST_TIMEOUT;
        match timeout_at(limit, self.write_release()).await {
            Ok(Ok(())) => debug!("lease released"),
            Ok(Err(error)) => warn!(%error, "cannot release the lease; it expires by itself"),
            Err(_) => warn!("no answer to the release of the lease; it expires by itself"),
        }
    }

    async fn write_release(&mut self) -> kube::Result<()> {
        let Some(mut lease) = self.leases.get_opt(&self.candidate.lease).await? else {
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
        let name = &self.candidate.lease;
        self.leases.replace(name, &PostParams::default(), &lease).await?;
        Ok(())
    }
}

/// Why the lease cannot be read or taken. Only the words of the API server count, so that a repetition is no news.
fn failing(error: &kube::Error) -> Standing {
    let (code, message) = match error {
        kube::Error::Api(status) => (status.code, status.message.clone()),
        other => (0, other.to_string()),
    };
    Standing::Failing {
        is_forbidden: matches!(code, 401 | 403),
        message,
    }
}

#[cfg(test)]
mod tests;
