//! The agent dies, and nothing is lost.

use std::fs;
use std::path::Path;
use std::time::Duration;

use remoteprocess_entrypoint::message::{FromEntrypoint, PROTOCOL_VERSION, Resume, Secret, ToEntrypoint};
use remoteprocess_entrypoint::socket::Connection;
use remoteprocess_proto::timing::to_wire;
use remoteprocess_proto::v1::Reason;
use remoteprocess_proto::v1::exit::{Outcome, Source};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

use super::pod::{Options, Pod, launch_with};
use super::relay::TestRelay;
use super::{in_time, until};

/// Bytes without a pattern that a shifted copy would match.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_megabytes_arrive_whole_though_the_agent_is_killed_five_times() {
    const STDOUT: usize = 180_000_000;
    const STDERR: usize = 20_000_000;
    let mut relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        spool_size: 8 << 20,
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    let (out, err) = (noise(STDOUT, 1), noise(STDERR, 2));
    fs::write(pod.path("out"), &out).unwrap();
    fs::write(pod.path("err"), &err).unwrap();
    let (out_path, err_path) = (pod.path("out"), pod.path("err"));
    pod.shell(&format!(
        "cat {} >&2 & cat {}; wait; exit 3",
        err_path.display(),
        out_path.display()
    ));
    let mut killed = Vec::new();
    let mut next_kill = 20_000_000;
    let home = relay.be_home(|total| {
        if total >= next_kill && killed.len() < 5 {
            next_kill += 35_000_000;
            killed.push(pod.agent_pid());
            pod.signal_agent(Signal::KILL);
        }
    });
    let archive = tokio::time::timeout(Duration::from_secs(180), home).await.unwrap();
    killed.dedup();
    assert_eq!(killed.len(), 5, "five different agents died");
    assert!(archive.breaks >= 5);
    assert_eq!(
        (archive.cursor.stdout, archive.cursor.stderr),
        (STDOUT as u64, STDERR as u64)
    );
    let exit = archive.exit.clone().unwrap();
    assert_eq!((exit.outcome(), exit.value, exit.sealed), (Outcome::Code, 3, true));
    let [stdout, stderr] = archive.hashes.map(Sha256::finalize);
    assert_eq!(stdout, Sha256::digest(&out));
    assert_eq!(stderr, Sha256::digest(&err));
    let seal = exit.seal.unwrap();
    assert_eq!(seal.stdout.unwrap().sha256[..], stdout[..]);
    assert_eq!(seal.stderr.unwrap().sha256[..], stderr[..]);
    assert_eq!(
        pod.agent_ends().await.code(),
        Some(0),
        "the supervisor leaves with the agent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_reported_to_an_agent_that_died_is_known_to_the_next() {
    let mut relay = TestRelay::start().await;
    let options = Options::default();
    let mut pod = Pod::start(&relay, &options);
    pod.shell("echo before; exit 9");
    relay.next_start().await;
    assert_eq!(pod.entrypoint_ends().await.code(), Some(9));
    // The entrypoint has left, so the exit is stored. The agent dies before a home has seen it.
    pod.signal_agent(Signal::KILL);
    pod.agent_ends().await;
    pod.restart_agent(&relay, &options);
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "before\n");
    assert_eq!((archive.exit().value, archive.exit().sealed), (9, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_was_launched_is_not_launched_again() {
    let mut relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    let (ran, go) = (pod.path("ran"), pod.path("go"));
    pod.shell(&format!(
        "echo ran >> {}; while ! test -e {}; do sleep 0.05; done; echo end",
        ran.display(),
        go.display()
    ));
    until("the program runs", || ran.exists()).await;
    for _ in 0..3 {
        let before = pod.agent_pid();
        pod.signal_agent(Signal::KILL);
        until("another agent", || {
            pod.agent_pid().is_some_and(|pid| Some(pid) != before)
        })
        .await;
    }
    // A stranger's hello after the launch must not launch a second time either.
    let socket = pod.path("handover/socket");
    until("the last agent listens", || Connection::connect(&socket).is_ok()).await;
    tokio::task::spawn_blocking(move || be_refused(&socket)).await.unwrap();
    fs::write(&go, "").unwrap();
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "end\n");
    assert_eq!(fs::read_to_string(&ran).unwrap(), "ran\n");
}

fn be_refused(socket: &Path) {
    for resume in [
        None,
        Some(Resume {
            secret: Secret([7; 32]),
            launched: false,
        }),
    ] {
        let hello = FromEntrypoint::Hello {
            version: PROTOCOL_VERSION,
            pid: 1,
            resume,
        };
        let stranger = Connection::connect(socket).unwrap();
        stranger.send(&hello, &[]).unwrap();
        assert!(stranger.receive::<ToEntrypoint>().unwrap().is_none(), "hung up on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entrypoint_that_is_killed_leaves_its_output_and_an_unknown_end() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    pod.shell("echo all of it; exec sleep 600");
    let program = async {
        let mut child = None;
        until("the program", || {
            let entrypoint = pod.entrypoint.as_ref().unwrap().id();
            let path = format!("/proc/{entrypoint}/task/{entrypoint}/children");
            let children = fs::read_to_string(path).unwrap_or_default();
            child = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
            let written = fs::metadata(pod.path("spool/stdout")).map_or(0, |file| file.len());
            child.is_some() && written > 0
        })
        .await;
        Pid::from_raw(child.unwrap()).unwrap()
    }
    .await;
    // As when the kernel ends the whole container: the entrypoint, and with it everything inside.
    pod.entrypoint.as_mut().unwrap().kill().unwrap();
    kill_process(program, Signal::KILL).unwrap();
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "all of it\n");
    let exit = archive.exit();
    assert_eq!((exit.outcome(), exit.source()), (Outcome::Unknown, Source::None));
    assert!(exit.sealed, "the pipes were read to their end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_agent_delays_no_other_and_catches_up() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    let running = pod.path("running");
    pod.shell(&format!("touch {}; sleep 0.5; echo unseen; exit 4", running.display()));
    until("the program runs", || running.exists()).await;
    pod.signal_agent(Signal::STOP);
    let begun = std::time::Instant::now();
    assert_eq!(pod.entrypoint_ends().await.code(), Some(4));
    assert!(begun.elapsed() < Duration::from_millis(3500), "{:?}", begun.elapsed());
    pod.signal_agent(Signal::CONT);
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "unseen\n");
    assert_eq!((archive.exit().value, archive.exit().sealed), (4, true));
}

/// Killed before the entrypoint came back to it: the agent that follows has only the spool to tell it.
#[tokio::test(flavor = "multi_thread")]
async fn the_settings_of_the_launch_survive_the_agent() {
    let mut relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        ..launch_with(|launch| {
            launch.merge = true;
            launch.stop_signal = 10;
            launch.run_deadline = to_wire(Duration::from_secs(3));
        })
    };
    let mut pod = Pod::start(&relay, &options);
    let ready = pod.path("ready");
    let script = "trap 'echo usr1; exit 6' USR1; echo out; echo err >&2; touch $0; while :; do sleep 0.02; done";
    pod.launch(&["sh", "-c", script, ready.to_str().unwrap()]);
    until("the program runs", || ready.exists()).await;
    *relay.settings.lock().unwrap() = None;
    pod.signal_agent(Signal::KILL);
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    // In between, the shell may say that the signal ended its `sleep`.
    let text = archive.head(0);
    assert!(text.starts_with("out\nerr\n") && text.ends_with("usr1\n"), "{text:?}");
    let exit = archive.exit();
    assert_eq!((exit.value, exit.reason()), (6, Reason::DeadlineExceeded));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_without_settings_launches_nothing() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    let settings = relay.settings.lock().unwrap().take();
    let ran = pod.path("ran");
    pod.shell(&format!("touch {}", ran.display()));
    for _ in 0..2 {
        let start = relay.next_start().await;
        assert!(!start.launched);
        assert!(!ran.exists());
    }
    *relay.settings.lock().unwrap() = settings;
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.exit().value, 0);
    assert!(ran.exists());
}
