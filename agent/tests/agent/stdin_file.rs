//! A program whose input is a file in its pod: it reads every byte, also if the agent is killed.

use std::fs;

use remoteprocess_proto::v1::Reason;
use remoteprocess_proto::v1::exit::Outcome;
use rustix::process::Signal;
use sha2::{Digest, Sha256};

use super::pod::{Options, Pod, launch_with};
use super::relay::TestRelay;
use super::{in_time, until};

fn options() -> Options {
    launch_with(|launch| launch.stdin_from_file = true)
}

/// Every misplaced byte is visible, and each value occurs.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31) ^ (at >> 8)) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_gets_every_byte_and_then_the_end() {
    for length in [0, 1, 900 << 10] {
        let mut relay = TestRelay::start().await;
        let mut pod = Pod::start(&relay, &options());
        let content = bytes(length);
        fs::write(pod.path("stdin"), &content).unwrap();
        pod.launch(&["cat"]);
        let archive = in_time("the end", relay.be_home(|_| {})).await;
        assert_eq!((archive.exit().outcome(), archive.exit().value), (Outcome::Code, 0));
        assert_eq!(archive.cursor.stdout, length as u64);
        assert_eq!(archive.hashes[0].clone().finalize(), Sha256::digest(&content));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_in_between_changes_nothing() {
    let mut relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        ..options()
    };
    let mut pod = Pod::start(&relay, &options);
    let content = bytes(900 << 10);
    fs::write(pod.path("stdin"), &content).unwrap();
    let (ready, go) = (pod.path("ready"), pod.path("go"));
    pod.shell(&format!(
        "head -c 100000; touch {}; until test -e {}; do sleep 0.05; done; cat",
        ready.display(),
        go.display()
    ));
    until("the program runs", || ready.exists()).await;
    let before = pod.agent_pid();
    pod.signal_agent(Signal::KILL);
    until("another agent", || {
        pod.agent_pid().is_some_and(|pid| Some(pid) != before)
    })
    .await;
    fs::write(&go, "").unwrap();
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.cursor.stdout, content.len() as u64);
    assert_eq!(archive.hashes[0].clone().finalize(), Sha256::digest(&content));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_missing_is_named_in_the_exit() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options());
    pod.launch(&["cat"]);
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    let exit = archive.exit();
    assert_eq!((exit.value, exit.reason()), (126, Reason::CommandNotExecutable));
    assert!(
        exit.message.contains("spec.stdinFrom") && exit.message.contains("No such file"),
        "{}",
        exit.message
    );
    assert!(exit.sealed);
    assert_eq!(archive.total(), 0);
    assert_eq!(pod.entrypoint_ends().await.code(), Some(126));
}
