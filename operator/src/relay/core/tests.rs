//! What a user sees of one process: before, during and after the life of its pod.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use object_store::memory::InMemory;
use remoteprocess_api::{
    AttemptExit, AttemptStatus, ExitSource, Phase, Reason, RemoteProcessSpec, RemoteProcessStatus,
};
use remoteprocess_proto::v1::exit::{Outcome, Source};
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{self as wire, Exit, GapReason, Heartbeat, OutputFrame, Stream, WatchOutputRequest};
use remoteprocess_tls::{Connection, User};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::access::Access;
use super::authorize::Forwarded;
use super::authorize::UserCaller;
use super::output::{Events, OutputEvent};
use super::*;
use crate::fake_api;
use crate::relay::archive::Manifest;
use crate::relay::attempt::Subject;
use crate::relay::live::fake_agent::{FakeAgent, Program, TestDialer, no_peers};
use crate::relay::live::{Budget, Context, Fact, OutputCondition, Record};

/// Much longer than any step takes; only a hang lasts this long.
const DEADLINE: Duration = Duration::from_secs(30);

/// Knows when an end was recorded.
#[derive(Clone)]
struct Notes(watch::Sender<bool>);

impl Record for Notes {
    fn learned<'a>(&'a self, _: &'a Subject, _: Fact) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn noted<'a>(&'a self, _: &'a Subject, _: &'a OutputCondition) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn ended<'a>(&'a self, _: &'a Subject, _: &'a Manifest, _: &'a [u8]) -> BoxFuture<'a, ()> {
        self.0.send_replace(true);
        Box::pin(std::future::ready(()))
    }
}

struct Bench {
    core: Arc<Core>,
    notes: Notes,
    is_allowed: Arc<AtomicBool>,
    /// Number of requests to the API server.
    asked: Arc<AtomicUsize>,
    /// When the namespace was created, in seconds since the Unix epoch.
    namespace_created: Arc<AtomicI64>,
}

impl Bench {
    fn new() -> Self {
        let is_allowed = Arc::new(AtomicBool::new(true));
        let asked = Arc::new(AtomicUsize::new(0));
        let namespace_created = Arc::new(AtomicI64::new(0));
        let (answer, count, age) = (is_allowed.clone(), asked.clone(), namespace_created.clone());
        let client = fake_api::client(move |call| {
            count.fetch_add(1, Ordering::Relaxed);
            if call.path.starts_with("/api/v1/namespaces/") {
                let created = jiff::Timestamp::from_second(age.load(Ordering::Relaxed)).unwrap();
                return (
                    200,
                    json!({"metadata": {"name": "default", "creationTimestamp": created}}),
                );
            }
            let mut review = call.body;
            // Nobody has a right in all namespaces.
            let is_one = review["spec"]["resourceAttributes"]["namespace"].is_string();
            review["status"] = json!({"allowed": is_one && answer.load(Ordering::Relaxed)});
            (201, review)
        });
        let archive = Archive::new(Arc::new(InMemory::new()));
        let (notes, shutdown) = (Notes(watch::Sender::new(false)), CancellationToken::new());
        let context = Context {
            archive: archive.clone(),
            connect: Arc::new(TestDialer::default()),
            record: Box::new(notes.clone()),
            peers: no_peers(),
            memory: Arc::new(Budget::new(1 << 30)),
            shutdown: shutdown.clone(),
        };
        let core = Core {
            directory: Directory::default(),
            live: LiveAttempts::new(Arc::new(context)),
            archive,
            authorizer: Authorizer::new(client.clone()),
            recorder: Recorder::new(client, "operator-0".to_owned()),
            streams: Streams::default(),
            shutdown,
        };
        Self {
            core: Arc::new(core),
            notes,
            is_allowed,
            asked,
            namespace_created,
        }
    }

    fn watch(&self, request: &WatchOutputRequest) -> Frames {
        self.watch_as(access(), request)
    }

