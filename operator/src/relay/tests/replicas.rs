//! Two replicas over one archive: each serves the attempts whose home is the other one, and continues when that one
//! dies.

use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::exec_request::Request as ExecAsked;
use remoteprocess_proto::v1::exec_response::Response as Said;
use remoteprocess_proto::v1::{
    AttachOpen, AttachRequest, ExecOpen, ExecRequest, ExecResponse, GetStateRequest, Input, InputEnd, ProcessKey,
    SignalRequest, StopRequest, WindowSize,
};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::replica::{Got, Replica, UID};
use crate::relay::archive::Archive;
use crate::relay::live::fake_agent::{FakeAgent, Program};

/// Much longer than any step takes; only a hang lasts this long.
const DEADLINE: Duration = Duration::from_secs(60);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("in time")
}

/// Two replicas that know each other.
async fn pair() -> (Replica, Replica) {
    let archive = Archive::new(Arc::new(InMemory::new()));
    let pair = (Replica::start(&archive).await, Replica::start(&archive).await);
    let addresses = vec![pair.0.address, pair.1.address];
    *pair.0.peers.lock().unwrap() = addresses.clone();
    *pair.1.peers.lock().unwrap() = addresses;
    pair
}

/// About `megabytes` in chunks of 48 KiB, every fifth on stderr.
fn program(megabytes: usize) -> Arc<Program> {
    let chunks: Vec<(bool, usize)> = (0..megabytes * 21)
        .map(|index| (index % 5 == 0, 48 * 1024 - index % 7))
        .collect();
    Program::new(&chunks)
}

/// The hashes of the whole output.
pub(super) fn hashes(program: &Program) -> [Vec<u8>; 2] {
    let mut hashes = [Sha256::new(), Sha256::new()];
    for placed in &program.history {
        let is_error = placed.piece.stream() == remoteprocess_proto::v1::Stream::Stderr;
        hashes[usize::from(is_error)].update(placed.piece.bytes());
    }
    hashes.map(|hash| hash.finalize().to_vec())
}

fn process() -> Option<ProcessKey> {
    Some(ProcessKey {
        uid: UID.to_owned(),
        ..ProcessKey::default()
    })
}

#[tokio::test]
async fn a_replica_that_is_not_the_home_serves_from_one_upstream() {
    let (home, other) = pair().await;
    let program = program(20);
    program.written.send_replace(100);
    let agent = FakeAgent::serve(&program).await;
    home.open(&agent);
    let mut readers: Vec<_> = Vec::new();
    for _ in 0..5 {
        let mut client = other.client().await;
        let mut got = Got::default();
        let mut stream = soon(got.follow(&mut client)).await.unwrap();
        soon(got.take(&mut stream, 1_000_000)).await.unwrap();
        readers.push((client, got, stream));
    }
    program.written.send_replace(program.history.len());
    for (_client, mut got, mut stream) in readers {
        let exit = soon(got.take(&mut stream, u64::MAX)).await.unwrap().unwrap();
        assert_eq!((exit.value, got.at), (7, program.end()));
        assert_eq!(got.hashes(), hashes(&program));
    }
    assert_eq!(program.streams.lock().unwrap().len(), 1, "one upstream for the agent");
}

