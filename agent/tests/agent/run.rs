//! How long a program runs: deadline and warning, pause and resume, leftovers. With agents that die.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use remoteprocess_proto::timing::to_wire;
use remoteprocess_proto::v1::Reason;
use remoteprocess_proto::v1::executor_get_state_response::Phase;
use remoteprocess_proto::v1::exit::{Outcome, Source};
use remoteprocess_proto::v1::launch_settings::{Leftovers, Warning};
use remoteprocess_proto::v1::{
    ExecutorPauseRequest, ExecutorSetDeadlineRequest, ExecutorSignalRequest, ExecutorStopRequest, Exit, SignalTarget,
};
use rustix::process::Signal;
use tonic::Code;

use super::pod::{Options, Pod, launch_with};
use super::relay::TestRelay;
use super::verbs::{Agent, get_state};
use super::{in_time, until};

const OBEYS: &str = "trap 'echo bye; exit 5' TERM; trap 'echo warned' USR1; touch $0; while :; do sleep 0.02; done";

fn launch(pod: &mut Pod) -> std::path::PathBuf {
    let ready = pod.path("ready");
    pod.launch(&["sh", "-c", OBEYS, ready.to_str().unwrap()]);
    ready
}

/// How long the program ran, according to its exit record.
fn lived(exit: &Exit) -> Duration {
    Duration::from_nanos((exit.finished_unix_nanos - exit.started_unix_nanos).try_into().unwrap())
}

fn pause(id: &str, paused: bool) -> ExecutorPauseRequest {
    ExecutorPauseRequest {
        request_id: id.into(),
        paused,
    }
}

async fn phase(agent: &mut Agent) -> Phase {
    agent.get_state(get_state()).await.unwrap().into_inner().phase()
}

