//! The controller's metrics.

use std::sync::LazyLock;

use remoteprocess_runtime::prometheus_client::metrics::counter::Counter;
use remoteprocess_runtime::prometheus_client::metrics::family::Family;
use remoteprocess_runtime::prometheus_client::metrics::gauge::Gauge;
use remoteprocess_runtime::prometheus_client::metrics::histogram::Histogram;
use remoteprocess_runtime::prometheus_client::registry::{Registry, Unit};

/// The outcome of a successful reconcile; the others are the categories of its errors.
pub(super) const OK: &str = "ok";

/// The outcome of a reconcile in which the API server refused the pod.
pub(super) const REFUSED: &str = "refused";

type Outcome = [(&'static str, &'static str); 1];

/// Upper limits of the buckets in seconds: a reconcile is a few requests to the API server.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0];

/// The controller's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// 1 on the replica that leads.
    pub leading: Gauge,
    /// Pods that were created.
    pub pods_created: Counter,
    /// 1 if new pods get the entrypoint by an image volume.
    pub image_volumes: Gauge,
    /// How long reconciles took, with every outcome.
    pub duration: Histogram,
    reconciles: Family<Outcome, Counter>,
}

impl Metrics {
    /// Counts a reconcile by its outcome, a word of a closed set.
    pub(crate) fn count_reconcile(&self, outcome: &'static str) {
        self.reconciles.get_or_create(&[("outcome", outcome)]).inc();
    }
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    leading: Gauge::default(),
    pods_created: Counter::default(),
    image_volumes: Gauge::default(),
    duration: Histogram::new(BUCKETS),
    reconciles: Family::default(),
});

/// The one set of this program.
pub(crate) fn metrics() -> &'static Metrics {
    &METRICS
}

/// Adds the controller's metrics to the program's registry.
pub(crate) fn register(registry: &mut Registry) {
    let metrics = metrics();
    let controller = registry.sub_registry_with_prefix("remoteprocess_controller");
    controller.register("leading", "1 on the replica that reconciles", metrics.leading.clone());
    controller.register("pods_created", "Pods that were created", metrics.pods_created.clone());
    let help = "1 if new pods get the entrypoint by an image volume, 0 if by a postStart hook";
    controller.register("image_volumes", help, metrics.image_volumes.clone());
    controller.register(
        "reconciles",
        "Reconciles of processes by outcome",
        metrics.reconciles.clone(),
    );
    controller.register_with_unit(
        "reconcile_duration",
        "How long reconciles took",
        Unit::Seconds,
        metrics.duration.clone(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use remoteprocess_runtime::prometheus_client::encoding::text::encode;

    #[test]
    fn reconciles_are_counted_by_outcome() {
        let mut registry = Registry::default();
        register(&mut registry);
        metrics().count_reconcile("conflict");
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(
            text.contains(r#"remoteprocess_controller_reconciles_total{outcome="conflict"}"#),
            "{text}"
        );
    }
}