#[tokio::test]
async fn what_was_not_archived_yet_is_read_live_and_the_state_is_the_homes() {
    let (home, other) = pair().await;
    let program = program(1);
    program.written.send_replace(3);
    let agent = FakeAgent::serve(&program).await;
    let live = home.open(&agent);
    let written = program.history[3].start;
    soon(async {
        while live.received() != written {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut client = other.client().await;
    let mut got = Got::default();
    let now = remoteprocess_proto::v1::WatchOutputRequest {
        follow: false,
        ..got.request()
    };
    let mut stream = soon(client.watch_output(now)).await.unwrap().into_inner();
    assert!(soon(got.take(&mut stream, u64::MAX)).await.unwrap().is_none());
    assert_eq!(got.at, written);
    let request = GetStateRequest {
        protocol: PROTOCOL,
        process: process(),
    };
    let state = soon(client.get_state(request)).await.unwrap().into_inner();
    assert_eq!(state.process.unwrap().output, Some(written));
}

#[tokio::test]
async fn signals_and_stops_reach_the_agent_through_any_replica_with_the_users_name() {
    let (home, other) = pair().await;
    let program = program(1);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    home.open(&agent);
    let mut client = other.client().await;
    let signal = SignalRequest {
        process: process(),
        request_id: "once".to_owned(),
        number: 10,
        ..SignalRequest::default()
    };
    soon(client.signal(signal)).await.unwrap();
    let stop = StopRequest {
        process: process(),
        message: "enough".to_owned(),
        ..StopRequest::default()
    };
    soon(client.stop(stop)).await.unwrap();
    let signals = program.signals.lock().unwrap().clone();
    assert_eq!((signals[0].request_id.as_str(), signals[0].number), ("once", 10));
    let stops = program.stops.lock().unwrap().clone();
    assert_eq!(
        (stops[0].requested_by.as_str(), stops[0].message.as_str()),
        ("alice", "enough")
    );
}

#[tokio::test]
async fn signals_and_stops_of_a_foreign_protocol_version_are_refused_on_the_wire() {
    let (home, other) = pair().await;
    let program = program(1);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    home.open(&agent);
    for replica in [&home, &other] {
        let mut client = replica.client().await;
        let protocol = PROTOCOL + 2;
        let signal = SignalRequest {
            protocol,
            process: process(),
            number: 10,
            ..SignalRequest::default()
        };
        let refused = soon(client.signal(signal)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        let stop = StopRequest {
            protocol,
            process: process(),
            ..StopRequest::default()
        };
        let refused = soon(client.stop(stop)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("version"), "{refused}");
    }
    assert!(program.signals.lock().unwrap().is_empty() && program.stops.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_code_tells_a_writer_whether_the_process_has_ended_or_may_still_start() {
    let (_home, other) = pair().await;
    for (phase, code) in [
        (remoteprocess_api::Phase::Failed, tonic::Code::OutOfRange),
        (remoteprocess_api::Phase::Running, tonic::Code::Unavailable),
    ] {
        other.change(|status| status.phase = Some(phase));
        let open = AttachOpen {
            protocol: PROTOCOL,
            process: process(),
            session: "mine".to_owned(),
            ..AttachOpen::default()
        };
        let request = Some(Asked::Open(open));
        let requests = futures::stream::iter(vec![AttachRequest { request }]);
        let refused = soon(other.client().await.attach(requests)).await;
        assert_eq!(refused.unwrap_err().code(), code, "{phase}");
    }
}

#[tokio::test]
async fn input_reaches_the_agent_through_any_replica_with_the_users_name() {
    let (home, other) = pair().await;
    let program = program(1);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let open = AttachOpen {
        protocol: PROTOCOL,
        process: process(),
        session: "mine".to_owned(),
        user: "another user".to_owned(),
        ..AttachOpen::default()
    };
    let say = |asked| AttachRequest { request: Some(asked) };
    home.open(&agent);
    for (index, replica) in [&other, &home].into_iter().enumerate() {
        let (requests, mut outgoing) = tokio::sync::mpsc::channel(8);
        let outgoing = futures::stream::poll_fn(move |cx| outgoing.poll_recv(cx));
        requests.send(say(Asked::Open(open.clone()))).await.unwrap();
        let bytes = vec![7; 1000].into();
        let offset = index as u64 * 1000;
        requests.send(say(Asked::Input(Input { offset, bytes }))).await.unwrap();
        requests
            .send(say(Asked::End(InputEnd { offset: offset + 1000 })))
            .await
            .unwrap();
        let mut answers = soon(replica.client().await.attach(outgoing))
            .await
            .unwrap()
            .into_inner();
        loop {
            let answer = soon(answers.message()).await.unwrap().unwrap();
            if answer.is_over {
                assert_eq!(answer.accepted, offset + 1000);
                break;
            }
        }
        // The agent's message about the end is passed on.
        requests.send(say(Asked::Resize(WindowSize::default()))).await.unwrap();
        let status = soon(answers.message()).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message().contains("bob")),
            (tonic::Code::Aborted, true)
        );
    }
    let writers = program.taken.writers.lock().unwrap().clone();
    assert_eq!(writers.len(), 2);
    assert!(
        writers
            .iter()
            .all(|open| open.user == "alice" && open.process.is_none())
    );
}

/// A session of user alice, on a connection of its own.
async fn run(
    replica: &Replica,
    open: ExecOpen,
) -> Result<(tokio::sync::mpsc::Sender<ExecRequest>, tonic::Streaming<ExecResponse>), tonic::Status> {
    let (requests, mut outgoing) = tokio::sync::mpsc::channel(8);
    let outgoing = futures::stream::poll_fn(move |cx| outgoing.poll_recv(cx));
    let request = Some(ExecAsked::Open(open));
    requests.send(ExecRequest { request }).await.unwrap();
    let answers = soon(replica.client().await.exec(outgoing)).await?.into_inner();
    Ok((requests, answers))
}

fn session() -> ExecOpen {
    ExecOpen {
        protocol: PROTOCOL,
        process: process(),
        session: "mine".to_owned(),
        command: vec!["sh".into(), "secret".into()],
        user: "another user".to_owned(),
        ..ExecOpen::default()
    }
}

#[tokio::test]
async fn a_session_reaches_the_agent_through_any_replica_with_the_users_name() {
    let (home, other) = pair().await;
    let program = program(1);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let early = run(&other, session()).await.err().unwrap();
    assert_eq!(
        early.code(),
        tonic::Code::Unavailable,
        "it was granted: its agent comes"
    );
    home.open(&agent);
    for replica in [&other, &home] {
        let (requests, mut answers) = run(replica, session()).await.unwrap();
        let say = |asked| ExecRequest { request: Some(asked) };
        let bytes = vec![7; 1000].into();
        requests
            .send(say(ExecAsked::Input(Input { offset: 0, bytes })))
            .await
            .unwrap();
        requests
            .send(say(ExecAsked::End(InputEnd { offset: 1000 })))
            .await
            .unwrap();
        let mut received = 0;
        let exit = loop {
            match soon(answers.message()).await.unwrap().unwrap().response.unwrap() {
                Said::Data(data) => received += data.bytes.len(),
                Said::Exit(exit) => break exit,
                Said::Input(_) => {}
            }
        };
        assert_eq!((received, exit.value), (1000, 9));
        // The agent's message about the end is passed on.
        requests
            .send(say(ExecAsked::Resize(WindowSize::default())))
            .await
            .unwrap();
        let lost = soon(answers.message()).await.unwrap_err();
        assert_eq!(
            (lost.code(), lost.message()),
            (tonic::Code::Aborted, "the session is lost")
        );
    }
    let execs = program.execs.lock().unwrap().clone();
    assert_eq!(execs.len(), 2);
    assert!(execs.iter().all(|open| open.user == "alice" && open.process.is_none()));
}

#[tokio::test]
async fn a_session_is_of_an_attempt_that_runs() {
    let (home, _other) = pair().await;
    let open = |attempt| ExecOpen { attempt, ..session() };
    let later = run(&home, open(2)).await.err().unwrap();
    assert_eq!(
        (later.code(), later.message().contains("no attempt 2")),
        (tonic::Code::NotFound, true)
    );
    home.change(|status| status.attempts[0].granted_at = None);
    let waiting = run(&home, open(1)).await.err().unwrap();
    assert_eq!(
        (waiting.code(), waiting.message()),
        (tonic::Code::FailedPrecondition, "the process has not started yet")
    );
    home.change(|status| status.attempts[0].exit = Some(remoteprocess_api::AttemptExit::default()));
    for attempt in [0, 1] {
        let ended = run(&home, open(attempt)).await.err().unwrap();
        assert_eq!(
            (ended.code(), ended.message()),
            (tonic::Code::FailedPrecondition, "attempt 1 of the process has ended")
        );
    }
}

#[tokio::test]
async fn a_user_who_may_not_exec_is_told_the_missing_rule() {
    let (home, _other) = pair().await;
    home.deny("exec");
    let process = Some(ProcessKey {
        namespace: "default".to_owned(),
        name: "hello".to_owned(),
        ..ProcessKey::default()
    });
    let open = ExecOpen { process, ..session() };
    let refused = run(&home, open).await.err().unwrap();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert!(
        refused.message().contains("resources: [remoteprocesses/exec]"),
        "{}",
        refused.message()
    );
}

/// Clients that only send, and take no answer. What they send once went to the program for as long as they liked.
#[tokio::test]
async fn a_right_that_is_withdrawn_ends_input_and_commands_of_a_client_that_takes_nothing() {
    let (home, other) = pair().await;
    let program = program(1);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    home.open(&agent);
    for (index, replica) in [&other, &home].into_iter().enumerate() {
        replica.deny("nothing");
        let (exec, answers) = run(replica, session()).await.unwrap();
        let (attach, mut outgoing) = tokio::sync::mpsc::channel(8);
        let outgoing = futures::stream::poll_fn(move |cx| outgoing.poll_recv(cx));
        let open = AttachOpen {
            protocol: PROTOCOL,
            process: process(),
            session: "mine".to_owned(),
            ..AttachOpen::default()
        };
        let request = Some(Asked::Open(open));
        attach.send(AttachRequest { request }).await.unwrap();
        let accepted = soon(replica.client().await.attach(outgoing))
            .await
            .unwrap()
            .into_inner();
        let sending = async {
            while exec.send(input()).await.is_ok() {
                tokio::task::yield_now().await;
            }
            attach.closed().await;
        };
        let denying = async {
            replica.deny("exec");
            soon(async {
                while *program.hang_ups.lock().unwrap() <= index {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
            .await;
            replica.deny("attach");
        };
        soon(async { tokio::join!(sending, denying) }).await;
        let last = program.execs.lock().unwrap().last().cloned().unwrap();
        assert_eq!(
            (last.resume, last.session.as_str(), last.user.as_str()),
            (true, "mine", "alice")
        );
        assert_eq!(last_word(accepted).await, tonic::Code::PermissionDenied);
        drop(answers);
    }
}

fn input() -> ExecRequest {
    let bytes = vec![7; 1000].into();
    let request = Some(ExecAsked::Input(Input { offset: 0, bytes }));
    ExecRequest { request }
}

async fn last_word<T>(mut answers: tonic::Streaming<T>) -> tonic::Code {
    loop {
        match soon(answers.message()).await {
            Ok(answer) => assert!(answer.is_some(), "ended without a word"),
            Err(status) => return status.code(),
        }
    }
}

/// The home dies in mid-stream; `to_other` says whether the follower's own replica becomes the next home, or a third
/// one.
#[rstest::rstest]
#[case::here(true)]
#[case::elsewhere(false)]
#[tokio::test]
async fn a_home_that_dies_is_followed_by_the_next_without_loss_or_repeat(#[case] to_other: bool) {
    let (home, other) = pair().await;
    let third = Replica::start(&other.archive).await;
    other.peers.lock().unwrap().push(third.address);
    let program = program(30);
    program.written.send_replace(400);
    let agent = FakeAgent::serve(&program).await;
    home.open(&agent);
    let (mut client, mut got) = (other.client().await, Got::default());
    let mut stream = soon(got.follow(&mut client)).await.unwrap();
    let (mut direct, mut lost) = (home.client().await, Got::default());
    let mut broken = soon(lost.follow(&mut direct)).await.unwrap();
    soon(lost.take(&mut broken, 15_000_000)).await.unwrap();
    soon(got.take(&mut stream, 15_000_000)).await.unwrap();
    drop(home);
    let next = if to_other { &other } else { &third };
    next.open(&agent);
    program.written.send_replace(program.history.len());
    let exit = soon(got.take(&mut stream, u64::MAX)).await.unwrap().unwrap();
    assert!(exit.sealed);
    assert_eq!(got.hashes(), hashes(&program));

    // A client of the dead replica continues at another one with what it has.
    let cut = soon(lost.take(&mut broken, u64::MAX)).await;
    assert!(cut.is_err(), "{cut:?}");
    let mut elsewhere = other.client().await;
    let mut stream = soon(lost.follow(&mut elsewhere)).await.unwrap();
    assert!(soon(lost.take(&mut stream, u64::MAX)).await.unwrap().is_some());
    assert_eq!(lost.hashes(), hashes(&program));
}

#[tokio::test]
async fn where_the_home_cannot_be_reached_the_archive_is_followed() {
    let (home, other) = pair().await;
    other.peers.lock().unwrap().clear();
    let program = program(9);
    let agent = FakeAgent::serve(&program).await;
    home.open(&agent);
    let (mut client, mut got) = (other.client().await, Got::default());
    let mut stream = soon(got.follow(&mut client)).await.unwrap();
    assert!(soon(got.take(&mut stream, u64::MAX)).await.unwrap().unwrap().sealed);
    assert_eq!(got.hashes(), hashes(&program));
}
