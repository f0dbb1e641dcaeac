use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The media type of the metrics (OpenMetrics 1.0).
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What has to be so before this program may be called ready: all of its gates are open.
#[derive(Clone, Default)]
pub struct Readiness {
    gates: Arc<Mutex<Vec<Gate>>>,
}

/// One precondition, closed at first.
#[derive(Clone)]
pub struct Gate {
    name: &'static str,
    is_open: Arc<AtomicBool>,
}

impl Readiness {
    /// Adds a precondition; the name is shown by `/readyz` while it is closed.
    pub fn gate(&self, name: &'static str) -> Gate {
        let gate = Gate {
            name,
            is_open: Arc::default(),
        };
        self.gates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(gate.clone());
        gate
    }

    fn closed(&self) -> Vec<&'static str> {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates
            .iter()
            .filter(|gate| !gate.is_open.load(Ordering::Relaxed))
            .map(|gate| gate.name)
            .collect()
    }
}

impl Gate {
    /// The precondition is met.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// The precondition is met no more.
    pub fn close(&self) {
        self.is_open.store(false, Ordering::Relaxed);
    }
}

/// Serves `/healthz` (alive: it answers), `/readyz` (all gates open) and `/metrics` over plain HTTP until `shutdown`.
///
/// # Errors
/// The listener breaks.
pub async fn admin(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Arc<Registry>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    // Not axum's graceful shutdown: it waits for idle connections.
    tokio::select! {
        served = async { axum::serve(listener, router(readiness, metrics)).await } => served,
        () = shutdown.cancelled() => Ok(()),
    }
}

fn router(readiness: Readiness, metrics: Arc<Registry>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async move || ready(&readiness)))
        .route("/metrics", get(async move || scrape(&metrics)))
}

fn ready(readiness: &Readiness) -> Response {
    let closed = readiness.closed();
    if closed.is_empty() {
        "ok\n".into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("waiting for {}\n", closed.join(", ")),
        )
            .into_response()
    }
}

fn scrape(metrics: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, metrics) {
        Ok(()) => ([(header::CONTENT_TYPE, METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt;

    use super::*;

    async fn fetch(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = router.clone().oneshot(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn ready_when_all_gates_are_open() {
        let readiness = Readiness::default();
        let (caches, certificate) = (readiness.gate("caches"), readiness.gate("certificate"));
        let router = router(readiness, Arc::default());
        assert_eq!(fetch(&router, "/healthz").await.0, StatusCode::OK);
        caches.open();
        let waiting = (StatusCode::SERVICE_UNAVAILABLE, "waiting for certificate\n".to_owned());
        assert_eq!(fetch(&router, "/readyz").await, waiting);
        certificate.open();
        assert_eq!(fetch(&router, "/readyz").await.0, StatusCode::OK);
        certificate.close();
        assert_eq!(fetch(&router, "/readyz").await, waiting);
    }

    #[tokio::test]
    async fn metrics_are_shown() {
        let (counter, mut registry) = (Counter::<u64>::default(), Registry::default());
        registry.register("handshakes", "Handshakes", counter.clone());
        counter.inc();
        let (status, text) = fetch(&router(Readiness::default(), Arc::new(registry)), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("handshakes_total 1"), "{text}");
    }
}