    fn watch_as(&self, access: Access, request: &WatchOutputRequest) -> Frames {
        let target = Target {
            namespace: "default".to_owned(),
            name: "hello".to_owned(),
            uid: "0c1d".to_owned(),
        };
        let attempt = self.core.settled(&target);
        let open = self.core.streams.open(&access.caller).unwrap();
        Frames {
            events: output::watch(self.core.clone(), access, open, target, attempt, request),
            ready: VecDeque::new(),
        }
    }

    fn open(&self, agent: &FakeAgent, attempt: u32) {
        let key = AttemptKey {
            uid: "0c1d".to_owned(),
            attempt,
        };
        let subject = Subject {
            namespace: "default".to_owned(),
            name: "hello".to_owned(),
            pod_uid: "pod-1".to_owned(),
            key,
        };
        self.core.live.open(subject, agent.agent());
    }

    async fn recorded(&self) {
        soon(self.notes.0.subscribe().wait_for(|is_done| *is_done))
            .await
            .unwrap();
    }
}

/// The events of a stream, as the frames that carry them.
struct Frames {
    events: Events,
    ready: VecDeque<OutputFrame>,
}

impl Frames {
    async fn next(&mut self) -> Option<Result<OutputFrame, Error>> {
        while self.ready.is_empty() {
            let frame = match self.events.next().await? {
                Ok(OutputEvent::Output(frames)) => {
                    let frames = frames.into_iter().map(|framed| framed.placed.piece.into_frame());
                    self.ready.extend(frames);
                    continue;
                }
                Ok(OutputEvent::Position { offsets, attempt }) => Frame::Heartbeat(Heartbeat { offsets, attempt }),
                Ok(OutputEvent::State(state)) => Frame::State(state),
                Ok(OutputEvent::Exit(exit)) => Frame::Exit(*exit),
                Err(error) => return Some(Err(error)),
            };
            self.ready.push_back(OutputFrame { frame: Some(frame) });
        }
        self.ready.pop_front().map(Ok)
    }
}

fn alice() -> User {
    User {
        name: "alice".to_owned(),
        ..User::default()
    }
}

/// Alice, on a connection whose certificate is valid for longer than any test.
fn access() -> Access {
    Access {
        caller: Caller::User(UserCaller {
            user: alice(),
            ..UserCaller::default()
        }),
        until: Instant::now() + Duration::from_secs(3600),
        connection: Connection::default(),
    }
}

fn follow() -> WatchOutputRequest {
    WatchOutputRequest {
        follow: true,
        ..WatchOutputRequest::default()
    }
}

fn process(status: RemoteProcessStatus) -> RemoteProcess {
    let mut process = RemoteProcess::new("hello", RemoteProcessSpec::default());
    process.metadata.namespace = Some("default".to_owned());
    process.metadata.uid = Some("0c1d".to_owned());
    process.metadata.resource_version = Some(format!("{:?}", status));
    process.status = Some(status);
    process
}

fn waiting(attempt: Option<u32>, reason: Reason) -> RemoteProcess {
    process(RemoteProcessStatus {
        phase: Some(Phase::Pending),
        reason: Some(reason),
        attempt,
        ..RemoteProcessStatus::default()
    })
}

