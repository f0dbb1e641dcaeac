//! Stop, leftovers, reaping, and how the entrypoint itself exits.

use std::time::{Duration, Instant};

use remoteprocess_entrypoint::message::{Outcome, StopCause, Target, ToEntrypoint};
use rstest::rstest;

use crate::agent::{Entrypoint, Mode, Order, children, eventually};

const LONG: Duration = Duration::from_secs(60);
const DEAF: &str = "trap '' TERM INT; echo up; while :; do sleep 0.05; done";

#[rstest]
fn a_program_that_obeys_a_stop_ends_with_its_own_code(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.02; done";
    let mut entrypoint = Entrypoint::shell(mode, script);
    let agent = entrypoint.launch();
    agent.await_line("up");
    agent.stop(LONG);
    let finished = agent.finish();
    assert_eq!(
        (finished.text(), finished.stop()),
        ("bye\n", Some(StopCause::Requested))
    );
    assert_eq!(finished.exited.outcome, Outcome::Code(5));
    assert_eq!(entrypoint.code(), 5);
}

#[rstest]
fn a_stop_that_is_ignored_kills_after_the_grace(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let mut entrypoint = Entrypoint::shell(mode, DEAF);
    let agent = entrypoint.launch();
    agent.await_line("up");
    let start = Instant::now();
    agent.stop(Duration::from_millis(400));
    let finished = agent.finish();
    assert!(start.elapsed() >= Duration::from_millis(400));
    assert_eq!(finished.exited.outcome, Outcome::Signal(libc::SIGKILL));
    assert_eq!(entrypoint.code(), 137);
}

/// A regression: the status said that the pod was deleted when a program had sent TERM to PID 1.
#[test]
fn a_signal_from_inside_to_process_1_is_the_programs_own() {
    let script = "trap 'echo own; exit 6' TERM; echo up; kill -TERM 1; while :; do sleep 0.02; done";
    let mut entrypoint = Entrypoint::shell(Mode::Namespace, script);
    let agent = entrypoint.launch();
    let finished = agent.finish();
    assert_eq!((finished.text(), finished.stop()), ("up\nown\n", None));
    assert_eq!(finished.exited.outcome, Outcome::Code(6));
    assert_eq!(entrypoint.code(), 6);
}

#[test]
fn a_second_stop_shortens_the_grace() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, DEAF);
    let agent = entrypoint.launch();
    agent.await_line("up");
    agent.stop(LONG);
    agent.stop(Duration::ZERO);
    assert_eq!(agent.finish().exited.outcome, Outcome::Signal(libc::SIGKILL));
}

#[test]
fn a_second_stop_does_not_lengthen_the_grace() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, DEAF);
    let agent = entrypoint.launch();
    agent.await_line("up");
    agent.stop(Duration::from_millis(100));
    agent.stop(LONG);
    assert_eq!(agent.finish().exited.outcome, Outcome::Signal(libc::SIGKILL));
}

#[rstest]
fn a_stopped_program_can_be_stopped(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let entrypoint = Entrypoint::shell(mode, "trap 'exit 6' TERM; echo up; while :; do :; done");
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    assert_eq!(agent.signal(libc::SIGSTOP, Target::Main), None);
    let main = children(agent.peer())[0].0;
    eventually("it is stopped", || children(agent.peer()).contains(&(main, 'T')));
    agent.stop(LONG);
    assert_eq!(agent.finish().exited.outcome, Outcome::Code(6));
}

#[rstest]
fn a_stop_reaches_what_left_the_group(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "setsid sh -c 'trap \"sleep 0.3; echo saved; exit\" TERM; echo up; \
                  while :; do sleep 0.02; done' & wait; exit 1";
    let entrypoint = Entrypoint::shell(mode, script);
    let agent = entrypoint.launch();
    agent.await_line("up");
    agent.stop(LONG);
    let finished = agent.finish();
    assert_eq!(
        finished.text(),
        "saved\n",
        "the grace is everybody's, not only the program's"
    );
    assert_eq!(finished.exited.outcome, Outcome::Signal(libc::SIGTERM));
    assert_eq!(finished.exited.leftovers, 0);
}

#[rstest]
fn what_a_stopped_program_starts_and_leaves_is_stopped_too(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "trap 'sleep 60 & exit 7' TERM; echo up; while :; do sleep 0.02; done";
    let entrypoint = Entrypoint::shell(mode, script);
    let agent = entrypoint.launch();
    agent.await_line("up");
    agent.stop(LONG);
    assert_eq!(
        agent.finish().exited.outcome,
        Outcome::Code(7),
        "long before the grace is over"
    );
}

#[rstest]
fn a_stop_signal_from_the_kubelet_runs_the_stop_path(
    #[values(
        (Mode::Subreaper, libc::SIGTERM),
        (Mode::Namespace, libc::SIGTERM),
        (Mode::Namespace, libc::SIGINT),
        (Mode::Namespace, libc::SIGQUIT)
    )]
    case: (Mode, i32),
) {
    let mut entrypoint = Entrypoint::shell(case.0, DEAF);
    let order = Order {
        stop_grace: Duration::from_millis(100),
        ..Order::default()
    };
    let agent = entrypoint.launch_as(&order);
    agent.await_line("up");
    agent.send_signal_to_peer(case.1);
    let finished = agent.finish();
    assert_eq!(finished.stop(), Some(StopCause::Terminated));
    assert_eq!(finished.exited.outcome, Outcome::Signal(libc::SIGKILL));
    assert_eq!(entrypoint.code(), 137);
}

