//! The follower against a relay of the test whose connections break: every byte once, in order, and the right exit
//! code.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use kube::Client;
use kube::client::Body;
use remoteprocess_cli::command::next_attempt::{self, NextAttempt};
use remoteprocess_cli::exit::{self, UNKNOWN};
use remoteprocess_cli::output::{Output, Target};
use remoteprocess_cli::progress::Messages;
use remoteprocess_client::cluster::{Account, Connector};
use remoteprocess_client::output::Error;
use remoteprocess_client::{Cluster, Dial, DialError, Follower, Ledger, Want};
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_server::Relay;
use remoteprocess_proto::v1::{
    self, Cursor, Data, Exit, Gap, GapReason, Heartbeat, OutputFrame, Phase, Reason, Seal, State, Stream, StreamSeal,
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::fragile::{self, Shared};

/// The content of the relay: chunks in the observed order, the frames before them, and the end.
#[derive(Clone, Default)]
struct Script {
    before: Vec<Frame>,
    chunks: Vec<(Stream, Bytes)>,
    exit: Option<Exit>,
    /// Answers to the first requests instead.
    refusals: Arc<Mutex<Vec<Status>>>,
    /// Where the last lines begin: index into `chunks`.
    tail: usize,
    requests: Arc<Mutex<Vec<v1::WatchOutputRequest>>>,
    /// Chunks before this one are older than any requested time.
    since: usize,
    /// The latest attempt at the first, the second … request; the last one counts for all others.
    attempts: Vec<u32>,
    /// Answers to the first requests for the second attempt instead.
    unknown: Arc<Mutex<Vec<Status>>>,
    /// The codes of attempt 1, 2, … where they differ.
    codes: Vec<i32>,
}

impl Script {
    fn frames(&self, request: &v1::WatchOutputRequest) -> Vec<Frame> {
        let mut frames = self.before.clone();
        let mut place = Cursor::default();
        let mut chunks = Vec::new();
        for (index, (stream, bytes)) in self.chunks.iter().enumerate() {
            let offset = place.of(*stream);
            let begins_here = (index == self.tail && request.tail_lines.is_some())
                || (index == self.since && request.since_unix_nanos.is_some());
            if begins_here {
                frames.push(Frame::Heartbeat(Heartbeat {
                    offsets: Some(place),
                    attempt: 0,
                }));
                chunks.clear();
            }
            place.set(*stream, offset + bytes.len() as u64);
            let begin = request.cursor.unwrap_or_default().of(*stream).max(offset);
            let skipped = usize::try_from(begin - offset).unwrap().min(bytes.len());
            let bytes = bytes.slice(skipped..);
            if !bytes.is_empty() && (request.stream() == Stream::Unspecified || request.stream() == *stream) {
                let data = Data {
                    stream: (*stream).into(),
                    offset: begin,
                    time_unix_nanos: 0,
                    bytes,
                };
                chunks.push(Frame::Data(data));
            }
        }
        frames.extend(chunks);
        let code = self.codes.get(request.attempt.saturating_sub(1) as usize);
        let exit = self.exit.clone().map(|exit| Exit {
            value: code.copied().unwrap_or(exit.value),
            ..exit
        });
        frames.extend(exit.map(Frame::Exit));
        frames
    }

    fn bytes(&self, stream: Stream) -> Vec<u8> {
        self.chunks
            .iter()
            .filter(|chunk| chunk.0 == stream)
            .flat_map(|chunk| chunk.1.to_vec())
            .collect()
    }

    /// An end with `code` and a seal that fits.
    fn ends(mut self, code: i32) -> Self {
        let seal = |stream| {
            Some(StreamSeal {
                bytes: self.bytes(stream).len() as u64,
                sha256: Vec::new().into(),
                ..StreamSeal::default()
            })
        };
        let seal = Seal {
            stdout: seal(Stream::Stdout),
            stderr: seal(Stream::Stderr),
            ..Seal::default()
        };
        self.exit = Some(Exit {
            outcome: Outcome::Code.into(),
            value: code,
            sealed: true,
            seal: Some(seal),
            ..Exit::default()
        });
        self
    }
}

type Frames = Pin<Box<dyn futures::Stream<Item = Result<OutputFrame, Status>> + Send>>;

#[tonic::async_trait]
impl Relay for Script {
    type WatchOutputStream = Frames;

    async fn watch_output(
        &self,
        request: Request<v1::WatchOutputRequest>,
    ) -> Result<Response<Self::WatchOutputStream>, Status> {
        let request = request.into_inner();
        self.requests.lock().unwrap().push(request.clone());
        if let Some(refusal) = self.refusals.lock().unwrap().pop() {
            return Err(refusal);
        }
        let unknown = (request.attempt == 2).then(|| self.unknown.lock().unwrap().pop());
        if let Some(unknown) = unknown.flatten() {
            return Err(unknown);
        }
        let frames = self
            .frames(&request)
            .into_iter()
            .map(|frame| Ok(OutputFrame { frame: Some(frame) }));
        let mut response: Response<Frames> = Response::new(Box::pin(futures::stream::iter(frames)));
        let count = self.requests.lock().unwrap().len();
        let latest = self.attempts.get(count - 1).or(self.attempts.last());
        let attempt = latest.map(|latest| if request.attempt == 0 { *latest } else { request.attempt });
        if let Some(attempt) = attempt {
            response
                .metadata_mut()
                .insert("rproc-attempt", attempt.to_string().parse().unwrap());
            response.metadata_mut().insert("rproc-uid", "u-1".parse().unwrap());
        }
        Ok(response)
    }

    async fn start(&self, _: Request<v1::StartRequest>) -> Result<Response<v1::StartResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_state(&self, _: Request<v1::GetStateRequest>) -> Result<Response<v1::GetStateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type AttachStream = Pin<Box<dyn futures::Stream<Item = Result<v1::AttachResponse, Status>> + Send>>;

    async fn attach(&self, _: Request<Streaming<v1::AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn signal(&self, _: Request<v1::SignalRequest>) -> Result<Response<v1::SignalResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type ExecStream = Pin<Box<dyn futures::Stream<Item = Result<v1::ExecResponse, Status>> + Send>>;

    async fn exec(&self, _: Request<Streaming<v1::ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn stop(&self, _: Request<v1::StopRequest>) -> Result<Response<v1::StopResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct FragileDial {
    address: SocketAddr,
    /// Bytes until the first, the second … connection breaks; the last one counts for all others.
    cuts: Vec<usize>,
    dials: usize,
    discredited: usize,
}

impl Dial for FragileDial {
    async fn dial(&mut self) -> Result<Channel, DialError> {
        let left = self
            .cuts
            .get(self.dials)
            .or(self.cuts.last())
            .copied()
            .unwrap_or(usize::MAX);
        self.dials += 1;
        fragile::connect(self.address, left, usize::MAX).await
    }

    fn discredit(&mut self) {
        self.discredited += 1;
    }
}

struct Followed {
    result: Result<Option<Exit>, Error>,
    code: u8,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    dials: usize,
    discredited: usize,
}

async fn follow(script: &Script, want: Want, cuts: &[usize]) -> Followed {
    follow_attempts(script, want, cuts, None).await
}

async fn follow_attempts(script: &Script, want: Want, cuts: &[usize], next_attempt: Option<&NextAttempt>) -> Followed {
    let (address, serving) = fragile::serve(script.clone()).await;
    // With a next_attempt, the later attempts may be new.
    let patience = Duration::from_secs(if next_attempt.is_some() { 0 } else { 5 });
    let (stdout, stderr) = (Shared::default(), Shared::default());
    let output = Output::new(Target::plain(stdout.clone()), Target::plain(stderr.clone()));
    let mut follower = Follower {
        dial: FragileDial {
            address,
            cuts: cuts.to_vec(),
            dials: 0,
            discredited: 0,
        },
        ledger: Ledger::new(want),
        sink: output.clone(),
        progress: Messages::new("job", false, &output),
        unknown_until: Instant::now() + patience,
    };
    let result = tokio::time::timeout(
        Duration::from_secs(60),
        next_attempt::follow(&mut follower, next_attempt, false),
    )
    .await
    .expect("it ends");
    let code = match &result {
        Ok(Some(end)) => exit::verdict("job", end, &follower.ledger).code,
        Ok(None) => 0,
        Err(_) => UNKNOWN,
    };
    let (dials, discredited) = (follower.dial.dials, follower.dial.discredited);
    let _ = output.flush().await;
    serving.abort();
    let taken = |shared: Shared| shared.0.lock().unwrap().clone();
    Followed {
        result,
        code,
        stdout: taken(stdout),
        stderr: taken(stderr),
        dials,
        discredited,
    }
}

fn following() -> Want {
    Want {
        follow: true,
        ..Want::default()
    }
}

/// Chunks of odd sizes on both streams, with every byte value.
fn mixed(total: usize) -> Script {
    let mut chunks = Vec::new();
    let (mut made, mut size) = (0, 1);
    while made < total {
        let stream = if size % 3 == 0 { Stream::Stderr } else { Stream::Stdout };
        chunks.push((
            stream,
            (0..size).map(|index| ((made + index) * 31 % 256) as u8).collect(),
        ));
        made += size;
        size = size * 7 % 9973 + 1;
    }
    Script {
        chunks,
        ..Script::default()
    }
}

#[tokio::test]
async fn every_byte_arrives_once_over_any_number_of_cuts() {
    let script = mixed(1_000_000).ends(7);
    // Each connection gets a little further than the one before, so that cuts happen at any position.
    for cuts in [
        vec![],
        vec![100, 5_000, 70_000, 200_003, 300_007, usize::MAX],
        vec![333_333],
    ] {
        let followed = follow(&script, following(), &cuts).await;
        assert_eq!(followed.code, 7, "{cuts:?}: {:?}", followed.result);
        assert!(followed.stdout == script.bytes(Stream::Stdout), "{cuts:?}");
        assert!(followed.stderr == script.bytes(Stream::Stderr), "{cuts:?}");
        assert!(followed.dials >= cuts.len(), "{} connections", followed.dials);
    }
}

#[tokio::test]
async fn a_resumed_stream_asks_for_what_is_missing() {
    let script = mixed(300_000).ends(0);
    let want = Want {
        cursor: Some(Cursor {
            stdout: 1000,
            stderr: 0,
        }),
        stream: Stream::Stdout,
        ..following()
    };
    let followed = follow(&script, want, &[120_000, usize::MAX]).await;
    assert!(followed.stdout == script.bytes(Stream::Stdout)[1000..]);
    assert_eq!((followed.stderr.len(), followed.code), (0, 0));
    let requests = script.requests.lock().unwrap();
    assert!(requests[1].cursor.unwrap().stdout > 1000);
}

#[tokio::test]
async fn the_last_lines_come_once_over_a_cut() {
    let mut script = mixed(400_000).ends(0);
    script.tail = script.chunks.len() / 2;
    let place: usize = script.chunks[..script.tail]
        .iter()
        .filter(|chunk| chunk.0 == Stream::Stdout)
        .map(|chunk| chunk.1.len())
        .sum();
    let want = Want {
        tail_lines: Some(5),
        ..following()
    };
    let followed = follow(&script, want, &[60_000, usize::MAX]).await;
    assert!(followed.stdout == script.bytes(Stream::Stdout)[place..]);
    assert_eq!(
        (followed.code, script.requests.lock().unwrap()[1].tail_lines),
        (0, None)
    );
}

#[tokio::test]
async fn an_unknown_end_is_125() {
    let mut script = mixed(10);
    script.exit = Some(Exit {
        reason: Reason::NodeLost.into(),
        ..Exit::default()
    });
    let followed = follow(&script, following(), &[]).await;
    assert_eq!(
        (followed.code, followed.stdout),
        (UNKNOWN, script.bytes(Stream::Stdout))
    );
}

#[tokio::test]
async fn a_gap_is_reported_and_exits_with_125() {
    let gap = Gap {
        stream: Stream::Stdout.into(),
        from: 0,
        to: Some(0),
        reason: GapReason::SpoolFull.into(),
    };
    let script = Script {
        before: vec![Frame::Gap(gap)],
        ..mixed(10).ends(0)
    };
    let followed = follow(&script, following(), &[]).await;
    assert_eq!(followed.code, UNKNOWN);
    let text = String::from_utf8_lossy(&followed.stderr).into_owned();
    assert!(
        text.starts_with(
            "rproc: bytes 0 to 0 of stdout were dropped because the spool was full (spec.output.whenFull: DropOldest)\n"
        ),
        "{text}"
    );
}

#[tokio::test]
async fn offsets_that_do_not_fit_end_it_loudly() {
    let stray = Data {
        stream: Stream::Stdout.into(),
        offset: 5,
        bytes: Bytes::from_static(b"x"),
        ..Data::default()
    };
    let script = Script {
        before: vec![Frame::Data(stray)],
        ..mixed(10).ends(0)
    };
    let followed = follow(&script, following(), &[]).await;
    assert_eq!(followed.code, UNKNOWN);
    assert!(matches!(followed.result, Err(Error::Inconsistent(_))));
    assert!(followed.stdout.is_empty());
}

#[tokio::test]
async fn a_seal_over_more_bytes_is_125() {
    let mut script = mixed(10).ends(0);
    script.chunks.pop();
    assert_eq!(follow(&script, following(), &[]).await.code, UNKNOWN);
}

#[tokio::test]
async fn a_process_that_waits_says_why() {
    let state = State {
        phase: Phase::Pending.into(),
        reason: Reason::ImagePull.into(),
        message: "no such image".into(),
    };
    let script = Script {
        before: vec![Frame::State(state)],
        ..Script::default()
    };
    // The relay ends each stream without an exit, so the follower waits and asks again.
    let want = following();
    let listening = tokio::time::timeout(Duration::from_secs(3), follow(&script, want, &[]));
    assert!(listening.await.is_err(), "it goes on waiting");
    assert!(script.requests.lock().unwrap().len() > 1);
}

#[tokio::test]
async fn without_follow_it_stops_at_what_is_there() {
    let script = mixed(1000);
    let followed = follow(&script, Want::default(), &[]).await;
    assert!(matches!(followed.result, Ok(None)));
    assert_eq!(followed.stdout, script.bytes(Stream::Stdout));
}

#[tokio::test]
async fn refusals_are_distinguished_from_temporary_errors() {
    let script = mixed(1000).ends(3);
    let trouble = [
        Status::unavailable("draining"),
        Status::unauthenticated("expired"),
        Status::not_found("new"),
    ];
    *script.refusals.lock().unwrap() = trouble.to_vec();
    let followed = follow(&script, following(), &[]).await;
    assert_eq!((followed.code, followed.dials, followed.discredited), (3, 4, 1));
    *script.refusals.lock().unwrap() = vec![Status::permission_denied("no")];
    let followed = follow(&script, following(), &[]).await;
    assert!(matches!(followed.result, Err(Error::Relay(_))));
    assert_eq!(followed.dials, 1);
}

#[tokio::test]
async fn a_follower_of_one_attempt_does_not_continue_in_the_next() {
    let script = Script {
        attempts: vec![1, 2],
        ..mixed(300_000).ends(0)
    };
    let followed = follow(&script, following(), &[120_000, usize::MAX]).await;
    assert_eq!(followed.code, 0, "{:?}", followed.result);
    let requests = script.requests.lock().unwrap();
    let asked: Vec<(u32, String)> = requests
        .iter()
        .map(|request| (request.attempt, request.process.clone().unwrap().uid))
        .collect();
    assert_eq!(asked, [(0, String::new()), (1, "u-1".into())]);
}

#[tokio::test]
async fn an_attempt_that_is_settled_later_is_kept_too() {
    let settled = Heartbeat {
        attempt: 1,
        ..Heartbeat::default()
    };
    let script = Script {
        before: vec![Frame::Heartbeat(settled)],
        ..mixed(300_000).ends(0)
    };
    let followed = follow(&script, following(), &[120_000, usize::MAX]).await;
    assert_eq!(followed.code, 0, "{:?}", followed.result);
    let asked: Vec<u32> = script
        .requests
        .lock()
        .unwrap()
        .iter()
        .map(|request| request.attempt)
        .collect();
    assert_eq!(asked, [0, 1]);
}

#[tokio::test]
async fn another_attempt_than_the_one_asked_for_is_refused() {
    let mut script = mixed(1000).ends(0);
    script.attempts = vec![1];
    let want = Want {
        attempt: 1,
        process: v1::ProcessKey {
            uid: "u-2".into(),
            ..v1::ProcessKey::default()
        },
        ..following()
    };
    let followed = follow(&script, want, &[]).await;
    assert!(matches!(followed.result, Err(Error::Inconsistent(_))));
    assert!(followed.stdout.is_empty());
}

#[tokio::test]
async fn output_since_a_time_comes_once_over_cuts() {
    let script = Script {
        since: 40,
        ..mixed(400_000).ends(0)
    };
    let whole = follow(&script, since(), &[]).await;
    assert!(script.bytes(Stream::Stdout).ends_with(&whole.stdout));
    assert!(whole.stdout.len() < script.bytes(Stream::Stdout).len());
    for cut in [500, 60_000, 150_000] {
        let followed = follow(&script, since(), &[cut, usize::MAX]).await;
        assert_eq!(followed.code, 0, "{cut}: {:?}", followed.result);
        assert!(
            followed.stdout == whole.stdout && followed.stderr == whole.stderr,
            "{cut}"
        );
    }
}

fn since() -> Want {
    Want {
        since_unix_nanos: Some(1),
        ..following()
    }
}

/// An API server whose object has these statuses, one after the other; the last one stays. Its watches deliver nothing.
fn object(code: StatusCode, statuses: Vec<Value>) -> NextAttempt {
    let statuses = Arc::new(Mutex::new(statuses));
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch"));
        let mut statuses = statuses.lock().unwrap();
        let status = match statuses.len() {
            0 => Value::Null,
            1 => statuses[0].clone(),
            _ if is_watch => Value::Null,
            _ => statuses.remove(0),
        };
        let answer = json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"name": "job", "uid": "u-1", "resourceVersion": "1"},
            "spec": {"image": "i", "command": ["x"], "retries": {"limit": 2}}, "status": status,
        });
        let body = if is_watch {
            Vec::new()
        } else {
            serde_json::to_vec(&answer).unwrap()
        };
        let refusal = json!({"code": code.as_u16(), "reason": "Forbidden",
            "message": "remoteprocesses \"job\" is forbidden: User \"ann\" cannot get resource \"remoteprocesses\""});
        let refusal = refusal.to_string();
        let body = if code == StatusCode::OK { body } else { refusal.into() };
        std::future::ready(Ok::<_, std::convert::Infallible>(
            http::Response::builder().status(code).body(Body::from(body)).unwrap(),
        ))
    });
    NextAttempt {
        cluster: Arc::new(Cluster {
            client: Client::new(service, "default"),
            namespace: "default".into(),
            operator_namespace: "remoteprocess-system".into(),
            url: "https://cluster".into(),
            account: Account::default(),
            connector: Connector::default(),
            server: None,
            cache: None,
        }),
        key: v1::ProcessKey {
            namespace: "default".into(),
            name: "job".into(),
            uid: "u-1".into(),
        },
        patience: Duration::from_millis(300),
        may_have_retries: true,
    }
}

