//! A receiver of traces by OTLP over gRPC, as the service of a collector defines it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Bytes that are kept, as text.
const MOST: usize = 8 << 20;

/// A listening receiver, which keeps what it gets. Dropping it ends it.
pub struct Traces {
    /// Where it listens.
    pub address: SocketAddr,
    received: Arc<Mutex<Received>>,
    serving: AbortHandle,
}

#[derive(Default)]
struct Received {
    text: String,
    spans: Vec<Span>,
}

struct Receiver(Arc<Mutex<Received>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if received.text.len() < MOST {
            let request = request.into_inner();
            received.text.push_str(&format!("{request:?}\n"));
            let scopes = request.resource_spans.into_iter().flat_map(|each| each.scope_spans);
            received.spans.extend(scopes.flat_map(|scope| scope.spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Traces {
    /// Listens at a free port of this address, in the current runtime.
    ///
    /// # Errors
    /// This machine does not have the address.
    pub async fn listen(address: &str) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let received = Arc::<Mutex<Received>>::default();
        let service = TraceServiceServer::new(Receiver(received.clone()));
        let serving = tokio::spawn(async move {
            let served = Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpIncoming::from(listener));
            if let Err(error) = served.await {
                println!("    the receiver of traces ended: {error}");
            }
        });
        Ok(Self {
            address,
            received,
            serving: serving.abort_handle(),
        })
    }

    /// Everything that has come so far.
    #[must_use]
    pub fn text(&self) -> String {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.text.clone()
    }

    /// The spans of a trace that have come so far, in no order.
    #[must_use]
    pub fn spans(&self, trace_id: &[u8]) -> Vec<Span> {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let spans = received.spans.iter().filter(|span| span.trace_id == trace_id);
        spans.cloned().collect()
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
