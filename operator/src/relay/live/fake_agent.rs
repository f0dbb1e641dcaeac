//! An agent for tests: a real gRPC server over TCP that plays back a history, and breaks off when told to.

mod attach;
mod exec;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, stream};
use remoteprocess_proto::Checksum;
use remoteprocess_proto::v1::executor_server::{Executor, ExecutorServer};
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{
    AttachRequest, CommitRequest, CommitResponse, Cursor, ExecOpen, ExecRequest, ExecutorGetStateRequest,
    ExecutorGetStateResponse, ExecutorPauseRequest, ExecutorPauseResponse, ExecutorSetDeadlineRequest,
    ExecutorSetDeadlineResponse, ExecutorSignalRequest, ExecutorSignalResponse, ExecutorStopRequest,
    ExecutorStopResponse, ExecutorWatchOutputRequest, Exit, OutputFrame, Seal, Spool, State, Stream as WireStream,
    StreamSeal,
};
use remoteprocess_proto::v1::{Phase, Reason};
use remoteprocess_tls::{Authority, ClientAuth, Dialer, Identity, Limits, Role, TrustDomain, serve};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::relay::attempt::Agent;
use crate::relay::grpc::agent::{Connect, ConnectError};
use crate::relay::grpc::peers::Peers;
use crate::relay::piece::{Piece, Placed, Wanted, data};

/// The output of the program, and how far it has come.
pub(crate) struct Program {
    pub history: Vec<Placed>,
    pub exit: Exit,
    /// Number of pieces written so far; when all are written, the program has ended.
    pub written: watch::Sender<usize>,
    /// Each stream breaks after this many frames.
    pub cut_after: Mutex<Option<usize>>,
    /// The spool is full.
    pub blocked: watch::Sender<bool>,
    /// The relay's commits.
    pub commits: Mutex<Vec<CommitRequest>>,
    pub stops: Mutex<Vec<ExecutorStopRequest>>,
    pub signals: Mutex<Vec<ExecutorSignalRequest>>,
    pub pauses: Mutex<Vec<ExecutorPauseRequest>>,
    pub deadlines: Mutex<Vec<Option<Duration>>>,
    /// Whether it refuses to pause.
    pub refuses_pauses: AtomicBool,
    /// The state that it reports.
    pub state: watch::Sender<State>,
    pub streams: Mutex<Vec<Cursor>>,
    pub taken: attach::Taken,
    /// How streams were opened.
    pub execs: Mutex<Vec<ExecOpen>>,
    /// Sessions that were left for good.
    pub hang_ups: Mutex<usize>,
    /// Streams answer with ABORTED.
    pub superseded: Mutex<bool>,
}

/// A running server of a program's output. Dropping it cuts every connection.
pub(crate) struct FakeAgent {
    pub address: SocketAddr,
    cut: CancellationToken,
}

/// Connects as the operator.
pub(crate) struct TestDialer(Dialer);

#[derive(Clone)]
struct Service(Arc<Program>);

impl Program {
    /// Writes `chunks` (to stderr where `true`) and exits with 7.
    pub(crate) fn new(chunks: &[(bool, usize)]) -> Arc<Self> {
        let mut at = Cursor::default();
        let history: Vec<Placed> = chunks
            .iter()
            .map(|(is_error, length)| {
                let stream = if *is_error {
                    WireStream::Stderr
                } else {
                    WireStream::Stdout
                };
                let from = at.of(stream);
                let bytes: Vec<u8> = (from..from + *length as u64).map(|at| byte(stream, at)).collect();
                let placed = Placed {
                    start: at,
                    piece: data(stream, from, 1, Bytes::from(bytes)),
                };
                at = placed.end();
                placed
            })
            .collect();
        let seal = |stream| {
            let bytes: Vec<u8> = (0..at.of(stream)).map(|at| byte(stream, at)).collect();
            let mut checksum = Checksum::default();
            checksum.update(&bytes);
            Some(StreamSeal {
                bytes: at.of(stream),
                sha256: Sha256::digest(&bytes).to_vec().into(),
                dropped_bytes: 0,
                checksum: Some(checksum.value()),
            })
        };
        let exit = Exit {
            outcome: remoteprocess_proto::v1::exit::Outcome::Code.into(),
            value: 7,
            source: remoteprocess_proto::v1::exit::Source::Entrypoint.into(),
            seal: Some(Seal {
                stdout: seal(WireStream::Stdout),
                stderr: seal(WireStream::Stderr),
                ..Seal::default()
            }),
            ..Exit::default()
        };
        Arc::new(Self {
            written: watch::Sender::new(history.len()),
            history,
            exit,
            cut_after: Mutex::default(),
            blocked: watch::Sender::new(false),
            commits: Mutex::default(),
            stops: Mutex::default(),
            signals: Mutex::default(),
            pauses: Mutex::default(),
            deadlines: Mutex::default(),
            refuses_pauses: AtomicBool::default(),
            state: watch::Sender::default(),
            streams: Mutex::default(),
            taken: attach::Taken::default(),
            execs: Mutex::default(),
            hang_ups: Mutex::default(),
            superseded: Mutex::default(),
        })
    }

