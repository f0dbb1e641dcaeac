//! Leadership by a Kubernetes Lease: of several pods that could do a work, only the holder of the lease does it.
//!
//! The rules are those of client-go: the lease of another pod counts as expired only when **this** pod has seen no renewal
//! for the lease's duration by its own clock, so that differences between the clocks of nodes do no harm; a holder that
//! could not renew for [`Timing::renew_deadline`] stops its work, which is before another pod may take the lease.
//!
//! Two rules more: a Lease of another program is not taken; and who makes a Lease that was not there waits as long as a
//! holder that does not know of its deletion may work, unless nobody has ever led.
//!
//! Arrows: none.
//! Invariant: the work is polled only while the lease is certainly held, and never after another pod could have taken it.

mod candidate;
mod clock;
mod lease;
mod trouble;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use candidate::{Candidate, Standing, Timing};
pub use lease::Mark;
pub use trouble::Obstacle;

use clock::{Clock, Fence};
use lease::{Step, claimed, decide, mark, stranger};
use trouble::{Logged, Trouble};

/// Maximum time for one request, so that one hung connection does not use up the whole renew deadline.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Since when the lease is certainly held: the moment before the request that renewed it was sent, by two clocks.
#[derive(Clone, Copy, Debug)]
struct Term {
    renewed: Instant,
    on_clock: Duration,
}

/// A candidate in its election.
pub struct Election {
    leases: Api<Lease>,
    candidate: Candidate,
    clock: Clock,
    /// The content that the lease had last, and since when it is known.
    seen: Option<(LeaseSpec, Instant)>,
    /// The last attempt has read that nobody else holds the lease.
    is_free: bool,
    /// When this candidate has made the Lease, if it was not there, and nobody else has held it since. Then a holder may
    /// work that does not know yet.
    made: watch::Sender<Option<Instant>>,
    /// The answer to a creation of the Lease is not known.
    is_making: bool,
    logged: Logged,
    standing: watch::Sender<Standing>,
}

impl Election {
    /// A candidate that does nothing yet.
    pub fn new(client: Client, candidate: Candidate) -> Self {
        Self {
            leases: Api::namespaced(client, &candidate.namespace),
            candidate,
            clock: Clock::default(),
            seen: None,
            is_free: false,
            made: watch::Sender::default(),
            is_making: false,
            logged: Logged::default(),
            standing: watch::Sender::default(),
        }
    }

    /// What the candidate knows about its place, now and later.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Campaigns for the lease until `shutdown`, and runs `lead` each time that this candidate holds it.
    ///
    /// `begin` is called before that. It notes, where a deletion of the Lease does not reach it, that a candidate leads, and
    /// returns true if nobody has led before: of several that call it, at most one gets true. Who has made a Lease that was
    /// not there, and is not the first, waits for the lease's duration before it leads.
    ///
    /// `lead` gets a token that is canceled when its time is over. When the lease is lost its future is dropped at once,
    /// before another may take the lease; on shutdown it has [`Timing::handover`] to end, then the lease is released so
    /// that the next holder need not wait for it to expire. When `lead` returns by itself, the lease is released, and the
    /// candidate campaigns again. What `lead` spawns must end with its future: only what is polled with it is fenced.
    pub async fn run<Begin, Noting, Lead, Work>(mut self, shutdown: CancellationToken, mut begin: Begin, mut lead: Lead)
    where
        Begin: FnMut() -> Noting,
        Noting: Future<Output = bool>,
        Lead: FnMut(CancellationToken) -> Work,
        Work: Future<Output = ()>,
    {
        while let Some(term) = self.acquire(&shutdown).await {
            info!(identity = %self.candidate.identity, lease = %self.candidate.lease, "leading: this pod holds the lease");
            self.stand(Standing::Leading);
            let token = CancellationToken::new();
            let _end_children = token.clone().drop_guard();
            let (made, duration) = (self.made.subscribe(), self.candidate.timing.lease_duration);
            let mut has_begun = false;
            let work = async {
                let beginning = async {
                    if !begin().await {
                        until_nobody_else_works(made, duration).await;
                    }
                };
                if token.run_until_cancelled(beginning).await.is_some() {
                    has_begun = true;
                    lead(token.clone()).await;
                }
            };
            let is_ours = self.serve(term, &shutdown, &token, work).await;
            // The next holder would not wait for one that may still work: it waits until the lease expires.
            if is_ours && (has_begun || self.made.borrow().is_none()) {
                self.release().await;
            }
            if has_begun {
                // Since then this candidate alone has worked.
                self.made.send_replace(None);
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
            let (sent, on_clock) = (Instant::now(), self.clock.now());
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return None,
                outcome = self.attempt(sent + REQUEST_TIMEOUT) => outcome,
            };
            match outcome {
                Ok(true) => {
                    return Some(Term {
                        renewed: sent,
                        on_clock,
                    });
                }
                Ok(false) => {
                    let holder = self.seen.as_ref().and_then(|(lease, _)| lease.holder_identity.clone());
                    let holder = holder.unwrap_or_default();
                    if *self.standing.borrow() != (Standing::StandBy { holder: holder.clone() }) {
                        info!(holder, "stand-by: another pod holds the lease");
                    }
                    self.stand(Standing::StandBy { holder });
                }
                Err(trouble) => {
                    self.log(&trouble);
                    self.stand(Standing::Failing {
                        obstacle: trouble.obstacle,
                        is_free: self.is_free,
                        message: trouble.message,
                    });
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = sleep_until(sent + self.candidate.timing.retry_period) => {}
            }
        }
    }

    fn log(&mut self, trouble: &Trouble) {
        let Trouble { obstacle, message } = trouble;
        if self.logged.is_due(*obstacle, Instant::now()) {
            warn!(?obstacle, "{message}");
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
        let Timing {
            handover,
            renew_deadline,
            ..
        } = self.candidate.timing;
        let fence = Fence::new(self.clock.clone(), renew_deadline, term.on_clock);
        let ending = {
            let mut lost = pin!(self.renew_until_lost(term, &fence));
            // Polled each time before the work is.
            let mut over = pin!(poll_fn(|_| {
                if !fence.is_over() {
                    return Poll::Pending;
                }
                warn!("the lease could not be renewed in time");
                Poll::Ready(())
            }));
            tokio::select! {
                biased;
                () = &mut over => return false,
                () = &mut lost => return false,
                () = &mut work => return true,
                () = shutdown.cancelled() => {}
            }
            token.cancel();
            // Renewals continue in the meantime: the work must not outlive the lease.
            tokio::select! {
                biased;
                () = &mut over => false,
                () = &mut lost => false,
                () = &mut work => true,
                () = tokio::time::sleep(handover) => true,
            }
        };
        debug!(ending, "the leader's work is over");
        ending
    }

    /// Renews the lease until another holds it or the deadline has passed.
    async fn renew_until_lost(&mut self, mut term: Term, fence: &Fence) {
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
            let (sent, on_clock) = (Instant::now(), fence.now());
            match self.attempt(deadline.min(sent + REQUEST_TIMEOUT)).await {
                Ok(true) => {
                    term.renewed = sent;
                    fence.renew(on_clock);
                    pause = renew_period;
                }
                Ok(false) => {
                    warn!("another pod holds the lease");
                    return;
                }
                Err(trouble) => {
                    self.log(&trouble);
                    if trouble.obstacle == Obstacle::Foreign {
                        return;
                    }
                }
            }
            if Instant::now() >= term.renewed + renew_deadline {
                warn!("the lease could not be renewed in time");
                return;
            }
        }
    }

    /// Reads the lease once, and makes the write that follows, until `limit`. Returns true if it is ours afterwards.
    async fn attempt(&mut self, limit: Instant) -> Result<bool, Trouble> {
        self.is_free = false;
        match timeout_at(limit, self.read_and_write()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Trouble::late(&self.candidate)),
        }
    }

