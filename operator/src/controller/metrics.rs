//! The controller's metrics.

use std::sync::LazyLock;

use remoteprocess_runtime::prometheus_client::metrics::counter::Counter;
use remoteprocess_runtime::prometheus_client::metrics::family::Family;
use remoteprocess_runtime::prometheus_client::metrics::gauge::Gauge;
use remoteprocess_runtime::prometheus_client::registry::Registry;

/// The outcome of a successful reconcile; the others are the categories of its errors.
pub(super) const OK: &str = "ok";

/// The outcome of a reconcile in which the API server refused the pod.
pub(super) const REFUSED: &str = "refused";

type Outcome = [(&'static str, &'static str); 1];

/// The controller's metrics.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// 1 on the replica that leads.
    pub leading: Gauge,
    /// Pods that were created.
    pub pods_created: Counter,
    /// 1 if new pods get the entrypoint by an image volume.
    pub image_volumes: Gauge,
    passes: Family<Outcome, Counter>,
}

impl Metrics {
    /// Counts a reconcile by its outcome, a word of a closed set.
    pub(crate) fn count_pass(&self, outcome: &'static str) {
        self.passes.get_or_create(&[("outcome", outcome)]).inc();
    }
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

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
    controller.register("passes", "Passes over a process by outcome", metrics.passes.clone());
}

#[cfg(test)]
mod tests {
    use super::*;
    use remoteprocess_runtime::prometheus_client::encoding::text::encode;

    #[test]
    fn reconciles_are_counted_by_outcome() {
        let mut registry = Registry::default();
        register(&mut registry);
        metrics().count_pass("conflict");
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(
            text.contains(r#"remoteprocess_controller_passes_total{outcome="conflict"}"#),
            "{text}"
        );
    }
}