    /// As [`Program::new`], with chunks taken at 1, 2, 3, … ns.
    pub(crate) fn timed(chunks: &[(bool, usize)]) -> Arc<Self> {
        let mut program = Self::new(chunks);
        let history = &mut Arc::get_mut(&mut program).unwrap().history;
        for (time, placed) in (1..).zip(history) {
            if let Piece::Data(data) = &mut placed.piece {
                data.time_unix_nanos = time;
            }
        }
        program
    }

    pub(crate) fn end(&self) -> Cursor {
        self.history.last().unwrap().end()
    }

    /// Reports this state from now on.
    pub(crate) fn says(&self, phase: Phase, reason: Reason) {
        self.state.send_replace(State {
            phase: phase.into(),
            reason: reason.into(),
            message: String::new(),
        });
    }

    /// Its state, with which every new stream begins if one was ever reported.
    fn state(&self) -> watch::Receiver<State> {
        let mut state = self.state.subscribe();
        if *state.borrow() != State::default() {
            state.mark_changed();
        }
        state
    }

    pub(crate) fn has_left(&self) -> bool {
        self.commits.lock().unwrap().iter().any(|commit| commit.r#final)
    }
}

/// Byte `at` of a stream: every misplaced byte is visible.
pub(crate) fn byte(stream: WireStream, at: u64) -> u8 {
    let salt = if stream == WireStream::Stdout { 0 } else { 101 };
    u8::try_from((at.wrapping_mul(31) + salt) % 251).unwrap()
}

impl FakeAgent {
    pub(crate) async fn serve(program: &Arc<Program>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = ExecutorServer::new(Service(program.clone()));
        let cut = CancellationToken::new();
        let limits = Limits {
            drain: Duration::ZERO,
            ..Limits::default()
        };
        tokio::spawn(serve(
            listener,
            identity(&role()),
            ClientAuth::Required,
            service,
            limits,
            cut.clone(),
        ));
        Self { address, cut }
    }

    pub(crate) fn agent(&self) -> Agent {
        Agent {
            namespace: "default".to_owned(),
            pod_uid: "pod-1".to_owned(),
            address: self.address.to_string(),
        }
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

impl Connect for TestDialer {
    fn connect<'a>(&'a self, agent: &'a Agent) -> BoxFuture<'a, Result<Channel, ConnectError>> {
        Box::pin(async move { Ok(self.0.connect(&agent.address, &role()).await?) })
    }
}

impl Default for TestDialer {
    fn default() -> Self {
        Self(Dialer::new(identity(&Role::Operator)))
    }
}

pub(crate) fn no_peers() -> Peers {
    Peers::by_name(Dialer::new(identity(&Role::Operator)), None)
}

fn role() -> Role {
    Role::Agent {
        namespace: "default".to_owned(),
        pod_uid: "pod-1".to_owned(),
    }
}

pub(crate) fn identity(role: &Role) -> Arc<Identity> {
    let [chain, key, ca] = pem(role);
    Identity::new(&chain, &key, &ca, &trust_domain()).unwrap()
}

/// Certificate, key and CA.
pub(crate) fn pem(role: &Role) -> [String; 3] {
    static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
        remoteprocess_tls::install_crypto_provider();
        Authority::generate(&trust_domain()).unwrap()
    });
    let user = (*role == Role::User).then(crate::relay::tests::replica::user);
    let (chain, key) = AUTHORITY.issue(role, user.as_ref(), Duration::from_secs(3600)).unwrap();
    [chain, key, AUTHORITY.cert_pem().to_owned()]
}

fn trust_domain() -> TrustDomain {
    "test.local".parse().unwrap()
}

struct Playback {
    program: Arc<Program>,
    written: watch::Receiver<usize>,
    blocked: watch::Receiver<bool>,
    state: watch::Receiver<State>,
    wanted: Wanted,
    next: usize,
    left: Option<usize>,
    is_over: bool,
}

impl Playback {
    async fn next(&mut self) -> Option<Result<OutputFrame, Status>> {
        if self.is_over {
            return None;
        }
        if self.left == Some(0) {
            self.is_over = true;
            return Some(Err(Status::unavailable("cut")));
        }
        self.left = self.left.map(|left| left - 1);
        while self.next < self.program.history.len() {
            let next = self.next;
            tokio::select! {
                biased;
                written = self.written.wait_for(|written| *written > next) => drop(written.ok()?),
                changed = self.state.changed() => {
                    changed.ok()?;
                    let state = self.state.borrow().clone();
                    return Some(Ok(OutputFrame { frame: Some(Frame::State(state)) }));
                }
                changed = self.blocked.changed() => {
                    changed.ok()?;
                    let blocked = *self.blocked.borrow();
                    let spool = Spool { blocked, used_bytes: 0, size_bytes: 4096 };
                    return Some(Ok(OutputFrame { frame: Some(Frame::Spool(spool)) }));
                }
            }
            self.next += 1;
            let piece: Piece = self.program.history[next].piece.clone();
            if let Some(piece) = piece.wanted(&self.wanted) {
                return Some(Ok(piece.into_frame()));
            }
        }
        self.is_over = true;
        Some(Ok(OutputFrame {
            frame: Some(Frame::Exit(self.program.exit.clone())),
        }))
    }
}

#[tonic::async_trait]
impl Executor for Service {
    async fn get_state(
        &self,
        _: Request<ExecutorGetStateRequest>,
    ) -> Result<Response<ExecutorGetStateResponse>, Status> {
        Ok(Response::new(ExecutorGetStateResponse {
            started_unix_nanos: 42,
            ..ExecutorGetStateResponse::default()
        }))
    }

