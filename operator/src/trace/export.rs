//! The way to the receiver of traces: a bounded queue, and one task that sends what is in it by OTLP.

use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use remoteprocess_runtime::prometheus_client::metrics::counter::Counter;
use remoteprocess_runtime::prometheus_client::metrics::family::Family;
use remoteprocess_runtime::prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Spans that wait, about 1 KiB each. Another one is dropped.
const QUEUE: usize = 4096;
/// Spans in one request.
const BATCH: usize = 512;
/// Limit of one request.
const REQUEST: Duration = Duration::from_secs(5);
/// Maximum time that the last spans delay a shutdown.
const FLUSH: Duration = Duration::from_secs(2);

/// The one queue of this program, if traces are on.
static WAITING: OnceLock<mpsc::Sender<SpanData>> = OnceLock::new();

#[derive(Default)]
struct Metrics {
    sent: Counter,
    dropped: Family<[(&'static str, &'static str); 1], Counter>,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

/// Adds the metrics of traces to the program's registry.
pub(crate) fn register(registry: &mut Registry) {
    let metrics = &*METRICS;
    for reason in [QUEUE_FULL, UNREACHABLE, SHUTDOWN] {
        let _ = metrics.dropped.get_or_create(&[("reason", reason)]);
    }
    let traces = registry.sub_registry_with_prefix("remoteprocess_trace");
    let help = "Spans that the receiver of traces has accepted";
    traces.register("spans_sent", help, metrics.sent.clone());
    let help = "Spans that the receiver of traces did not get, by reason";
    traces.register("spans_dropped", help, metrics.dropped.clone());
}

const QUEUE_FULL: &str = "QueueFull";
const UNREACHABLE: &str = "Unreachable";
const SHUTDOWN: &str = "Shutdown";

fn drop_spans(reason: &'static str, spans: usize) {
    METRICS
        .dropped
        .get_or_create(&[("reason", reason)])
        .inc_by(spans as u64);
}

/// Where traces go. Headers come from `OTEL_EXPORTER_OTLP_HEADERS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// URL of the receiver (gRPC).
    pub endpoint: String,
    /// Certificates to trust in addition to the public ones, PEM.
    pub ca: Option<String>,
}

/// Sends the spans of this program.
pub struct Exporter {
    spans: mpsc::Receiver<SpanData>,
    receiver: SpanExporter,
    /// Spans of the request that waits for its answer.
    in_flight: usize,
}

/// Whether traces are on.
pub(crate) fn is_on() -> bool {
    WAITING.get().is_some()
}

/// Queues spans. What does not fit is dropped and counted.
pub(super) fn send(spans: impl Iterator<Item = SpanData>) {
    if let Some(waiting) = WAITING.get() {
        queue(waiting, spans);
    }
}

fn queue(waiting: &mpsc::Sender<SpanData>, spans: impl Iterator<Item = SpanData>) {
    for span in spans {
        if waiting.try_send(span).is_err() {
            drop_spans(QUEUE_FULL, 1);
        }
    }
}

