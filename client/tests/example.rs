//! The example against an API server and a relay of the test: what it prints is what the process wrote.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue panics")]

#[allow(dead_code, reason = "its main function needs a cluster")]
#[path = "../examples/process.rs"]
mod process;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::Stream as Frames;
use http::{Method, Request, Response};
use kube::client::Body;
use kube::{Api, Client};
use remoteprocess_api::RemoteProcess;
use remoteprocess_client::{Dial, DialError, control};
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_server::{Relay, RelayServer};
use remoteprocess_proto::v1::{
    self, Data, Exit, OutputFrame, ProcessKey, Seal, SignalTarget, Stream, StreamSeal, exit::Outcome,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Status, Streaming};

const OUTPUT: &[u8] = b"one two three four five six seven eight nine ten";
/// Bytes that one connection brings before it breaks.
const PER_CONNECTION: usize = 9;

type Answers<T> = Pin<Box<dyn Frames<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<tonic::Response<T>, Status>;

/// Has the whole output of one process that has ended, but its connections break.
#[derive(Clone, Default)]
struct Fake {
    damaged: bool,
    connections: Arc<Mutex<usize>>,
    signals: Arc<Mutex<Vec<v1::SignalRequest>>>,
}

#[tonic::async_trait]
impl Relay for Fake {
    type WatchOutputStream = Answers<OutputFrame>;

    async fn watch_output(&self, request: tonic::Request<v1::WatchOutputRequest>) -> Answer<Self::WatchOutputStream> {
        *self.connections.lock().unwrap() += 1;
        let from = usize::try_from(request.into_inner().cursor.unwrap().stdout).unwrap();
        let to = OUTPUT.len().min(from + PER_CONNECTION);
        let mut bytes = OUTPUT[from..to].to_vec();
        if self.damaged && from == 0 {
            bytes[0] = b'O';
        }
        let frame = |frame| Ok(OutputFrame { frame: Some(frame) });
        let data = frame(Frame::Data(Data {
            stream: Stream::Stdout.into(),
            offset: from as u64,
            bytes: bytes.into(),
            ..Data::default()
        }));
        let last = match to == OUTPUT.len() {
            true => frame(Frame::Exit(exit())),
            false => Err(Status::unavailable("the connection breaks")),
        };
        Ok(tonic::Response::new(Box::pin(futures::stream::iter([data, last]))))
    }

    async fn signal(&self, request: tonic::Request<v1::SignalRequest>) -> Answer<v1::SignalResponse> {
        let mut signals = self.signals.lock().unwrap();
        signals.push(request.into_inner());
        match signals.len() {
            1 => Err(Status::unavailable("the answer is lost")),
            _ => Ok(tonic::Response::new(v1::SignalResponse {})),
        }
    }

    type AttachStream = Answers<v1::AttachResponse>;
    type ExecStream = Answers<v1::ExecResponse>;

    async fn attach(&self, _: tonic::Request<Streaming<v1::AttachRequest>>) -> Answer<Self::AttachStream> {
        Err(Status::unimplemented("attach"))
    }

    async fn exec(&self, _: tonic::Request<Streaming<v1::ExecRequest>>) -> Answer<Self::ExecStream> {
        Err(Status::unimplemented("exec"))
    }

    async fn start(&self, _: tonic::Request<v1::StartRequest>) -> Answer<v1::StartResponse> {
        Err(Status::unimplemented("start"))
    }

    async fn get_state(&self, _: tonic::Request<v1::GetStateRequest>) -> Answer<v1::GetStateResponse> {
        Err(Status::unimplemented("get_state"))
    }

    async fn list(&self, _: tonic::Request<v1::ListRequest>) -> Answer<v1::ListResponse> {
        Err(Status::unimplemented("list"))
    }

    async fn stop(&self, _: tonic::Request<v1::StopRequest>) -> Answer<v1::StopResponse> {
        Err(Status::unimplemented("stop"))
    }
}

fn exit() -> Exit {
    let stdout = Some(StreamSeal {
        bytes: OUTPUT.len() as u64,
        sha256: Sha256::digest(OUTPUT).to_vec().into(),
        ..StreamSeal::default()
    });
    Exit {
        outcome: Outcome::Code.into(),
        value: 7,
        sealed: true,
        seal: Some(Seal {
            stdout,
            ..Seal::default()
        }),
        ..Exit::default()
    }
}

struct Direct(SocketAddr);

impl Dial for Direct {
    async fn dial(&mut self) -> Result<Channel, DialError> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.0)).unwrap();
        let channel = endpoint.connect().await;
        channel.map_err(|error| DialError::Unreachable(error.to_string()))
    }

    fn discredit(&mut self) {}
}

async fn serve(fake: Fake) -> Direct {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(RelayServer::new(fake));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Direct(address)
}

fn processes() -> Api<RemoteProcess> {
    let object = |name: &str| {
        json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": name},
            "spec": {"image": "i", "command": ["x"]}, "status": {"phase": "Running"},
        })
    };
    let service = tower::service_fn(move |request: Request<Body>| async move {
        let answer = match *request.method() {
            Method::POST => object("example-1"),
            _ => json!({
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcessList", "metadata": {},
                "items": [object("build"), object("test")],
            }),
        };
        Ok::<_, Infallible>(Response::new(Body::from(answer.to_string().into_bytes())))
    });
    Api::namespaced(Client::new(service, "default"), "default")
}

#[tokio::test]
async fn it_lists_creates_and_signals() {
    assert_eq!(
        process::list(&processes()).await.unwrap(),
        ["build Running", "test Running"]
    );
    assert_eq!(process::create(&processes(), "i", &["x"]).await.unwrap(), "example-1");
    let fake = Fake::default();
    let mut relay = serve(fake.clone()).await;
    let signalled = control::signal(&mut relay, ProcessKey::default(), 1, SignalTarget::Main);
    signalled.await.unwrap();
    let signals = fake.signals.lock().unwrap();
    let [first, second] = &signals[..] else {
        panic!("{signals:?}")
    };
    assert!(
        first.request_id == second.request_id && !first.request_id.is_empty(),
        "{signals:?}"
    );
}

#[tokio::test]
async fn it_follows_over_connections_that_break_and_verifies() {
    let fake = Fake::default();
    let mut out = Vec::new();
    let relay = serve(fake.clone()).await;
    let said = process::follow(relay, ProcessKey::default(), 0, &mut out)
        .await
        .unwrap();
    assert_eq!(out, OUTPUT);
    assert_eq!(
        said,
        format!("ended with 7; {} bytes, verified by length and hash", OUTPUT.len())
    );
    assert_eq!(*fake.connections.lock().unwrap(), OUTPUT.len().div_ceil(PER_CONNECTION));
}

#[tokio::test]
async fn it_follows_from_an_offset() {
    let mut out = Vec::new();
    let relay = serve(Fake::default()).await;
    let said = process::follow(relay, ProcessKey::default(), 40, &mut out)
        .await
        .unwrap();
    assert_eq!(out, OUTPUT[40..]);
    assert!(said.ends_with("verified by length"), "{said}");
}

#[tokio::test]
async fn a_byte_that_was_changed_is_found() {
    let damaged = Fake {
        damaged: true,
        ..Fake::default()
    };
    let relay = serve(damaged).await;
    let error = process::follow(relay, ProcessKey::default(), 0, Vec::new())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("is not what the agent sealed"), "{error}");
}