/// The program has set its traps, and the agent has heard that it runs.
async fn runs(ready: &Path, agent: &mut Agent) {
    until("it is ready", || ready.exists()).await;
    let mut look = tokio::time::interval(Duration::from_millis(5));
    in_time("it runs", async {
        while phase(agent).await != Phase::Running {
            look.tick().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_warned_and_then_stopped_at_its_deadline() {
    let mut relay = TestRelay::start().await;
    let options = launch_with(|launch| {
        launch.run_deadline = to_wire(Duration::from_secs(3));
        launch.warning = Some(Warning {
            before: to_wire(Duration::from_secs(2)),
            signal: Some(10),
        });
    });
    let mut pod = Pod::start(&relay, &options);
    launch(&mut pod);
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "warned\nbye\n");
    let told = &archive.reasons;
    assert!(
        told.ends_with(&[Reason::Running, Reason::DeadlineNear, Reason::Stopping]),
        "{told:?}"
    );
    let exit = archive.exit();
    assert_eq!(
        (exit.outcome(), exit.value, exit.reason()),
        (Outcome::Code, 5, Reason::DeadlineExceeded)
    );
    let stop = exit.stop.clone().unwrap();
    assert_eq!(
        (stop.requested_by.as_str(), stop.message.as_str()),
        ("deadline", "it may run for no longer than 3 s")
    );
    let lived = lived(exit);
    assert!(
        lived >= Duration::from_secs(3) && lived < Duration::from_millis(3500),
        "{lived:?}"
    );
}

/// The operator is told in any case, the program if it has a signal for that.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_signal_only_the_operator_is_warned() {
    let mut relay = TestRelay::start().await;
    let options = launch_with(|launch| {
        launch.run_deadline = to_wire(Duration::from_secs(2));
        launch.warning = Some(Warning {
            before: to_wire(Duration::from_secs(1)),
            signal: None,
        });
    });
    let mut pod = Pod::start(&relay, &options);
    launch(&mut pod);
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "bye\n");
    assert!(archive.reasons.contains(&Reason::DeadlineNear), "{:?}", archive.reasons);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_survives_the_agent_and_can_be_extended_and_shortened() {
    let mut relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        ..launch_with(|launch| launch.run_deadline = to_wire(Duration::from_secs(600)))
    };
    let mut pod = Pod::start(&relay, &options);
    let ready = launch(&mut pod);
    let address = relay.next_start().await.address;
    let mut agent = relay.dial(&address).await;
    let set = |seconds: Option<u64>| ExecutorSetDeadlineRequest {
        run_deadline: seconds.and_then(|seconds| to_wire(Duration::from_secs(seconds))),
    };
    runs(&ready, &mut agent).await;
    assert_eq!(
        agent.set_deadline(set(Some(0))).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    agent.set_deadline(set(None)).await.unwrap();
    agent.set_deadline(set(Some(4))).await.unwrap();
    pod.signal_agent(Signal::KILL);
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    let exit = archive.exit();
    assert_eq!(exit.reason(), Reason::DeadlineExceeded);
    assert_eq!(exit.stop.as_ref().unwrap().requested_by, "deadline");
    let lived = lived(exit);
    assert!(
        lived >= Duration::from_secs(4) && lived < Duration::from_secs(5),
        "{lived:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_survives_the_agent_and_ends_with_a_resume() {
    let mut relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    let ready = launch(&mut pod);
    let address = relay.next_start().await.address;
    let mut agent = relay.dial(&address).await;
    runs(&ready, &mut agent).await;
    let nameless = agent.pause(pause("", true)).await.unwrap_err();
    assert_eq!(nameless.code(), Code::InvalidArgument);
    agent.pause(pause("one", true)).await.unwrap();
    agent.pause(pause("one", true)).await.unwrap();
    assert_eq!(phase(&mut agent).await, Phase::Paused);
    let refused = agent.signal(ExecutorSignalRequest {
        request_id: "cont".into(),
        number: 18,
        target: SignalTarget::All.into(),
    });
    assert_eq!(refused.await.unwrap_err().code(), Code::FailedPrecondition);
    let before = pod.agent_pid().unwrap();
    pod.signal_agent(Signal::KILL);
    until("another agent", || pod.agent_pid().is_some_and(|pid| pid != before)).await;
    let address = relay.next_start().await.address;
    let mut agent = relay.dial(&address).await;
    assert_eq!(phase(&mut agent).await, Phase::Paused);
    // Its memory is new; the entrypoint's is not. The entrypoint may not have returned yet.
    let mut look = tokio::time::interval(Duration::from_millis(20));
    in_time("the entrypoint", async {
        while let Err(status) = agent.pause(pause("one", true)).await {
            assert_eq!(status.code(), Code::Unavailable);
            look.tick().await;
        }
    })
    .await;
    agent.pause(pause("two", false)).await.unwrap();
    assert_eq!(phase(&mut agent).await, Phase::Running);
    agent
        .stop(ExecutorStopRequest {
            grace_seconds: Some(5),
            ..ExecutorStopRequest::default()
        })
        .await
        .unwrap();
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(
        (archive.head(0).as_str(), archive.exit().reason()),
        ("bye\n", Reason::Stopped)
    );
    let over = in_time("an answer", agent.pause(pause("three", true))).await;
    assert!(over.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_sent_once_though_the_agent_died_in_between() {
    let mut relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    let ready = launch(&mut pod);
    let mut address = relay.next_start().await.address;
    runs(&ready, &mut relay.dial(&address).await).await;
    let usr1 = |id: &str| ExecutorSignalRequest {
        request_id: id.into(),
        number: 10,
        target: SignalTarget::Main.into(),
    };
    for _ in 0..3 {
        let mut agent = relay.dial(&address).await;
        let mut look = tokio::time::interval(Duration::from_millis(10));
        // The entrypoint may still be reconnecting to the new agent.
        while let Err(status) = agent.signal(usr1("same")).await {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            look.tick().await;
        }
        let before = pod.agent_pid().unwrap();
        pod.signal_agent(Signal::KILL);
        until("another agent", || pod.agent_pid().is_some_and(|pid| pid != before)).await;
        address = relay.next_start().await.address;
    }
    let mut agent = relay.dial(&address).await;
    let stop = ExecutorStopRequest::default();
    agent.stop(stop).await.unwrap();
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "warned\nbye\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_leaves_behind_is_waited_for_if_so_told() {
    let mut relay = TestRelay::start().await;
    let options = launch_with(|launch| launch.set_leftovers(Leftovers::Wait));
    let mut pod = Pod::start(&relay, &options);
    pod.shell("(setsid sh -c 'sleep 2.5; echo late' &); echo soon; exit 3");
    let start = Instant::now();
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert!(start.elapsed() >= Duration::from_millis(2500));
    assert_eq!(archive.head(0), "soon\nlate\n");
    let exit = archive.exit();
    assert_eq!((exit.value, exit.leftovers, exit.sealed), (3, 0, true));
}

/// A regression: the program ran for a moment, because the stop was recorded and sent after the launch.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_before_the_launch_means_that_nothing_ever_runs() {
    let mut relay = TestRelay::start().await;
    relay.grants.store(false, Ordering::Relaxed);
    let mut pod = Pod::start(&relay, &Options::default());
    let ran = pod.path("ran");
    pod.shell(&format!("touch {}", ran.display()));
    let address = relay.next_start().await.address;
    let mut agent = relay.dial(&address).await;
    agent
        .stop(ExecutorStopRequest {
            requested_by: "alice".into(),
            ..ExecutorStopRequest::default()
        })
        .await
        .unwrap();
    relay.grants.store(true, Ordering::Relaxed);
    assert_eq!(pod.entrypoint_ends().await.code(), Some(143));
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    let exit = archive.exit();
    assert_eq!(
        (exit.outcome(), exit.source(), exit.reason()),
        (Outcome::Unknown, Source::None, Reason::Stopped)
    );
    assert_eq!(exit.stop.as_ref().unwrap().requested_by, "alice");
    assert!(exit.sealed && archive.total() == 0);
    assert_eq!(pod.agent_ends().await.code(), Some(0));
    assert!(!ran.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_tells_since_when_agent_and_entrypoint_are_there() {
    let mut relay = TestRelay::start().await;
    relay.grants.store(false, Ordering::Relaxed);
    let mut pod = Pod::start(&relay, &Options::default());
    pod.shell("true");
    let first = relay.next_start().await;
    assert!(first.agent_started_unix_nanos > 0, "{first:?}");
    assert!(
        first.entrypoint_connected_unix_nanos >= first.agent_started_unix_nanos,
        "{first:?}"
    );
    // A start that is refused is requested again; the times stay.
    let again = relay.next_start().await;
    assert_eq!(again, first);
}
