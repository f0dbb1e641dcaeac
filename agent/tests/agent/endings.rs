//! Ordinary runs: output, exit, echo, the agent's own end.

use std::io::Read;
use std::time::Duration;

use remoteprocess_proto::v1::Reason;
use remoteprocess_proto::v1::exit::{Outcome, Source};
use remoteprocess_proto::v1::launch_settings::Echo;
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::pod::{Options, Pod, launch_with};
use super::relay::{Archive, TestRelay};
use super::{in_time, until};

/// The agent of a pod that is deleted waits 10 s for a relay.
const LONGER_THAN_UNREACHABLE: Duration = Duration::from_secs(12);

async fn run(script: &str, options: &Options) -> (Archive, Pod) {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, options);
    pod.shell(script);
    let archive = in_time("the end of the process", relay.be_home(|_| {})).await;
    (archive, pod)
}

#[tokio::test(flavor = "multi_thread")]
async fn output_exit_and_seal_come_and_then_both_leave() {
    let (archive, mut pod) = run("echo out; echo err >&2; exit 7", &Options::default()).await;
    assert_eq!((archive.head(0).as_str(), archive.head(1).as_str()), ("out\n", "err\n"));
    let exit = archive.exit();
    assert_eq!(
        (exit.outcome(), exit.value, exit.source()),
        (Outcome::Code, 7, Source::Entrypoint)
    );
    assert!(exit.sealed && exit.started_unix_nanos > 0 && exit.finished_unix_nanos >= exit.started_unix_nanos);
    let seal = exit.seal.clone().unwrap();
    assert_eq!(seal.stdout.unwrap().sha256[..], Sha256::digest(b"out\n")[..]);
    assert_eq!(seal.stderr.unwrap().bytes, 4);
    assert_eq!(pod.entrypoint_ends().await.code(), Some(7));
    assert_eq!(pod.agent_ends().await.code(), Some(0));
    assert!(pod.path("spool/done").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_restarted_after_the_end_idles_until_shutdown() {
    let mut relay = TestRelay::start().await;
    let options = Options::default();
    let mut pod = Pod::start(&relay, &options);
    pod.shell("true");
    in_time("the end", relay.be_home(|_| {})).await;
    pod.agent_ends().await;
    pod.restart_agent(&relay, &options);
    // The agent would take this long to say that it wants a home; and before its handler is set, SIGTERM would kill it.
    let silence = tokio::time::timeout(std::time::Duration::from_secs(1), relay.starts.recv()).await;
    assert!(silence.is_err());
    pod.signal_agent(Signal::TERM);
    assert_eq!(pod.agent_ends().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_run_has_an_exit_and_no_output() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    pod.launch(&["/no/such/program"]);
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(
        (archive.exit().value, archive.exit().reason()),
        (127, Reason::CommandNotFound)
    );
    assert!(archive.exit().sealed);
    assert_eq!(archive.total(), 0);
    assert_eq!(pod.entrypoint_ends().await.code(), Some(127));
}

#[tokio::test(flavor = "multi_thread")]
async fn merged_output_keeps_its_true_order() {
    let options = launch_with(|launch| launch.merge = true);
    let (archive, _pod) = run("for i in 1 2 3; do echo o$i; echo e$i >&2; done", &options).await;
    assert_eq!(archive.head(0), "o1\ne1\no2\ne2\no3\ne3\n");
    assert_eq!(archive.cursor.stderr, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_echo_stops_and_says_where_the_rest_is() {
    let options = launch_with(|launch| launch.set_echo(Echo::Limited));
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options);
    pod.shell("echo first; head -c 3000000 /dev/zero; echo last");
    let mut log = pod.entrypoint.as_mut().unwrap().stdout.take().unwrap();
    let mut notes = pod.entrypoint.as_mut().unwrap().stderr.take().unwrap();
    let echoed = std::thread::spawn(move || {
        let mut echoed = Vec::new();
        log.read_to_end(&mut echoed).unwrap();
        echoed
    });
    in_time("the end", relay.be_home(|_| {})).await;
    pod.entrypoint_ends().await;
    let echoed = echoed.join().unwrap();
    assert!(echoed.starts_with(b"first\n"));
    // What the log does not take at once is dropped, so less is fine, more is not.
    assert!(echoed.len() <= 1 << 20, "{}", echoed.len());
    let mut note = String::new();
    notes.read_to_string(&mut note).unwrap();
    assert!(note.contains("rproc logs -n default hello"), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_job_is_echoed_whole() {
    let options = launch_with(|launch| launch.set_echo(Echo::Limited));
    let (_, mut pod) = run("echo hello; echo world >&2", &options).await;
    pod.entrypoint_ends().await;
    let entrypoint = pod.entrypoint.as_mut().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    entrypoint.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    entrypoint.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("hello\n", "world\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_holds_back_and_continues_after_a_commit() {
    let relay = TestRelay::start().await;
    let mut relay = relay;
    let options = Options {
        spool_size: 1 << 20,
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    pod.shell("head -c 5000000 /dev/zero; echo done >&2");
    let start = relay.next_start().await;
    let mut agent = relay.dial(&start.address).await;
    let written = async |agent: &mut super::verbs::Agent| {
        let state = agent.get_state(super::verbs::get_state()).await.unwrap().into_inner();
        state.written.unwrap().stdout
    };
    let mut full = 0;
    let mut look = tokio::time::interval(std::time::Duration::from_millis(10));
    while full < 1 << 20 {
        look.tick().await;
        full = written(&mut agent).await;
    }
    // There is no commit, so it must stay there. One splice may exceed the limit, by what a pipe holds.
    for _ in 0..20 {
        look.tick().await;
        assert!(written(&mut agent).await <= (1 << 20) + (256 << 10));
    }
    let mut archive = Archive::default();
    in_time("the rest", archive.take_from(&mut agent, &mut |_| {}))
        .await
        .unwrap();
    assert_eq!((archive.cursor.stdout, archive.cursor.stderr), (5_000_000, 5));
    assert_eq!(pod.agent_ends().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_holds_back_and_continues_too() {
    if !super::pod::can_mount() {
        return;
    }
    let mut relay = TestRelay::start().await;
    let options = Options {
        // The spool would take much more than its volume does.
        spool_size: 64 << 20,
        volume_bytes: Some(4 << 20),
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    pod.shell("head -c 20000000 /dev/zero; echo done >&2");
    let start = relay.next_start().await;
    let spool = pod.path("spool");
    until("the volume is full", || {
        rustix::fs::statvfs(&spool).is_ok_and(|volume| volume.f_bavail == 0)
    })
    .await;
    let mut agent = relay.dial(&start.address).await;
    let mut archive = Archive::default();
    in_time("the rest", archive.take_from(&mut agent, &mut |_| {}))
        .await
        .unwrap();
    assert_eq!((archive.cursor.stdout, archive.cursor.stderr), (20_000_000, 5));
    let exit = archive.exit();
    assert_eq!((exit.value, exit.sealed), (0, true));
    assert_eq!(pod.agent_ends().await.code(), Some(0));
}

/// The launch was granted, the program has written and ended; the agent is to leave, and no home has come yet.
async fn ended_before_its_home_came() -> (TestRelay, Pod) {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    pod.shell("echo late");
    relay.next_start().await;
    pod.entrypoint_ends().await;
    pod.signal_agent(Signal::TERM);
    (relay, pod)
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_after_the_program_waits_for_the_final_commit() {
    let (mut relay, mut pod) = ended_before_its_home_came().await;
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "late\n");
    assert_eq!(pod.agent_ends().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_away_is_waited_for() {
    let (mut relay, mut pod) = ended_before_its_home_came().await;
    let too_long = timeout(LONGER_THAN_UNREACHABLE, pod.agent_ends()).await;
    assert!(too_long.is_err(), "{too_long:?}");
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(archive.head(0), "late\n");
    assert_eq!(pod.agent_ends().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_away_does_not_hold_up_the_deletion_of_a_pod() {
    let mut relay = TestRelay::start().await;
    let options = Options {
        drain_seconds: 300,
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    let started = pod.path("started");
    pod.shell(&format!("echo > {}; exec sleep 600", started.display()));
    relay.next_start().await;
    until("the program", || started.exists()).await;
    drop(relay);
    let entrypoint = i32::try_from(pod.entrypoint.as_ref().unwrap().id()).unwrap();
    kill_process(Pid::from_raw(entrypoint).unwrap(), Signal::TERM).unwrap();
    pod.entrypoint_ends().await;
    pod.signal_agent(Signal::TERM);
    in_time("the agent's end", pod.agent_ends()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_before_a_launch_ends_the_agent_at_once() {
    let relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &Options::default());
    until("the socket", || pod.path("handover/socket").exists()).await;
    pod.signal_agent(Signal::TERM);
    assert_eq!(pod.agent_ends().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_agent_needs_less_than_ten_mebibytes() {
    let mut relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    let go = pod.path("go");
    pod.shell(&format!(
        "head -c 50000000 /dev/zero; while ! test -e {}; do sleep 0.02; done",
        go.display()
    ));
    let mut home = Box::pin(relay.be_home(|_| {}));
    // The home takes everything there is, and then the agent has nothing to do.
    let written = pod.path("spool/stdout");
    tokio::select! {
        _ = &mut home => panic!("the program has not ended"),
        () = until("the output", || std::fs::metadata(&written).is_ok_and(|file| file.len() == 50_000_000)) => {}
    }
    let supervisor = anonymous(pod.agent.id());
    let agent = anonymous(pod.agent_pid().unwrap().as_raw_pid().try_into().unwrap());
    assert!(supervisor + agent < 10 << 20, "{supervisor} + {agent} bytes");
    println!("anonymous memory: supervisor {supervisor}, agent {agent} bytes");
    std::fs::write(&go, "").unwrap();
    in_time("the end", home).await;
}

/// Bytes of anonymous memory of a process.
fn anonymous(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes << 10
}
