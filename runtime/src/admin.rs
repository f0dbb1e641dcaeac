use std::{
    collections::VecDeque,
    error::Error,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// The media type of the metrics (OpenMetrics 1.0).
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Preconditions of readiness: the program is ready when all of its gates are open.
#[derive(Clone, Default)]
pub struct Readiness {
    gates: Arc<Mutex<Vec<Gate>>>,
}

/// One precondition, initially closed.
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

    /// Whether all preconditions are met.
    pub fn is_ready(&self) -> bool {
        self.closed().is_empty()
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
    /// Marks the precondition as met.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// Marks the precondition as no longer met.
    pub fn close(&self) {
        self.is_open.store(false, Ordering::Relaxed);
    }
}

/// Maximum number of connections. Another one displaces the oldest.
const CONNECTIONS: usize = 64;

/// Maximum duration of one connection: one request and its answer.
const LIFETIME: Duration = Duration::from_secs(10);

/// Maximum size of one request in bytes.
const REQUEST: usize = 16 << 10;

/// Pause after a failed `accept` (no descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `/healthz` (alive: it answers), `/readyz` (all gates open) and `/metrics` over plain HTTP until `shutdown`.
/// Each connection serves one request within ten seconds, and a new connection always gets a place.
pub async fn admin(listener: TcpListener, readiness: Readiness, metrics: Arc<Registry>, shutdown: CancellationToken) {
    let router = router(readiness, metrics);
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "cannot accept a connection at the admin port"
                );
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(tokio::spawn(answer(stream, router.clone())).abort_handle());
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let mut builder = http1::Builder::new();
    builder.keep_alive(false).max_buf_size(REQUEST);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // If this fails, the peer notices: it gets no answer.
    let _ = timeout(LIFETIME, connection).await;
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
    async fn nothing_else_is_served() {
        let router = router(Readiness::default(), Arc::default());
        for path in [
            "/",
            "/debug",
            "/remoteprocess.v1.Relay/List",
            "/remoteprocess.v1.Enrollment/Enroll",
        ] {
            let request = Request::post(path).body(Body::empty()).expect("a request");
            let response = router.clone().oneshot(request).await.expect("an answer");
            assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        }
        let request = Request::post("/metrics").body(Body::empty()).expect("a request");
        let response = router.oneshot(request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
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

    #[tokio::test]
    async fn idle_connections_keep_no_probe_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, shutdown) = (listener.local_addr().expect("an address"), CancellationToken::new());
        let serving = tokio::spawn(admin(listener, Readiness::default(), Arc::default(), shutdown.clone()));
        let mut idle = Vec::new();
        for _ in 0..500 {
            idle.push(TcpStream::connect(address).await.expect("a connection"));
        }
        let probe = async {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream
                .write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
                .await
                .expect("sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("an answer");
            text
        };
        let text = timeout(Duration::from_secs(5), probe).await.expect("in time");
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        let cut = timeout(Duration::from_secs(5), idle[0].read_u8())
            .await
            .expect("in time");
        assert!(cut.is_err(), "the oldest made room");
        shutdown.cancel();
        serving.await.expect("no panic");
    }
}
