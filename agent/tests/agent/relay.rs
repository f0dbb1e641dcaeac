//! A relay as an agent sees it: it enrolls, grants, watches, commits. Its authority lives in memory.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::Reason;
use remoteprocess_proto::v1::enrollment_server::{Enrollment, EnrollmentServer};
use remoteprocess_proto::v1::executor_client::ExecutorClient;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_server::{Relay, RelayServer};
use remoteprocess_proto::v1::{
    AttachRequest, AttachResponse, CommitRequest, Cursor, EnrollRequest, EnrollResponse, ExecRequest, ExecResponse,
    ExecutorWatchOutputRequest, Exit, Gap, GetStateRequest, GetStateResponse, LaunchSettings, ListRequest,
    ListResponse, OutputFrame, SignalRequest, SignalResponse, Spool, StartRequest, StartResponse, StopRequest,
    StopResponse, WatchOutputRequest,
};
use remoteprocess_tls::{Authority, ClientAuth, Dialer, Error, Identity, Limits, Role, TrustDomain, User, serve};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const NAMESPACE: &str = "default";
pub(crate) const POD_UID: &str = "6f2e8c1a-0000-4000-8000-000000000001";
const TOKEN: &str = "a-projected-token";
const HOUR: Duration = Duration::from_secs(3600);
/// A home commits after this many bytes.
const COMMIT_EVERY: u64 = 1 << 20;

pub(crate) fn trust_domain() -> TrustDomain {
    "test.local".parse().unwrap()
}

pub(crate) fn agent_role() -> Role {
    Role::Agent {
        namespace: NAMESPACE.into(),
        pod_uid: POD_UID.into(),
    }
}

/// The relay, and the settings that tests change.
pub(crate) struct TestRelay {
    pub authority: Arc<Authority>,
    pub enroll: SocketAddr,
    pub main: SocketAddr,
    pub starts: mpsc::UnboundedReceiver<StartRequest>,
    pub enrollments: Arc<AtomicU32>,
    pub grants: Arc<AtomicBool>,
    /// Sent with each grant to an agent that has not launched.
    pub settings: Arc<Mutex<Option<LaunchSettings>>>,
    pub leaf_lifetime_seconds: Arc<AtomicU32>,
    identity: Arc<Identity>,
    _shutdown: DropGuard,
}

/// The relay as a client of agents.
pub(crate) struct Operator(Arc<Identity>);

impl Operator {
    pub(crate) async fn dial(&self, address: &str) -> Option<ExecutorClient<Channel>> {
        let channel = Dialer::new(Arc::clone(&self.0)).connect(address, &agent_role()).await;
        channel.ok().map(ExecutorClient::new)
    }
}

struct Enrolls {
    authority: Arc<Authority>,
    count: Arc<AtomicU32>,
    lifetime: Arc<AtomicU32>,
}

struct Starts {
    seen: mpsc::UnboundedSender<StartRequest>,
    grants: Arc<AtomicBool>,
    settings: Arc<Mutex<Option<LaunchSettings>>>,
}

impl TestRelay {
    pub(crate) async fn start() -> Self {
        remoteprocess_tls::install_crypto_provider();
        let authority = Arc::new(Authority::generate(&trust_domain()).unwrap());
        let identity = identity_of(&authority, &Role::Operator, None);
        let shutdown = CancellationToken::new();
        #[allow(clippy::disallowed_methods, reason = "a test reads all of it")]
        let (seen, starts) = mpsc::unbounded_channel();
        let enrollments = Arc::new(AtomicU32::new(0));
        let grants = Arc::new(AtomicBool::new(true));
        let settings = Arc::default();
        let leaf_lifetime_seconds = Arc::new(AtomicU32::new(3600));
        let enrolls = Enrolls {
            authority: Arc::clone(&authority),
            count: Arc::clone(&enrollments),
            lifetime: Arc::clone(&leaf_lifetime_seconds),
        };
        let starting = Starts {
            seen,
            grants: Arc::clone(&grants),
            settings: Arc::clone(&settings),
        };
        let (listener, enroll) = bind().await;
        tokio::spawn(serve(
            listener,
            Arc::clone(&identity),
            ClientAuth::None,
            EnrollmentServer::new(enrolls),
            Limits::default(),
            shutdown.clone(),
        ));
        let (listener, main) = bind().await;
        tokio::spawn(serve(
            listener,
            Arc::clone(&identity),
            ClientAuth::Required,
            RelayServer::new(starting),
            Limits::default(),
            shutdown.clone(),
        ));
        Self {
            authority,
            enroll,
            main,
            starts,
            enrollments,
            grants,
            settings,
            leaf_lifetime_seconds,
            identity,
            _shutdown: shutdown.drop_guard(),
        }
    }