/// A status at the time of attempt `number`.
fn at(phase: &str, reason: &str, number: u32) -> Value {
    let attempts: Vec<_> = (1..=number)
        .map(|number| json!({"number": number, "grantedAt": "2026-01-01T00:00:00Z"}))
        .collect();
    json!({"phase": phase, "reason": reason, "message": "attempt 1 ended; attempt 2 follows in 10 s",
        "attempt": number, "attempts": attempts})
}

#[tokio::test]
async fn each_attempt_is_followed_and_the_last_ones_code_counts() {
    let script = Script {
        attempts: vec![1],
        codes: vec![7, 3],
        // The relay learns of it a moment after the client.
        unknown: Arc::new(Mutex::new(vec![Status::not_found(
            "there is no attempt 2; the latest is 1",
        )])),
        ..mixed(1000).ends(0)
    };
    let once = (script.bytes(Stream::Stdout), script.bytes(Stream::Stderr));
    let next_attempt = object(
        StatusCode::OK,
        vec![
            at("Running", "Running", 1),
            at("Pending", "Retrying", 1),
            at("Pending", "Retrying", 1),
            at("Running", "Running", 2),
            at("Failed", "NonZeroExit", 2),
        ],
    );
    let followed = follow_attempts(&script, following(), &[], Some(&next_attempt)).await;
    assert_eq!(followed.code, 3, "{:?}", followed.result);
    assert_eq!(followed.stdout, once.0.repeat(2), "both attempts, whole");
    let stderr = String::from_utf8_lossy(&followed.stderr).into_owned();
    let ours: Vec<&str> = stderr
        .split("rproc: ")
        .skip(1)
        .map(|line| line.lines().next().unwrap())
        .collect();
    assert_eq!(
        ours,
        [
            "attempt 1: job exited with code 7",
            "job: attempt 1 ended; attempt 2 follows in 10 s",
            "attempt 2 of job begins"
        ]
    );
}

