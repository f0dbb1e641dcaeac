//! A receiver of traces, which keeps what it gets as text.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Bytes that are kept.
const MOST: usize = 8 << 20;

/// A listening receiver. Dropping it ends it.
pub(super) struct Traces {
    pub address: SocketAddr,
    received: Arc<Mutex<String>>,
    serving: AbortHandle,
}

struct Receiver(Arc<Mutex<String>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if received.len() < MOST {
            received.push_str(&format!("{:?}\n", request.into_inner()));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Traces {
    /// Listens at a free port of the loopback interface.
    pub(super) async fn listen() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let received = Arc::<Mutex<String>>::default();
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
    pub(super) fn text(&self) -> String {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
