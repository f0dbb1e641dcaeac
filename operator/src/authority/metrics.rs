//! Metrics of refused connections and calls, and of the expiry of CAs and certificates.

use std::{
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use remoteprocess_runtime::prometheus_client::metrics::counter::Counter;
use remoteprocess_runtime::prometheus_client::metrics::family::Family;
use remoteprocess_runtime::prometheus_client::metrics::gauge::Gauge;
use remoteprocess_runtime::prometheus_client::registry::Registry;
use remoteprocess_tls::{Limits, Refusal};

type Labels = [(&'static str, &'static str); 2];

static REFUSED: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);

static EXPIRY: LazyLock<Family<[(&'static str, &'static str); 1], Gauge>> = LazyLock::new(Family::default);

/// Records when a certificate of the operator expires; `None` for one that does not exist.
pub(crate) fn expiry(certificate: &'static str, not_after: Option<SystemTime>) {
    let labels = [("certificate", certificate)];
    let Some(not_after) = not_after else {
        EXPIRY.remove(&labels);
        return;
    };
    let seconds = not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    EXPIRY
        .get_or_create(&labels)
        .set(i64::try_from(seconds).unwrap_or(i64::MAX));
}

/// Counts what was refused at a listener; both words are of closed sets.
pub fn count_refusal(listener: &'static str, reason: &'static str) {
    REFUSED
        .get_or_create(&[("listener", listener), ("reason", reason)])
        .inc();
}

/// Limits of the main listener; `http1`: whether it serves HTTP/1.1, too.
#[must_use]
pub fn main_limits(http1: bool) -> Limits {
    Limits {
        http1,
        on_refusal: |refusal: Refusal| count_refusal("main", refusal.reason()),
        ..Limits::default()
    }
}

/// Limits of the enrollment listener.
#[must_use]
pub fn enroll_limits() -> Limits {
    Limits {
        on_refusal: |refusal: Refusal| count_refusal("enroll", refusal.reason()),
        ..Limits::anonymous()
    }
}

/// Adds the counters to the program's registry.
pub fn register(registry: &mut Registry) {
    registry.register(
        "remoteprocess_refused",
        "Connections, enrollments and certificate requests that were refused, by listener and reason",
        REFUSED.clone(),
    );
    registry.register(
        "remoteprocess_certificate_expiry_timestamp_seconds",
        "When a certificate of this replica expires: the CA that signs, the announced one, or its own certificate",
        EXPIRY.clone(),
    );
}

#[cfg(test)]
mod tests {
    use remoteprocess_runtime::prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn refusals_are_distinguished() {
        let mut registry = Registry::default();
        register(&mut registry);
        (main_limits(true).on_refusal)(Refusal::Slow);
        (enroll_limits().on_refusal)(Refusal::Displaced);
        let mut text = String::new();
        encode(&mut text, &registry).expect("text");
        for line in [
            r#"remoteprocess_refused_total{listener="main",reason="HandshakeTimeout"} 1"#,
            r#"remoteprocess_refused_total{listener="enroll",reason="Displaced"} 1"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