#[tokio::test]
async fn nothing_follows_a_success() {
    let script = |code| Script {
        attempts: vec![1],
        ..mixed(1000).ends(code)
    };
    // The API server is not asked: a second attempt would never end this test.
    let later = || object(StatusCode::OK, vec![at("Running", "Running", 1)]);
    let succeeded = follow_attempts(&script(0), following(), &[], Some(&later())).await;
    assert_eq!(succeeded.code, 0, "{:?}", succeeded.result);
    let away = object(StatusCode::SERVICE_UNAVAILABLE, vec![]);
    let failed = follow_attempts(&script(7), following(), &[], Some(&away)).await;
    assert_eq!(failed.code, 7, "an end that is known is told: {:?}", failed.result);
    let stderr = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(
        stderr.contains("does not say whether another attempt follows"),
        "{stderr}"
    );
}

#[tokio::test]
async fn without_the_right_to_read_the_object_the_missing_rule_is_said_and_the_end_is_not_known() {
    let mut script = Script {
        attempts: vec![1],
        ..mixed(1000).ends(7)
    };
    script.exit.as_mut().unwrap().source = v1::exit::Source::Entrypoint.into();
    let forbidden = object(StatusCode::FORBIDDEN, vec![]);
    let followed = follow_attempts(&script, following(), &[], Some(&forbidden)).await;
    let Err(error) = followed.result else {
        panic!("{:?}", followed.result);
    };
    let message = error.to_string();
    assert!(message.contains("verbs: [get, watch]"), "{message}");
    let stderr = String::from_utf8_lossy(&followed.stderr).into_owned();
    assert!(stderr.contains("attempt 1: job exited with code 7"), "{stderr}");
    // A program that ran is not followed by another attempt where there are no retries.
    let forbidden = NextAttempt {
        may_have_retries: false,
        ..object(StatusCode::FORBIDDEN, vec![])
    };
    let followed = follow_attempts(&script, following(), &[], Some(&forbidden)).await;
    assert_eq!(followed.code, 7, "{:?}", followed.result);
}