    async fn read_and_write(&mut self) -> Result<bool, Trouble> {
        let name = self.candidate.lease.clone();
        let current = self.leases.get_opt(&name).await;
        let current = current.map_err(|error| Trouble::of(&self.candidate, "read", &error))?;
        if let Some(whose) = current.as_ref().and_then(|lease| stranger(lease, &self.candidate)) {
            return Err(Trouble::foreign(&self.candidate, &whose));
        }
        let spec = current.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        if spec
            .as_ref()
            .is_some_and(|lease| lease.holder_identity.as_ref() != Some(&self.candidate.identity))
        {
            self.is_making = false;
            self.made.send_replace(None);
        }
        if let Some((known, unchanged_for)) = self.observe(spec.as_ref())
            && decide(&known, unchanged_for, &self.candidate) == Step::Wait
        {
            return Ok(false);
        }
        self.is_free = true;
        let claimed = claimed(spec.as_ref(), &self.candidate, Timestamp::now());
        let written = self.write(current, claimed).await;
        written.map_err(|error| Trouble::of(&self.candidate, "taken or renewed", &error))?;
        Ok(true)
    }

    /// Of two that take the lease at once, one gets a conflict, because of the resourceVersion or the name. That is treated
    /// as any error: the next read shows which one won.
    async fn write(&mut self, current: Option<Lease>, claimed: LeaseSpec) -> kube::Result<()> {
        let is_new = current.is_none();
        let mut lease = current.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.candidate.lease.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        mark(&mut lease.metadata, &self.candidate.mark);
        lease.spec = Some(claimed);
        lease.metadata.managed_fields = None;
        if is_new {
            self.is_making = true;
            self.leases.create(&PostParams::default(), &lease).await?;
        } else {
            let name = &self.candidate.lease;
            self.leases.replace(name, &PostParams::default(), &lease).await?;
        }
        // A creation whose answer was lost may have made what is now renewed.
        if std::mem::take(&mut self.is_making) {
            self.made.send_replace(Some(Instant::now()));
        }
        Ok(())
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

/// Waits until no former holder of a Lease that was not there can still work: one that reaches the API server sees the new
/// one, and one that does not stops at its deadline. If this one is deleted, too, it begins again.
async fn until_nobody_else_works(mut made: watch::Receiver<Option<Instant>>, duration: Duration) {
    loop {
        let Some(at) = *made.borrow_and_update() else { return };
        info!(
            ?duration,
            "there was no Lease: waits, because a former holder may not know yet"
        );
        tokio::select! {
            () = sleep_until(at + duration) => return,
            changed = made.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

#[cfg(test)]
mod tests;
