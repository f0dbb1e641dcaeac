//! One replica of the relay behind its real listener, over mutual TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use remoteprocess_api::{AttemptOutput, AttemptStatus, Phase, RemoteProcess, RemoteProcessSpec, RemoteProcessStatus};
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{Cursor, Exit, OutputFrame, ProcessKey, Stream, WatchOutputRequest};
use remoteprocess_proto::{MAX_MESSAGE, PROTOCOL};
use remoteprocess_tls::{ClientAuth, Dialer, Role, User, serve};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::authority::metrics::main_limits;
use crate::directory::Directory;
use crate::fake_api;
use crate::relay::archive::{Archive, Manifest};
use crate::relay::attempt::{AttemptKey, Subject};
use crate::relay::core::Core;
use crate::relay::core::authorize::Authorizer;
use crate::relay::core::streams::Streams;
use crate::relay::faces::{Faces, Switches};
use crate::relay::grpc::peers::Peers;
use crate::relay::live::fake_agent::{FakeAgent, TestDialer, identity};
use crate::relay::live::{Budget, Context, Fact, LiveAttempt, LiveAttempts, OutputCondition, Record};
use crate::relay::status::Recorder;

pub(crate) const UID: &str = "0c1d";

/// A running replica; dropping it kills it.
pub(crate) struct Replica {
    pub address: SocketAddr,
    pub archive: Archive,
    pub attempts: LiveAttempts,
    /// The addresses at which it searches for others.
    pub peers: Arc<Mutex<Vec<SocketAddr>>>,
    directory: Directory,
    /// Subresource to which no user has a right; empty: the object itself.
    denied: Arc<Mutex<Option<String>>>,
    shutdown: CancellationToken,
}

/// Without an API server, nothing is recorded.
struct Nobody;

impl Record for Nobody {
    fn learned<'a>(&'a self, _: &'a Subject, _: Fact) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn noted<'a>(&'a self, _: &'a Subject, _: &'a OutputCondition) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn ended<'a>(&'a self, _: &'a Subject, _: &'a Manifest, _: &'a [u8]) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Replica {
    /// A replica over this archive that knows one process, whose first attempt was granted.
    pub(crate) async fn start(archive: &Archive) -> Self {
        Self::start_with(archive, Switches::default()).await
    }

    /// As [`Self::start`], with these faces.
    pub(crate) async fn start_with(archive: &Archive, faces: Switches) -> Self {
        Self::start_limited(archive, faces, Streams::default()).await
    }

    /// As [`Self::start_with`], with other limits of streams.
    pub(crate) async fn start_limited(archive: &Archive, faces: Switches, streams: Streams) -> Self {
        let shutdown = CancellationToken::new();
        let peers: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let found = peers.clone();
        let resolve = move || -> BoxFuture<'static, Vec<SocketAddr>> {
            Box::pin(std::future::ready(found.lock().unwrap().clone()))
        };
        let context = Context {
            archive: archive.clone(),
            connect: Arc::new(TestDialer::default()),
            peers: Peers::new(Dialer::new(identity(&Role::Operator)), Arc::new(resolve)),
            record: Box::new(Nobody),
            memory: Arc::new(Budget::new(160 << 20)),
            shutdown: shutdown.clone(),
        };
        let denied: Arc<Mutex<Option<String>>> = Arc::default();
        let client = api(denied.clone());
        let attempts = LiveAttempts::new(Arc::new(context));
        let directory = Directory::default();
        directory.apply(process());
        let core = Core {
            directory: directory.clone(),
            live: attempts.clone(),
            archive: archive.clone(),
            authorizer: Authorizer::with_memory(client.clone(), Duration::from_millis(200)),
            recorder: Recorder::new(client, "operator-0".to_owned()),
            streams,
            shutdown: shutdown.clone(),
        };
        let service = Faces::new(core, faces);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(
            listener,
            identity(&Role::Operator),
            ClientAuth::Required,
            service,
            main_limits(faces.http),
            shutdown.clone(),
        ));
        Self {
            address,
            archive: archive.clone(),
            attempts,
            peers,
            directory,
            denied,
            shutdown,
        }
    }

    /// No user has a right to this subresource anymore.
    pub(crate) fn deny(&self, subresource: &str) {
        *self.denied.lock().unwrap() = Some(subresource.to_owned());
    }

    /// Changes the status of the process.
    pub(crate) fn change(&self, change: impl FnOnce(&mut RemoteProcessStatus)) {
        let mut process = process();
        process.metadata.resource_version = Some("2".to_owned());
        change(process.status.as_mut().unwrap());
        self.directory.apply(process);
    }