    /// A client of the agent at `address`, as the operator.
    pub(crate) async fn dial(&self, address: &str) -> ExecutorClient<Channel> {
        self.try_dial(address).await.unwrap()
    }

    /// A client of the agent with another role of the same authority. The agent may cut it at any time.
    pub(crate) async fn dial_as(&self, address: &str, role: &Role) -> Result<ExecutorClient<Channel>, Error> {
        let user = (*role == Role::User).then(|| User {
            name: "alice".into(),
            groups: vec![],
            uid: String::new(),
            extra: Default::default(),
        });
        let identity = identity_of(&self.authority, role, user.as_ref());
        let channel = Dialer::new(identity).connect(address, &agent_role()).await?;
        Ok(ExecutorClient::new(channel))
    }

    pub(crate) async fn next_start(&mut self) -> StartRequest {
        super::in_time("a start", self.starts.recv()).await.unwrap()
    }

    /// Acts as the home from the next `Start` on, as a real relay does: watches, commits, continues after each break,
    /// and makes the final commit after the exit. `on_bytes` sees how much has arrived.
    pub(crate) async fn be_home(&mut self, on_bytes: impl FnMut(u64)) -> Archive {
        self.be_home_from(Archive::default(), on_bytes).await
    }

    /// As [`Self::be_home`], with what the archive already holds.
    pub(crate) async fn be_home_from(&mut self, mut archive: Archive, mut on_bytes: impl FnMut(u64)) -> Archive {
        loop {
            let start = self.next_start().await;
            let mut agent = match self.try_dial(&start.address).await {
                Some(agent) => agent,
                None => continue,
            };
            let finished = archive.take_from(&mut agent, &mut on_bytes).await;
            if let Err(status) = &finished {
                println!("home: the stream broke: {status}");
                archive.breaks += 1;
                continue;
            }
            return archive;
        }
    }

    async fn try_dial(&self, address: &str) -> Option<ExecutorClient<Channel>> {
        self.operator().dial(address).await
    }

    /// Dials agents beside a home.
    pub(crate) fn operator(&self) -> Operator {
        Operator(Arc::clone(&self.identity))
    }
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn identity_of(authority: &Authority, role: &Role, user: Option<&User>) -> Arc<Identity> {
    let (chain, key) = authority.issue(role, user, HOUR).unwrap();
    Identity::new(&chain, &key, authority.cert_pem(), &trust_domain()).unwrap()
}

/// Everything a home has received.
pub(crate) struct Archive {
    pub cursor: Cursor,
    pub committed: u64,
    pub hashes: [Sha256; 2],
    /// The first bytes of each stream.
    pub heads: [Vec<u8>; 2],
    pub exit: Option<Exit>,
    pub breaks: u32,
    /// Gaps; only if a test expects them.
    pub gaps: Vec<Gap>,
    pub expects_gaps: bool,
    /// Bytes received.
    pub got: u64,
    pub spools: Vec<Spool>,
    /// Reasons of the states that were received.
    pub reasons: Vec<Reason>,
    /// If false, nothing is durable.
    pub commits: bool,
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            cursor: Cursor::default(),
            committed: 0,
            hashes: Default::default(),
            heads: Default::default(),
            exit: None,
            breaks: 0,
            gaps: vec![],
            expects_gaps: false,
            got: 0,
            spools: vec![],
            reasons: vec![],
            commits: true,
        }
    }
}

impl Archive {
    pub(crate) async fn take_from(
        &mut self,
        agent: &mut ExecutorClient<Channel>,
        on_bytes: &mut impl FnMut(u64),
    ) -> Result<(), Status> {
        let request = ExecutorWatchOutputRequest {
            protocol: PROTOCOL,
            cursor: Some(self.cursor),
            home: true,
        };
        let mut frames = agent.watch_output(request).await?.into_inner();
        while let Some(frame) = frames.next().await {
            match frame?.frame {
                Some(Frame::Data(data)) => {
                    self.take(data);
                    on_bytes(self.total());
                    if self.commits && self.total() - self.committed >= COMMIT_EVERY {
                        self.commit(agent, false).await?;
                    }
                }
                Some(Frame::Exit(exit)) => {
                    self.exit = Some(exit);
                    return self.commit(agent, true).await;
                }
                Some(Frame::Gap(gap)) => self.miss(gap),
                Some(Frame::Spool(spool)) => {
                    self.spools.push(spool);
                    if spool.blocked && !self.commits {
                        return Ok(());
                    }
                }
                Some(Frame::State(state)) => self.reasons.push(state.reason()),
                Some(Frame::Heartbeat(_)) | None => {}
            }
        }
        Err(Status::aborted("the stream ended without an exit"))
    }