#[rstest]
fn a_container_that_is_stopped_before_the_launch_starts_nothing(
    #[values(Mode::Subreaper, Mode::Namespace)] mode: Mode,
) {
    let mut entrypoint = Entrypoint::shell(mode, "echo run >> $WORK/runs");
    let agent = entrypoint.welcome();
    agent.send_signal_to_peer(libc::SIGTERM);
    assert_eq!(entrypoint.code(), 143);
    assert!(agent.is_hung_up());
    assert!(!entrypoint.path("runs").exists());
}

#[rstest]
fn orphans_are_reaped_while_the_program_runs(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "i=0; while [ $i -lt 40 ]; do (sh -c 'exit 1' & (true &) &) ; i=$((i+1)); done
                  echo up; exec sleep 60";
    let entrypoint = Entrypoint::shell(mode, script);
    let agent = entrypoint.launch();
    agent.await_line("up");
    eventually("only the program is left", || children(agent.peer()).len() == 1);
    agent.stop(LONG);
    assert_eq!(agent.finish().exited.outcome, Outcome::Signal(libc::SIGTERM));
}

#[rstest]
fn what_is_left_behind_is_ended_and_counted(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "sleep 60 & (setsid sleep 60 &) ; exit 2";
    let mut entrypoint = Entrypoint::shell(mode, script);
    let finished = entrypoint.launch().finish();
    assert_eq!(
        (finished.exited.outcome, finished.exited.leftovers),
        (Outcome::Code(2), 2)
    );
    assert_eq!(entrypoint.code(), 2);
}

#[rstest]
fn a_leftover_that_ignores_sigterm_is_killed(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "sh -c \"trap '' TERM; touch $WORK/up; exec sleep 60\" &
                  while [ ! -e $WORK/up ]; do sleep 0.02; done";
    let start = Instant::now();
    let finished = Entrypoint::shell(mode, script).launch().finish();
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_eq!(
        (finished.exited.outcome, finished.exited.leftovers),
        (Outcome::Code(0), 1)
    );
}

#[rstest]
fn zombies_that_the_program_never_reaped_are_no_leftovers(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    // The shell is replaced by a program that does not wait for its children.
    let entrypoint = Entrypoint::shell(mode, "true & true & exec sleep 0.4");
    let finished = entrypoint.launch().finish();
    assert_eq!(
        (finished.exited.outcome, finished.exited.leftovers),
        (Outcome::Code(0), 0)
    );
}

#[test]
fn usage_counts_the_program_and_its_children() {
    let script = "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'";
    let usage = Entrypoint::shell(Mode::Subreaper, script)
        .launch()
        .finish()
        .exited
        .usage;
    assert!(usage.user_micros + usage.system_micros > 10_000, "{usage:?}");
    assert!(usage.max_rss_bytes > 100_000, "{usage:?}");
}

#[rstest]
fn an_agent_that_never_sends_recorded_delays_the_end_only_briefly(
    #[values(Mode::Subreaper, Mode::Namespace)] mode: Mode,
) {
    let mut entrypoint = Entrypoint::shell(mode, "echo out; exit 8");
    let mut agent = entrypoint.launch();
    // As a stopped agent would, this one reads nothing before the container has ended.
    let start = Instant::now();
    assert_eq!(entrypoint.code(), 8);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let pipes = std::mem::take(&mut agent.pipes);
    assert_eq!(agent.exited().outcome, Outcome::Code(8));
    let mut outputs = pipes.into_iter().map(crate::agent::Output::of);
    assert_eq!(outputs.next().unwrap().text(), "out\n");
    assert_eq!(outputs.next().unwrap().text(), "");
}

#[test]
fn an_agent_that_does_not_return_delays_the_end_only_briefly() {
    let mut entrypoint = Entrypoint::shell(Mode::Subreaper, "echo up; read line < $WORK/go; exit 8");
    let status = std::process::Command::new("mkfifo")
        .arg(entrypoint.path("go"))
        .status()
        .unwrap();
    assert!(status.success());
    let agent = entrypoint.launch();
    entrypoint.listener = None;
    drop(agent);
    std::fs::write(entrypoint.path("go"), "now\n").unwrap();
    let start = Instant::now();
    assert_eq!(entrypoint.code(), 8);
    assert!(
        start.elapsed() >= Duration::from_secs(4),
        "it waits for an agent to come back"
    );
}

#[test]
fn recorded_before_the_end_means_nothing() {
    let mut entrypoint = Entrypoint::shell(Mode::Subreaper, "echo up; sleep 0.2; exit 8");
    let agent = entrypoint.launch();
    agent.send(&ToEntrypoint::Recorded);
    agent.await_line("up");
    assert_eq!(agent.finish().exited.outcome, Outcome::Code(8));
    assert_eq!(entrypoint.code(), 8);
}