    type WatchOutputStream = Pin<Box<dyn Stream<Item = Result<OutputFrame, Status>> + Send>>;

    async fn watch_output(
        &self,
        request: Request<ExecutorWatchOutputRequest>,
    ) -> Result<Response<Self::WatchOutputStream>, Status> {
        let request = request.into_inner();
        assert!(request.home);
        if *self.0.superseded.lock().unwrap() {
            return Err(Status::aborted("another relay has become the home of this process"));
        }
        let cursor = request.cursor.unwrap_or_default();
        self.0.streams.lock().unwrap().push(cursor);
        let playback = Playback {
            program: self.0.clone(),
            written: self.0.written.subscribe(),
            blocked: self.0.blocked.subscribe(),
            state: self.0.state(),
            wanted: Wanted { cursor, only: None },
            next: 0,
            left: *self.0.cut_after.lock().unwrap(),
            is_over: false,
        };
        let frames = stream::unfold(playback, async |mut playback| Some((playback.next().await?, playback)));
        Ok(Response::new(Box::pin(frames)))
    }

    async fn signal(
        &self,
        request: Request<ExecutorSignalRequest>,
    ) -> Result<Response<ExecutorSignalResponse>, Status> {
        self.0.signals.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExecutorSignalResponse {}))
    }

    async fn pause(&self, request: Request<ExecutorPauseRequest>) -> Result<Response<ExecutorPauseResponse>, Status> {
        let request = request.into_inner();
        let paused = request.paused;
        self.0.pauses.lock().unwrap().push(request);
        if self.0.refuses_pauses.load(Ordering::Relaxed) {
            return Err(Status::failed_precondition("it is busy"));
        }
        let phase = if paused { Phase::Paused } else { Phase::Running };
        self.0.says(phase, Reason::Unspecified);
        Ok(Response::new(ExecutorPauseResponse {}))
    }

    async fn set_deadline(
        &self,
        request: Request<ExecutorSetDeadlineRequest>,
    ) -> Result<Response<ExecutorSetDeadlineResponse>, Status> {
        let run_deadline = request.into_inner().run_deadline;
        let run_deadline = run_deadline.map(|span| span.try_into().unwrap());
        self.0.deadlines.lock().unwrap().push(run_deadline);
        Ok(Response::new(ExecutorSetDeadlineResponse {}))
    }

    async fn stop(&self, request: Request<ExecutorStopRequest>) -> Result<Response<ExecutorStopResponse>, Status> {
        self.0.stops.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExecutorStopResponse {}))
    }

    type AttachStream = attach::Answers;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        Ok(Response::new(attach::take(self.0.clone(), request.into_inner())))
    }

    type ExecStream = exec::Answers;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        Ok(Response::new(exec::run(self.0.clone(), request.into_inner())))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        self.0.commits.lock().unwrap().push(request.into_inner());
        Ok(Response::new(CommitResponse {}))
    }
}
