//! The executor's methods, who may call them, and how one home follows another.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::Reason;
use remoteprocess_proto::v1::executor_client::ExecutorClient;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{
    AttachRequest, CommitRequest, Cursor, ExecRequest, ExecutorGetStateRequest, ExecutorPauseRequest,
    ExecutorSetDeadlineRequest, ExecutorSignalRequest, ExecutorStopRequest, ExecutorWatchOutputRequest, SignalTarget,
};
use remoteprocess_tls::Role;
use tonic::Code;
use tonic::transport::Channel;

use super::pod::{Options, Pod};
use super::relay::{TestRelay, agent_role};
use super::{in_time, until};

pub(crate) type Agent = ExecutorClient<Channel>;

pub(crate) const fn get_state() -> ExecutorGetStateRequest {
    ExecutorGetStateRequest { protocol: PROTOCOL }
}

fn watch(cursor: Cursor, home: bool) -> ExecutorWatchOutputRequest {
    ExecutorWatchOutputRequest {
        protocol: PROTOCOL,
        cursor: Some(cursor),
        home,
    }
}

fn stop(signal: Option<i32>) -> ExecutorStopRequest {
    ExecutorStopRequest {
        signal,
        grace_seconds: Some(5),
        requested_by: "alice".into(),
        message: "enough".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_operator_may_call() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    pod.shell("sleep 600");
    let address = relay.next_start().await.address;
    for role in [Role::User, agent_role()] {
        let Ok(mut agent) = relay.dial_as(&address, &role).await else {
            continue;
        };
        let denied = [
            agent.get_state(get_state()).await.map(drop),
            agent.watch_output(watch(Cursor::default(), true)).await.map(drop),
            agent.signal(ExecutorSignalRequest::default()).await.map(drop),
            agent.stop(stop(None)).await.map(drop),
            agent.pause(ExecutorPauseRequest::default()).await.map(drop),
            agent
                .set_deadline(ExecutorSetDeadlineRequest::default())
                .await
                .map(drop),
            agent.commit(CommitRequest::default()).await.map(drop),
            agent.attach(futures::stream::empty::<AttachRequest>()).await.map(drop),
            agent.exec(futures::stream::empty::<ExecRequest>()).await.map(drop),
        ];
        for (method, result) in denied.into_iter().enumerate() {
            assert!(result.is_err(), "{role} method {method}");
        }
    }
    let operator = relay.dial(&address).await.get_state(get_state()).await;
    operator.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_program_and_names_the_requester() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    let running = pod.path("running");
    pod.shell(&format!("touch {}; exec sleep 600", running.display()));
    let address = relay.next_start().await.address;
    let mut agent = relay.dial(&address).await;
    until("the program runs", || running.exists()).await;
    let refused = agent.stop(stop(Some(99))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    agent.stop(stop(None)).await.unwrap();
    agent.stop(stop(None)).await.unwrap();
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    let exit = archive.exit();
    assert_eq!(
        (exit.outcome(), exit.value, exit.reason()),
        (Outcome::Signal, 15, Reason::Stopped)
    );
    assert_eq!(exit.stop.as_ref().unwrap().requested_by, "alice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_sent_once_for_each_request() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    let ready = pod.path("ready");
    pod.shell(&format!(
        "trap 'echo usr1' USR1; touch {}; while true; do sleep 0.05; done",
        ready.display()
    ));
    let address = relay.next_start().await.address;
    let mut agent = relay.dial(&address).await;
    until("the trap is set", || ready.exists()).await;
    let request = |id: &str| ExecutorSignalRequest {
        request_id: id.into(),
        number: 10,
        target: SignalTarget::Main.into(),
    };
    for id in ["a", "a", "a"] {
        agent.signal(request(id)).await.unwrap();
    }
    let written = async |agent: &mut Agent| {
        let state = agent.get_state(get_state()).await.unwrap().into_inner();
        state.written.unwrap().stdout
    };
    let mut look = tokio::time::interval(Duration::from_millis(10));
    while written(&mut agent).await < 5 {
        look.tick().await;
    }
    agent.signal(request("b")).await.unwrap();
    while written(&mut agent).await < 10 {
        look.tick().await;
    }
    agent.stop(stop(Some(9))).await.unwrap();
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "usr1\nusr1\n");
    assert_eq!(archive.exit().value, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_live_and_a_later_home_ends_an_earlier_one() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    let go = pod.path("go");
    pod.shell(&format!(
        "printf one; while ! test -e {}; do sleep 0.02; done; printf two",
        go.display()
    ));
    let address = relay.next_start().await.address;
    let mut agent = relay.dial(&address).await;
    let mut first = agent
        .watch_output(watch(Cursor::default(), true))
        .await
        .unwrap()
        .into_inner();
    let data = in_time("the first bytes", async {
        loop {
            if let Some(Frame::Data(data)) = first.next().await.unwrap().unwrap().frame {
                return data;
            }
        }
    })
    .await;
    assert_eq!(&data.bytes[..], b"one");
    let mut later = relay.dial(&address).await;
    let cursor = Cursor { stdout: 3, stderr: 0 };
    let mut second = later.watch_output(watch(cursor, true)).await.unwrap().into_inner();
    let ended = in_time("the end of the first", async {
        loop {
            match first.next().await.unwrap() {
                Ok(_) => {}
                Err(status) => return status,
            }
        }
    })
    .await;
    assert_eq!(ended.code(), Code::Aborted);
    std::fs::write(&go, "").unwrap();
    let mut rest = Vec::new();
    let exit = in_time("the rest", async {
        loop {
            match second.next().await.unwrap().unwrap().frame {
                Some(Frame::Data(data)) => rest.extend_from_slice(&data.bytes),
                Some(Frame::Exit(exit)) => return exit,
                _ => {}
            }
        }
    })
    .await;
    assert_eq!((rest.as_slice(), exit.value), (&b"two"[..], 0));
    assert!(second.next().await.is_none());
    let beyond = later.watch_output(watch(Cursor { stdout: 99, stderr: 0 }, false)).await;
    assert_eq!(beyond.unwrap_err().code(), Code::OutOfRange);
    let mut foreign = watch(Cursor::default(), false);
    foreign.protocol = PROTOCOL + 2;
    let refused = later.watch_output(foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let protocol = PROTOCOL + 2;
    let refused = later.get_state(ExecutorGetStateRequest { protocol }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grant_nothing_runs_and_without_a_home_another_is_asked_for() {
    let mut relay = TestRelay::start().await;
    relay.grants.store(false, Ordering::Relaxed);
    let mut pod = Pod::start(&relay, &Options::default());
    let ran = pod.path("ran");
    pod.shell(&format!("touch {}; sleep 600", ran.display()));
    assert!(!relay.next_start().await.launched);
    assert!(!relay.next_start().await.launched);
    assert!(!ran.exists());
    relay.grants.store(true, Ordering::Relaxed);
    until("the program runs", || ran.exists()).await;
    let again = in_time("a start for a home", async {
        loop {
            let start = relay.next_start().await;
            if start.launched {
                return start;
            }
        }
    })
    .await;
    assert_eq!((again.process_uid.as_str(), again.attempt), ("u-1", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_during_a_stream() {
    let mut relay = TestRelay::start().await;
    // Renewed after three fifths of its life.
    relay.leaf_lifetime_seconds.store(10, Ordering::Relaxed);
    let mut pod = Pod::start(&relay, &Options::default());
    let go = pod.path("go");
    pod.shell(&format!(
        "while ! test -e {}; do sleep 0.02; done; echo end",
        go.display()
    ));
    let enrollments = std::sync::Arc::clone(&relay.enrollments);
    let home = tokio::spawn(async move { relay.be_home(|_| {}).await });
    until("a second enrollment", || enrollments.load(Ordering::Relaxed) >= 2).await;
    std::fs::write(&go, "").unwrap();
    let archive = in_time("the end", home).await.unwrap();
    assert_eq!((archive.head(0).as_str(), archive.breaks), ("end\n", 0));
}
