//! Secrets in the output: masked in the stream, the echo and the hash, also after kills; refused if they cannot be
//! masked.

use std::io::Read;

use rustix::process::Signal;
use sha2::{Digest, Sha256};

use remoteprocess_proto::v1::launch_settings::Echo;

use super::in_time;
use super::pod::{Options, Pod, launch_with};
use super::relay::TestRelay;

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_masked_everywhere() {
    let options = Options {
        mask: vec!["hunter2\n", "s3cr3t"],
        ..launch_with(|launch| launch.set_echo(Echo::All))
    };
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options);
    pod.shell("printf 'pass hun'; sleep 0.2; printf 'ter2, '; echo s3cr3t >&2; printf 'hunt'");
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(
        (archive.head(0), archive.head(1)),
        ("pass ***, hunt".to_owned(), "***\n".to_owned())
    );
    let seal = archive.exit().seal.clone().unwrap();
    assert_eq!(seal.stdout.unwrap().sha256[..], Sha256::digest(b"pass ***, hunt")[..]);
    assert!(archive.exit().sealed);
    pod.entrypoint_ends().await;
    let mut log = String::new();
    let entrypoint = pod.entrypoint.as_mut().unwrap();
    entrypoint.stdout.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(log, "pass ***, hunt");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_neither_lose_nor_reveal_anything() {
    let options = Options {
        supervised: true,
        spool_size: 4 << 20,
        mask: vec!["number 7"],
        ..Options::default()
    };
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options);
    pod.shell("seq -f 'a line with number %.0f' 1 600000");
    let mut next_kill = 1_000_000;
    let home = relay.be_home(|total| {
        if total >= next_kill {
            next_kill += 3_000_000;
            pod.signal_agent(Signal::KILL);
        }
    });
    let archive = in_time("the end", home).await;
    assert!(archive.breaks > 2);
    let lines = (1..=600_000).map(|number| format!("a line with number {number}\n"));
    let expected: String = lines.map(|line| line.replace("number 7", "***")).collect();
    let [stdout, _] = archive.hashes.clone().map(Sha256::finalize);
    assert_eq!(archive.cursor.stdout, expected.len() as u64);
    assert_eq!(stdout, Sha256::digest(&expected));
    let seal = archive.exit().seal.clone().unwrap().stdout.unwrap();
    assert_eq!(seal.sha256[..], stdout[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_value_is_refused_before_anything_runs() {
    let options = Options {
        supervised: true,
        mask: vec!["fine", "\n"],
        ..Options::default()
    };
    let relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options);
    let mut said = pod.agent.stderr.take().unwrap();
    assert_eq!(pod.agent_ends().await.code(), Some(1), "the supervisor gives up");
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    assert!(text.contains("mask[1]: the value is empty"), "{text}");
    assert!(!pod.path("handover/socket").exists(), "no entrypoint could come");
}
