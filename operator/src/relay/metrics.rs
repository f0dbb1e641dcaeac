//! The relay's metrics.

use std::sync::LazyLock;

use remoteprocess_proto::v1::{Gap, GapReason};
use remoteprocess_runtime::prometheus_client::metrics::counter::Counter;
use remoteprocess_runtime::prometheus_client::metrics::family::Family;
use remoteprocess_runtime::prometheus_client::metrics::gauge::Gauge;
use remoteprocess_runtime::prometheus_client::registry::{Registry, Unit};

/// The relay's metrics.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Live attempts.
    pub attempts: Gauge,
    /// Attempts that are read from their home at another replica.
    pub mirrors: Gauge,
    /// Streams of users.
    pub followers: Gauge,
    /// Bytes of output taken from agents.
    pub received: Counter,
    /// Bytes of output made durable.
    pub archived: Counter,
    /// Bytes of output sent to users.
    pub sent: Counter,
    /// Puts that the archive's store refused.
    pub archive_failures: Counter,
    /// Bytes in the archive, when retention last looked.
    pub archive_size: Gauge,
    /// Attempts whose output retention has removed.
    pub archive_expired: Counter,
    /// Bytes in the archive that retention has removed.
    pub archive_expired_size: Counter,
    /// Writes of a status that the API server refused.
    pub status_refused: Counter,
    /// Attempts whose program is held back by a full spool.
    pub spools_full: Gauge,
    /// Bytes in the spools of the attempts of this home.
    pub spool_used: Gauge,
    gaps: Family<[(&'static str, &'static str); 1], Counter>,
    lost: Family<[(&'static str, &'static str); 1], Counter>,
    /// Starts that were granted, including homes for agents that had already launched.
    pub starts: Counter,
}

impl Metrics {
    /// Gives each reason a value: Prometheus sees no increase in a counter that it has not seen before.
    fn begin_gaps(&self) {
        let known = (1..64).map_while(|number| GapReason::try_from(number).ok());
        for reason in known.map(|reason| [("reason", reason.into())]) {
            let _ = (self.gaps.get_or_create(&reason), self.lost.get_or_create(&reason));
        }
    }

    /// Counts a range of output that is permanently lost. How long it is may not be known.
    pub fn count_gap(&self, gap: &Gap) {
        let reason = [("reason", gap.reason().into())];
        self.gaps.get_or_create(&reason).inc();
        let bytes = gap.to.map_or(0, |to| to.saturating_sub(gap.from));
        self.lost.get_or_create(&reason).inc_by(bytes);
    }
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

/// The one set of this program.
pub fn metrics() -> &'static Metrics {
    &METRICS
}

/// Adds the relay's metrics to the program's registry.
pub fn register(registry: &mut Registry) {
    let metrics = metrics();
    metrics.begin_gaps();
    let relay = registry.sub_registry_with_prefix("remoteprocess_relay");
    relay.register(
        "attempts",
        "Attempts whose output this replica takes",
        metrics.attempts.clone(),
    );
    relay.register(
        "mirrors",
        "Attempts whose output this replica takes from another",
        metrics.mirrors.clone(),
    );
    relay.register(
        "followers",
        "Streams of output that users have open",
        metrics.followers.clone(),
    );
    relay.register_with_unit(
        "received",
        "Output taken from agents",
        Unit::Bytes,
        metrics.received.clone(),
    );
    relay.register_with_unit("archived", "Output made durable", Unit::Bytes, metrics.archived.clone());
    relay.register_with_unit("sent", "Output sent to users", Unit::Bytes, metrics.sent.clone());
    register_archive(relay, metrics);
    relay.register(
        "status_refused",
        "Writes of a status that the API server refused, as by a policy or a missing permission",
        metrics.status_refused.clone(),
    );
    register_losses(relay, metrics);
    relay.register("starts", "Starts granted to agents", metrics.starts.clone());
}

/// What holds programs back, and what is lost.
fn register_losses(relay: &mut Registry, metrics: &Metrics) {
    relay.register(
        "spools_full",
        "Attempts whose program is held back because the spool is full",
        metrics.spools_full.clone(),
    );
    relay.register_with_unit(
        "spool_used",
        "Output in the spools of the attempts whose output this replica takes, as their agents last reported it",
        Unit::Bytes,
        metrics.spool_used.clone(),
    );
    relay.register(
        "gaps",
        "Ranges of output that are permanently lost",
        metrics.gaps.clone(),
    );
    relay.register_with_unit(
        "lost",
        "Output that is permanently lost, as far as its size is known",
        Unit::Bytes,
        metrics.lost.clone(),
    );
}

fn register_archive(relay: &mut Registry, metrics: &Metrics) {
    relay.register(
        "archive_failures",
        "Puts that the archive's store refused",
        metrics.archive_failures.clone(),
    );
    relay.register_with_unit(
        "archive_size",
        "Size of the archive when retention last looked; only on the leader",
        Unit::Bytes,
        metrics.archive_size.clone(),
    );
    relay.register(
        "archive_expired",
        "Attempts whose output retention has removed",
        metrics.archive_expired.clone(),
    );
    relay.register_with_unit(
        "archive_expired_size",
        "Archived output that retention has removed",
        Unit::Bytes,
        metrics.archive_expired_size.clone(),
    );
}