impl Exporter {
    /// Turns traces on. It does not connect yet.
    ///
    /// # Errors
    /// The settings are wrong, or traces are on already.
    pub fn new(otlp: &Otlp, namespace: &str, replica: &str) -> Result<Self, ExporterBuildError> {
        let mut receiver = connect(otlp)?;
        let resource = Resource::builder_empty()
            .with_service_name("remoteprocess-operator")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", replica.to_owned()),
                KeyValue::new("k8s.namespace.name", namespace.to_owned()),
                KeyValue::new("k8s.pod.name", replica.to_owned()),
            ]);
        receiver.set_resource(&resource.build());
        let (waiting, spans) = mpsc::channel(QUEUE);
        // Only a test has two.
        let _ = WAITING.set(waiting);
        Ok(Self {
            spans,
            receiver,
            in_flight: 0,
        })
    }

    /// Sends what is queued until `over`, and then what is left, for at most two seconds.
    pub async fn run(mut self, over: CancellationToken) {
        let late = async {
            over.cancelled().await;
            sleep(FLUSH).await;
        };
        tokio::select! {
            () = self.send_all(&over) => {}
            () = late => drop_spans(SHUTDOWN, self.in_flight + self.spans.len()),
        }
    }

    async fn send_all(&mut self, over: &CancellationToken) {
        let (mut batch, mut is_reached) = (Vec::new(), true);
        loop {
            tokio::select! {
                _ = self.spans.recv_many(&mut batch, BATCH) => {}
                () = over.cancelled(), if !self.spans.is_closed() => self.spans.close(),
            }
            if batch.is_empty() && self.spans.is_closed() && self.spans.is_empty() {
                return;
            }
            self.in_flight = batch.len();
            let sent = self.export(std::mem::take(&mut batch)).await;
            self.in_flight = 0;
            match &sent {
                Ok(()) if !is_reached => info!("the receiver of traces accepts spans again"),
                Err(error) if is_reached => {
                    warn!(error, "the receiver of traces does not accept spans; they are dropped")
                }
                _ => {}
            }
            is_reached = sent.is_ok();
        }
    }

    async fn export(&self, spans: Vec<SpanData>) -> Result<(), String> {
        let count = spans.len();
        if count == 0 {
            return Ok(());
        }
        let exported = timeout(REQUEST, self.receiver.export(spans)).await;
        let sent = exported.map_err(|_| "it did not answer in time".to_owned());
        let sent = sent.and_then(|sent| sent.map_err(|error| error.to_string()));
        match &sent {
            Ok(()) => {
                METRICS.sent.inc_by(count as u64);
            }
            Err(_) => drop_spans(UNREACHABLE, count),
        }
        sent
    }
}

fn connect(otlp: &Otlp) -> Result<SpanExporter, ExporterBuildError> {
    let mut builder = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&otlp.endpoint)
        .with_timeout(REQUEST);
    if otlp.endpoint.starts_with("https://") {
        let tls = ClientTlsConfig::new().with_webpki_roots();
        builder = builder.with_tls_config(match &otlp.ca {
            Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
            None => tls,
        });
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use jiff::Timestamp;
    use remoteprocess_api::{AttemptStatus, RemoteProcess, RemoteProcessSpec};
    use tokio::net::TcpListener;

    use super::super::Tree;
    use super::*;

    fn dropped(reason: &'static str) -> u64 {
        METRICS.dropped.get_or_create(&[("reason", reason)]).get()
    }

    fn spans(count: usize) -> impl Iterator<Item = SpanData> {
        let process = RemoteProcess::new("p", RemoteProcessSpec::default());
        let tree = Tree::of(&process, AttemptStatus::default().number);
        let span = tree.span("run", "test", Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
        std::iter::repeat_n(span, count)
    }

    #[tokio::test]
    async fn a_receiver_that_never_answers_delays_nothing() {
        // The kernel accepts the connection, and nothing reads it.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let otlp = Otlp {
            endpoint: format!("http://{}", silent.local_addr().unwrap()),
            ca: None,
        };
        let (waiting, queued) = mpsc::channel(QUEUE);
        let exporter = Exporter {
            spans: queued,
            receiver: connect(&otlp).unwrap(),
            in_flight: 0,
        };
        let (full, shutdown) = (dropped(QUEUE_FULL), dropped(SHUTDOWN));
        queue(&waiting, spans(QUEUE + 10));
        assert_eq!(
            dropped(QUEUE_FULL) - full,
            10,
            "the queue is bounded, and does not wait"
        );
        let over = CancellationToken::new();
        over.cancel();
        let began = Instant::now();
        exporter.run(over).await;
        assert!(began.elapsed() < FLUSH * 3, "{:?}", began.elapsed());
        assert_eq!(
            dropped(SHUTDOWN) - shutdown,
            QUEUE as u64,
            "each span that was not sent is counted"
        );
    }
}