    fn take(&mut self, data: remoteprocess_proto::v1::Data) {
        let stream = data.stream();
        assert_eq!(data.offset, self.cursor.of(stream), "{stream:?} is dense");
        assert!(data.bytes.len() <= remoteprocess_proto::MAX_CHUNK);
        assert!(data.time_unix_nanos > 0);
        self.got += data.bytes.len() as u64;
        let index = usize::try_from(data.stream - 1).unwrap();
        self.hashes[index].update(&data.bytes);
        let head = &mut self.heads[index];
        let room = (1 << 20_usize) - head.len();
        head.extend_from_slice(&data.bytes[..data.bytes.len().min(room)]);
        self.cursor.set(stream, data.offset + data.bytes.len() as u64);
    }

    fn miss(&mut self, gap: Gap) {
        assert!(self.expects_gaps, "{gap:?}");
        assert_eq!(gap.from, self.cursor.of(gap.stream()), "dense");
        assert!(gap.to() > gap.from);
        self.cursor.set(gap.stream(), gap.to());
        self.gaps.push(gap);
    }

    /// Number of bytes of one stream that are gaps.
    pub(crate) fn missing(&self, stream: remoteprocess_proto::v1::Stream) -> u64 {
        let gaps = self.gaps.iter().filter(|gap| gap.stream() == stream);
        gaps.map(|gap| gap.to() - gap.from).sum()
    }

    pub(crate) fn total(&self) -> u64 {
        self.cursor.stdout + self.cursor.stderr
    }

    pub(crate) async fn commit(&mut self, agent: &mut ExecutorClient<Channel>, is_final: bool) -> Result<(), Status> {
        let commit = CommitRequest {
            archived: Some(self.cursor),
            r#final: is_final,
        };
        agent.commit(commit).await?;
        self.committed = self.total();
        Ok(())
    }

    pub(crate) fn head(&self, index: usize) -> String {
        String::from_utf8_lossy(&self.heads[index]).into_owned()
    }

    pub(crate) fn exit(&self) -> &Exit {
        self.exit.as_ref().unwrap()
    }
}

#[tonic::async_trait]
impl Enrollment for Enrolls {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let request = request.into_inner();
        if request.token != TOKEN {
            return Err(Status::unauthenticated("this is not our token"));
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let lifetime = Duration::from_secs(self.lifetime.load(Ordering::Relaxed).into());
        let certificate_chain = self
            .authority
            .sign_csr_der(&request.csr, &agent_role(), None, lifetime)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(EnrollResponse {
            protocol: PROTOCOL,
            certificate_chain,
            bundle: self.authority.cert_pem().to_owned(),
        }))
    }

    async fn login(
        &self,
        _: Request<remoteprocess_proto::v1::LoginRequest>,
    ) -> Result<Response<remoteprocess_proto::v1::LoginResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

type Nothing = Pin<Box<dyn Stream<Item = Result<OutputFrame, Status>> + Send>>;

#[tonic::async_trait]
impl Relay for Starts {
    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartResponse>, Status> {
        let granted = self.grants.load(Ordering::Relaxed);
        let request = request.into_inner();
        let settings = *self.settings.lock().unwrap();
        let settings = settings.filter(|_| granted && !request.launched);
        let _ = self.seen.send(request);
        Ok(Response::new(StartResponse {
            protocol: PROTOCOL,
            granted,
            settings,
            message: if granted { String::new() } else { "not yet".into() },
        }))
    }
    async fn get_state(&self, _: Request<GetStateRequest>) -> Result<Response<GetStateResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    type WatchOutputStream = Nothing;
    async fn watch_output(&self, _: Request<WatchOutputRequest>) -> Result<Response<Nothing>, Status> {
        Err(Status::unimplemented(""))
    }
    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;
    async fn attach(&self, _: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented(""))
    }
    type ExecStream = Pin<Box<dyn Stream<Item = Result<ExecResponse, Status>> + Send>>;
    async fn exec(&self, _: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn signal(&self, _: Request<SignalRequest>) -> Result<Response<SignalResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

pub(crate) fn token() -> &'static str {
    TOKEN
}