fn granted() -> AttemptStatus {
    AttemptStatus {
        number: 1,
        granted_at: Some(jiff::Timestamp::UNIX_EPOCH),
        ..AttemptStatus::default()
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("in time")
}

async fn next(frames: &mut Frames) -> Frame {
    soon(frames.next())
        .await
        .expect("a frame")
        .expect("no error")
        .frame
        .expect("not empty")
}

/// Everything that is left: the number of bytes of output, and the other frames except heartbeats.
async fn rest(frames: &mut Frames) -> (usize, Vec<Frame>) {
    let (bytes, _, others) = rest_of_attempt(frames).await;
    (bytes, others)
}

/// As `rest`, with the number of the attempt.
async fn rest_of_attempt(frames: &mut Frames) -> (usize, u32, Vec<Frame>) {
    let (mut bytes, mut attempt, mut others) = (0, 0, Vec::new());
    while let Some(frame) = soon(frames.next()).await {
        match frame.unwrap().frame.unwrap() {
            Frame::Data(data) => bytes += data.bytes.len(),
            Frame::Heartbeat(heartbeat) => attempt = heartbeat.attempt,
            other => others.push(other),
        }
    }
    (bytes, attempt, others)
}

fn reason_of(frame: &Frame) -> wire::Reason {
    match frame {
        Frame::State(state) => state.reason(),
        other => panic!("{other:?}"),
    }
}

fn only_exit(frames: &[Frame]) -> &Exit {
    match frames {
        [Frame::Exit(exit)] => exit,
        other => panic!("{other:?}"),
    }
}

/// A regression: cached answers for refused users filled the memory with such names.
#[tokio::test]
async fn a_name_of_a_megabyte_is_refused_without_a_request() {
    let bench = Bench::new();
    let key = |namespace: &str, name: &str, uid: &str| ProcessKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    };
    let long = "x".repeat(1 << 20);
    for odd in [
        key("default", &long, ""),
        key(&long, "hello", ""),
        key("", "", &long),
        key("default", "#3", ""),
        key("../x", "hello", ""),
        key("default", "hello", "a?b"),
    ] {
        let refused = bench
            .core
            .allow::<WatchOutputRequest>(&alice(), Some(odd.clone()))
            .await;
        assert_eq!(refused.unwrap_err().code, Code::InvalidArgument);
        let refused = bench.core.at_home(&Forwarded::default(), Some(odd));
        assert_eq!(refused.err().map(|error| error.code), Some(Code::InvalidArgument));
    }
    assert_eq!(bench.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_early_follower_learns_why_it_waits_and_gets_everything() {
    let bench = Bench::new();
    bench.core.directory.apply(waiting(None, Reason::Waiting));
    let mut frames = bench.watch(&follow());
    assert_eq!(reason_of(&next(&mut frames).await), wire::Reason::Waiting);
    bench.core.directory.apply(waiting(Some(1), Reason::ImagePull));
    assert_eq!(reason_of(&next(&mut frames).await), wire::Reason::ImagePull);
    let program = Program::new(&[(false, 1000), (true, 10)]);
    let agent = FakeAgent::serve(&program).await;
    bench.open(&agent, 1);
    let (bytes, others) = rest(&mut frames).await;
    assert_eq!(bytes, 1010);
    let exit = only_exit(&others);
    assert_eq!((exit.value, exit.sealed), (7, true));
}

/// The end waits for its reader, too: until then the stream is open, and it can be displaced.
#[tokio::test]
async fn a_stream_is_open_until_its_end_was_taken() {
    let bench = Bench::new();
    let mut failed = waiting(None, Reason::InvalidSpec);
    failed.status.as_mut().unwrap().phase = Some(Phase::Failed);
    bench.core.directory.apply(failed);
    let mut frames = bench.watch(&follow());
    let counts = |expected: [usize; 2]| {
        let streams = bench.core.streams.clone();
        soon(async move {
            while streams.counts() != expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    counts([1, 1]).await;
    rest(&mut frames).await;
    counts([1, 0]).await;
    drop(frames);
    counts([0, 0]).await;
}

#[tokio::test]
async fn a_process_that_never_ran_ends_with_its_reason_and_without_a_gap() {
    let bench = Bench::new();
    let mut failed = waiting(None, Reason::InvalidSpec);
    failed.status.as_mut().unwrap().phase = Some(Phase::Failed);
    bench.core.directory.apply(failed);
    let (bytes, others) = rest(&mut bench.watch(&follow())).await;
    let exit = only_exit(&others);
    assert_eq!(
        (bytes, exit.outcome(), exit.reason()),
        (0, Outcome::Unknown, wire::Reason::InvalidSpec)
    );
}

#[tokio::test]
async fn the_archive_serves_what_is_over_and_deleted_the_same() {
    let bench = Bench::new();
    bench.core.directory.apply(waiting(Some(1), Reason::Running));
    let program = Program::new(&[(false, 300_000), (true, 300_000), (false, 1)]);
    let agent = FakeAgent::serve(&program).await;
    bench.open(&agent, 1);
    bench.recorded().await;
    let mut changes = bench.core.live.changes();
    while !bench.core.live.all().is_empty() {
        soon(changes.changed()).await.unwrap();
    }
    for is_deleted in [false, true] {
        if is_deleted {
            bench.core.directory.remove("0c1d");
        }
        for follow in [false, true] {
            let (bytes, others) = rest(&mut bench.watch(&WatchOutputRequest {
                follow,
                ..now_request()
            }))
            .await;
            assert_eq!(bytes, 600_001);
            assert!(only_exit(&others).sealed);
        }
    }
    let by_uid = ProcessKey {
        uid: "0c1d".to_owned(),
        ..ProcessKey::default()
    };
    let target = bench
        .core
        .allow::<WatchOutputRequest>(&alice(), Some(by_uid.clone()))
        .await
        .unwrap();
    assert_eq!((target.namespace.as_str(), target.name.as_str()), ("default", "hello"));
    // A namespace that was deleted and created again has other viewers.
    let later = jiff::Timestamp::now().as_second() + 60;
    bench.namespace_created.store(later, Ordering::Relaxed);
    let recreated = bench
        .core
        .allow::<WatchOutputRequest>(&alice(), Some(by_uid.clone()))
        .await;
    assert_eq!(recreated.unwrap_err().code, Code::NotFound);
    // A user without the right learns the same from a uid that exists as from one that does not.
    bench.is_allowed.store(false, Ordering::Relaxed);
    let bob = User {
        name: "bob".to_owned(),
        ..User::default()
    };
    let nowhere = ProcessKey {
        uid: "0c1e".to_owned(),
        ..ProcessKey::default()
    };
    let refused = bench.core.allow::<WatchOutputRequest>(&bob, Some(by_uid)).await;
    let missing = bench.core.allow::<WatchOutputRequest>(&bob, Some(nowhere)).await;
    assert_eq!(refused.unwrap_err(), missing.unwrap_err());
}

fn now_request() -> WatchOutputRequest {
    WatchOutputRequest {
        stream: Stream::Unspecified.into(),
        ..WatchOutputRequest::default()
    }
}

#[tokio::test]
async fn an_end_that_only_the_kubelet_reported_has_a_named_gap() {
    let bench = Bench::new();
    let exit = AttemptExit {
        code: Some(137),
        source: ExitSource::Kubelet,
        ..AttemptExit::default()
    };
    let attempts = vec![AttemptStatus {
        exit: Some(exit),
        ..granted()
    }];
    bench.core.directory.apply(process(RemoteProcessStatus {
        phase: Some(Phase::Failed),
        reason: Some(Reason::Interrupted),
        attempt: Some(1),
        attempts,
        ..RemoteProcessStatus::default()
    }));
    let (_, others) = rest(&mut bench.watch(&follow())).await;
    let [Frame::Gap(stdout), Frame::Gap(stderr), Frame::Exit(exit)] = &others[..] else {
        panic!("{others:?}")
    };
    assert_eq!((stdout.reason(), stderr.to), (GapReason::NeverSealed, None));
    assert_eq!((exit.value, exit.source(), exit.sealed), (137, Source::Kubelet, false));
}

#[tokio::test]
async fn without_follow_a_live_stream_stops_at_what_is_there() {
    let bench = Bench::new();
    bench.core.directory.apply(waiting(Some(1), Reason::Running));
    let program = Program::new(&[(false, 1000), (false, 10)]);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    bench.open(&agent, 1);
    let mut following = bench.watch(&follow());
    while !matches!(next(&mut following).await, Frame::Data(_)) {}
    let (bytes, others) = rest(&mut bench.watch(&now_request())).await;
    assert_eq!((bytes, others.len()), (1000, 0));
}

/// A regression: `run` and `logs -f` ended with 125 although the process continued; typed again, the program ran twice.
#[tokio::test]
async fn an_attempt_that_ran_nothing_and_is_replaced_does_not_end_the_stream() {
    let bench = Bench::new();
    let mut gone = waiting(Some(1), Reason::Interrupted);
    gone.status.as_mut().unwrap().attempts = vec![AttemptStatus {
        number: 1,
        exit: Some(AttemptExit {
            reason: Some(Reason::Interrupted),
            ..AttemptExit::default()
        }),
        ..AttemptStatus::default()
    }];
    bench.core.directory.apply(gone);
    let (bytes, others) = rest(&mut bench.watch(&now_request())).await;
    assert_eq!((bytes, others.len()), (0, 0), "nothing to read, and no end");
    let mut frames = bench.watch(&follow());
    assert_eq!(reason_of(&next(&mut frames).await), wire::Reason::Interrupted);
    let program = Program::new(&[(false, 5)]);
    let agent = FakeAgent::serve(&program).await;
    bench.core.directory.apply(waiting(Some(2), Reason::Enrolling));
    bench.open(&agent, 2);
    let (bytes, told, others) = rest_of_attempt(&mut frames).await;
    assert_eq!((bytes, told), (5, 2));
    assert!(matches!(others.last(), Some(Frame::Exit(exit)) if exit.value == 7));
}

#[tokio::test]
async fn an_attempt_that_was_replaced_before_it_wrote_is_left_for_the_next() {
    let bench = Bench::new();
    bench.core.directory.apply(waiting(Some(1), Reason::ImagePull));
    let mut frames = bench.watch(&follow());
    assert_eq!(reason_of(&next(&mut frames).await), wire::Reason::ImagePull);
    bench.core.directory.apply(waiting(Some(2), Reason::Enrolling));
    let program = Program::new(&[(false, 5)]);
    let agent = FakeAgent::serve(&program).await;
    bench.open(&agent, 2);
    let (bytes, told, others) = rest_of_attempt(&mut frames).await;
    assert_eq!((bytes, told), (5, 2), "who resumes has to know which attempt this was");
    assert!(matches!(others.last(), Some(Frame::Exit(exit)) if exit.value == 7));
}

#[tokio::test]
async fn a_stream_of_a_granted_attempt_never_continues_in_the_next() {
    let bench = Bench::new();
    let running = |attempt, attempts| {
        process(RemoteProcessStatus {
            phase: Some(Phase::Running),
            attempt: Some(attempt),
            attempts,
            ..RemoteProcessStatus::default()
        })
    };
    bench.core.directory.apply(running(1, vec![granted()]));
    let mut first = bench.watch(&follow());
    let next = AttemptStatus { number: 2, ..granted() };
    bench.core.directory.apply(running(2, vec![granted(), next]));
    let program = Program::new(&[(false, 5)]);
    let agent = FakeAgent::serve(&program).await;
    bench.open(&agent, 2);
    let (bytes, others) = rest(&mut first).await;
    let Some(Frame::Exit(exit)) = others.last() else {
        panic!("{others:?}")
    };
    assert_eq!((bytes, exit.outcome()), (0, Outcome::Unknown));
    assert!(exit.message.contains("attempt 2"), "{}", exit.message);
}

#[tokio::test]
async fn a_stream_begins_at_a_time_or_at_the_last_lines_of_one_stream() {
    let bench = Bench::new();
    bench.core.directory.apply(waiting(Some(1), Reason::Running));
    let program = Program::timed(&[(false, 1000), (true, 10), (false, 300_000), (true, 1000)]);
    let agent = FakeAgent::serve(&program).await;
    bench.open(&agent, 1);
    let total = async |request: WatchOutputRequest| rest(&mut bench.watch(&request)).await.0;
    let since = |since| WatchOutputRequest {
        since_unix_nanos: Some(since),
        ..follow()
    };
    for _ in 0..2 {
        // First from the ring or from both, then from the archive alone.
        assert_eq!(total(since(0)).await, 302_010);
        assert_eq!(total(since(2)).await, 301_010);
        assert_eq!(total(since(4)).await, 1000);
        assert_eq!(total(since(5)).await, 0);
        let errors = WatchOutputRequest {
            stream: Stream::Stderr.into(),
            tail_lines: Some(1),
            ..follow()
        };
        let tail = total(errors).await;
        assert!((1..400).contains(&tail), "{tail}");
        bench.recorded().await;
    }
}

/// How a stream whose reader takes everything ends.
async fn last_word(frames: &mut Frames) -> Error {
    loop {
        match frames.next().await.expect("a last word") {
            Ok(frame) => assert!(matches!(frame.frame, Some(Frame::Heartbeat(_)))),
            Err(error) => return error,
        }
    }
}

#[tokio::test]
async fn a_stream_ends_within_a_minute_with_the_right_and_at_once_with_the_certificate() {
    let bench = Bench::new();
    bench.core.directory.apply(waiting(Some(1), Reason::Unschedulable));
    let mut frames = bench.watch(&follow());
    next(&mut frames).await;
    let short = Access {
        until: Instant::now() + Duration::from_secs(20),
        ..access()
    };
    let mut short_lived = bench.watch_as(short, &follow());
    next(&mut short_lived).await;
    tokio::time::pause();
    let ended = timeout(Duration::from_secs(21), last_word(&mut short_lived)).await;
    assert_eq!(ended.expect("in time").code, Code::Unauthenticated);
    assert!(timeout(Duration::from_secs(100), last_word(&mut frames)).await.is_err());
    bench.is_allowed.store(false, Ordering::Relaxed);
    let refused = timeout(Duration::from_secs(60), last_word(&mut frames)).await;
    assert_eq!(refused.expect("in time").code, Code::PermissionDenied);
}

/// A reader that took nothing once kept its stream for as long as it liked.
#[tokio::test]
async fn a_reader_that_takes_nothing_loses_the_stream_too_and_then_its_connection() {
    let bench = Bench::new();
    let program = Program::new(&vec![(false, 48 * 1024); 100]);
    let agent = FakeAgent::serve(&program).await;
    bench.open(&agent, 1);
    bench.recorded().await;
    let status = RemoteProcessStatus {
        attempt: Some(1),
        attempts: vec![granted()],
        ..RemoteProcessStatus::default()
    };
    bench.core.directory.apply(process(status));
    for is_revoked in [false, true] {
        let slow = Access {
            until: Instant::now() + Duration::from_secs(if is_revoked { 3600 } else { 30 }),
            ..access()
        };
        let connection = slow.connection.clone();
        let mut frames = bench.watch_as(slow, &follow());
        assert!(matches!(next(&mut frames).await, Frame::Data(_) | Frame::Heartbeat(_)));
        tokio::time::pause();
        bench.is_allowed.store(!is_revoked, Ordering::Relaxed);
        let cut = timeout(Duration::from_secs(75), connection.is_cut());
        assert!(cut.await.is_ok(), "a last word that nobody takes");
        frames.ready.clear();
        let code = if is_revoked {
            Code::PermissionDenied
        } else {
            Code::Unauthenticated
        };
        let last = frames.next().await.expect("a last word");
        assert_eq!(last.expect_err("nothing of what waited").code, code);
        assert!(frames.next().await.is_none());
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_replica_that_shuts_down_reports_it() {
    let bench = Bench::new();
    bench.core.directory.apply(waiting(Some(1), Reason::Unschedulable));
    let mut frames = bench.watch(&follow());
    next(&mut frames).await;
    bench.core.shutdown.cancel();
    let status = soon(frames.next()).await.expect("a last word").unwrap_err();
    assert_eq!(status.code, Code::Unavailable);
}