    /// Records that the output is in the archive, so that no home is searched for.
    pub(crate) fn record_end(&self) {
        self.change(|status| status.attempts[0].output = Some(AttemptOutput::default()));
    }

    /// Becomes the home of the process.
    pub(crate) fn open(&self, agent: &FakeAgent) -> Arc<LiveAttempt> {
        self.attempts.open(subject(), agent.agent())
    }

    /// A client of a user, on a connection of its own.
    pub(crate) async fn client(&self) -> RelayClient<Channel> {
        self.client_as(&Role::User).await
    }

    /// A client of this role, on a connection of its own.
    pub(crate) async fn client_as(&self, role: &Role) -> RelayClient<Channel> {
        let channel = Dialer::new(identity(role))
            .connect(&self.address.to_string(), &Role::Operator)
            .await
            .unwrap();
        RelayClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// An API server that grants every right but one.
fn api(denied: Arc<Mutex<Option<String>>>) -> kube::Client {
    fake_api::client(move |call| {
        let mut review = call.body;
        let subresource = &review["spec"]["resourceAttributes"]["subresource"];
        let asked = subresource.as_str().unwrap_or_default();
        let is_allowed = denied.lock().unwrap().as_deref() != Some(asked);
        review["status"] = json!({"allowed": is_allowed});
        (201, review)
    })
}

pub(crate) fn user() -> User {
    User {
        name: "alice".to_owned(),
        groups: vec!["dev".to_owned(), "ops".to_owned()],
        ..User::default()
    }
}

pub(crate) fn subject() -> Subject {
    Subject {
        namespace: "default".to_owned(),
        name: "hello".to_owned(),
        pod_uid: "pod-1".to_owned(),
        key: AttemptKey {
            uid: UID.to_owned(),
            attempt: 1,
        },
    }
}

fn process() -> RemoteProcess {
    let mut process = RemoteProcess::new("hello", RemoteProcessSpec::default());
    process.metadata.namespace = Some("default".to_owned());
    process.metadata.uid = Some(UID.to_owned());
    process.metadata.resource_version = Some("1".to_owned());
    process.status = Some(RemoteProcessStatus {
        phase: Some(Phase::Running),
        attempt: Some(1),
        attempts: vec![AttemptStatus {
            number: 1,
            granted_at: Some(jiff::Timestamp::UNIX_EPOCH),
            ..AttemptStatus::default()
        }],
        ..RemoteProcessStatus::default()
    });
    process
}

/// What a client has received so far: without holes, hashed as it came.
#[derive(Default)]
pub(crate) struct Got {
    pub at: Cursor,
    stdout: Sha256,
    stderr: Sha256,
}

impl Got {
    /// From its position on, without an end.
    pub(crate) fn request(&self) -> WatchOutputRequest {
        WatchOutputRequest {
            protocol: PROTOCOL,
            process: Some(ProcessKey {
                uid: UID.to_owned(),
                ..ProcessKey::default()
            }),
            attempt: 1,
            cursor: Some(self.at),
            follow: true,
            ..WatchOutputRequest::default()
        }
    }

    pub(crate) async fn follow(&self, client: &mut RelayClient<Channel>) -> Result<Streaming<OutputFrame>, Status> {
        client
            .watch_output(self.request())
            .await
            .map(tonic::Response::into_inner)
    }

    /// Takes frames until the exit, the end, or `enough` bytes.
    pub(crate) async fn take(
        &mut self,
        frames: &mut Streaming<OutputFrame>,
        enough: u64,
    ) -> Result<Option<Exit>, Status> {
        while self.at.stdout + self.at.stderr < enough {
            let Some(frame) = frames.message().await? else {
                return Ok(None);
            };
            match frame.frame.unwrap() {
                Frame::Data(data) => {
                    let stream = data.stream();
                    assert_eq!(data.offset, self.at.of(stream), "dense");
                    self.at.set(stream, data.offset + data.bytes.len() as u64);
                    match stream {
                        Stream::Stderr => self.stderr.update(&data.bytes),
                        _ => self.stdout.update(&data.bytes),
                    }
                }
                Frame::Exit(exit) => return Ok(Some(exit)),
                Frame::Gap(gap) => panic!("{gap:?}"),
                _ => {}
            }
        }
        Ok(None)
    }

    pub(crate) fn hashes(self) -> [Vec<u8>; 2] {
        [self.stdout.finalize().to_vec(), self.stderr.finalize().to_vec()]
    }
}
