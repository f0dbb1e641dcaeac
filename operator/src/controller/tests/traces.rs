//! A whole run, seen by a real receiver of traces (OTLP over gRPC).

use std::collections::BTreeMap;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::stage::Stage;
use super::*;
use crate::trace::{Exporter, Otlp, traceparent};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const USER_SPAN: &str = "b7ad6b7169203331";
/// A command, an argument and a variable contain it.
const CANARY: &str = "canary-7f3a";

/// Passes on what it receives.
struct Receiver(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner()).await;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn receiver() -> (String, mpsc::Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (seen, requests) = mpsc::channel(64);
    let service = TowerToHyperService::new(TraceServiceServer::new(Receiver(seen)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let server = Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (endpoint, requests)
}

/// The spans of the trace by name, with the component of each, when the span of the attempt is there.
async fn spans(requests: &mut mpsc::Receiver<ExportTraceServiceRequest>) -> BTreeMap<String, (String, Span)> {
    let mut spans = BTreeMap::new();
    while !spans.contains_key("attempt") || spans.len() < 9 {
        let request = timeout(Duration::from_secs(30), requests.recv()).await;
        let request = request.unwrap_or_else(|_| panic!("only {:?}", spans.keys())).unwrap();
        let bytes = request.encode_to_vec();
        let has_canary = bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
        assert!(!has_canary, "{request:?}");
        let scopes = request
            .resource_spans
            .into_iter()
            .flat_map(|resource| resource.scope_spans);
        for scope in scopes {
            let component = scope.scope.unwrap().name;
            for span in scope
                .spans
                .into_iter()
                .filter(|span| hex::encode(&span.trace_id) == TRACE)
            {
                let again = spans.insert(span.name.clone(), (component.clone(), span));
                assert!(again.is_none(), "told twice: {again:?}");
            }
        }
    }
    spans
}

#[tokio::test]
async fn a_run_is_one_tree_at_a_real_receiver() {
    let (endpoint, mut requests) = receiver().await;
    let exporter = Exporter::new(&Otlp { endpoint, ca: None }, "system", "operator-0").unwrap();
    let over = CancellationToken::new();
    let sending = tokio::spawn(exporter.run(over.clone()));
    let mut stage = Stage::new(&format!(", args: [{CANARY}], env: [{{name: TOKEN, value: {CANARY}}}]"));
    stage.annotate(names::ANNOTATION_TRACEPARENT, &format!("00-{TRACE}-{USER_SPAN}-01"));
    stage.settle().await;
    stage.run(1, 3).await;
    let spans = spans(&mut requests).await;
    over.cancel();
    timeout(Duration::from_secs(5), sending).await.unwrap().unwrap();

    let (_, attempt) = &spans["attempt"];
    assert_eq!(
        hex::encode(&attempt.parent_span_id),
        USER_SPAN,
        "the user's trace continues"
    );
    let steps = ["create", "schedule", "pod", "pull", "grant", "launch", "run", "seal"];
    let mut at = attempt.start_time_unix_nano;
    for step in steps {
        let (_, span) = &spans[step];
        assert_eq!(span.parent_span_id, attempt.span_id, "{step}");
        assert_eq!(
            span.start_time_unix_nano, at,
            "{step} begins where the step before it ended"
        );
        at = span.end_time_unix_nano;
    }
    assert_eq!(at, attempt.end_time_unix_nano, "the durations add up");
    let components: BTreeMap<_, _> = spans
        .iter()
        .map(|(name, (component, _))| (name.as_str(), component.as_str()))
        .collect();
    assert_eq!(components["schedule"], "remoteprocess.controller");
    assert_eq!(components["grant"], "remoteprocess.relay");
    assert_eq!(components["launch"], "remoteprocess.agent");
    let attribute = |key: &str| attempt.attributes.iter().find(|attribute| attribute.key == key);
    assert!(attribute("process.exit.code").is_some(), "{attempt:?}");
    assert_eq!(attempt.status.as_ref().unwrap().message, "NonZeroExit");
    let run = &spans["run"].1;
    let parent = format!("00-{TRACE}-{}-01", hex::encode(&run.span_id));
    assert_eq!(traceparent(&stage.process(), 1), parent, "the program continues it");
}
