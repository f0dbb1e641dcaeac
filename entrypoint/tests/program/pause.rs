//! Pause and resume: no process of the container runs, whatever it does at that moment.

use std::time::Duration;

use remoteprocess_entrypoint::message::{FromEntrypoint, Leftovers, Outcome, StopCause, Target, ToEntrypoint};
use rstest::rstest;

use crate::agent::{Agent, Entrypoint, Mode, Order, children, eventually};

const LONG: Duration = Duration::from_secs(60);
const TALKS: &str = "trap 'echo bye; exit 5' TERM; echo up; while :; do echo tick; sleep 0.01; done";

/// All processes under the entrypoint, with their states.
fn family(agent: &Agent) -> Vec<(i32, char)> {
    let mut found = children(agent.peer());
    let mut next = 0;
    while let Some((pid, _)) = found.get(next) {
        found.extend(children(*pid));
        next += 1;
    }
    found
}

/// D: a shell that waits in vfork(2) for a child that was stopped.
fn is_still(agent: &Agent) -> bool {
    family(agent).iter().all(|(_, state)| matches!(state, 'T' | 'Z' | 'D'))
}

#[rstest]
fn a_paused_program_does_nothing_until_it_is_resumed(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let entrypoint = Entrypoint::shell(mode, TALKS);
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    assert_eq!(agent.pause("one", true), None);
    assert!(is_still(&agent), "{:?}", family(&agent));
    let pending = agent.pending();
    // Long enough for dozens of ticks.
    std::thread::park_timeout(Duration::from_millis(300));
    assert_eq!(agent.pending(), pending);
    assert_eq!(agent.pause("again", true), None, "it is paused already");
    let refused = agent.signal(libc::SIGCONT, Target::Main).unwrap();
    assert!(refused.contains("resume"), "{refused}");
    assert_eq!(agent.pause("two", false), None);
    eventually("it goes on", || agent.pending() > pending);
    agent.stop(LONG);
    assert_eq!(agent.finish().exited.outcome, Outcome::Code(5));
}

/// Processes that start and end all the time, in groups and sessions of their own.
#[rstest]
fn what_is_forked_meanwhile_is_paused_too(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    // Even if the test fails, they end with its directory.
    let script = "echo up
        for i in 1 2 3; do (while [ -d $WORK ]; do (sleep 0.001 &) ; setsid sh -c 'true & true'; done) & done
        while [ -d $WORK ]; do true & wait $!; done";
    let entrypoint = Entrypoint::shell(mode, script);
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    for round in 0..10 {
        assert_eq!(agent.pause(&format!("pause {round}"), true), None);
        let before = family(&agent);
        assert!(is_still(&agent), "{before:?}");
        std::thread::park_timeout(Duration::from_millis(30));
        let is_new = |pid: i32| before.iter().all(|(known, _)| *known != pid);
        assert!(
            family(&agent).iter().all(|(pid, _)| !is_new(*pid)),
            "nothing is forked any more"
        );
        assert_eq!(agent.pause(&format!("resume {round}"), false), None);
        eventually("it goes on", || !is_still(&agent));
    }
    agent.stop(Duration::ZERO);
    agent.finish();
}

#[rstest]
fn a_paused_program_can_be_stopped_and_killed(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let entrypoint = Entrypoint::shell(mode, TALKS);
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    assert_eq!(agent.pause("one", true), None);
    agent.stop(LONG);
    assert_eq!(agent.pause("two", true).unwrap(), "the process is being stopped");
    let finished = agent.finish();
    assert_eq!(finished.exited.outcome, Outcome::Code(5));
    assert!(finished.text().ends_with("bye\n"));
    assert_eq!(finished.stop(), Some(StopCause::Requested));

    let entrypoint = Entrypoint::shell(mode, TALKS);
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    assert_eq!(agent.pause("one", true), None);
    assert_eq!(agent.signal(libc::SIGKILL, Target::Main), None);
    assert_eq!(agent.finish().exited.outcome, Outcome::Signal(libc::SIGKILL));
}

#[test]
fn a_pause_is_reported_to_a_returning_agent_and_a_repeat_does_nothing() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, TALKS);
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    assert_eq!(agent.pause("one", true), None);
    drop(agent);
    let mut agent = entrypoint.welcome();
    let FromEntrypoint::Launched { is_paused, .. } = agent.receive() else {
        panic!("not the launch");
    };
    assert!(is_paused);
    assert_eq!(agent.pause("two", false), None);
    assert_eq!(agent.pause("one", true), None, "a repeat is answered");
    eventually("and pauses nothing", || !is_still(&agent));
    agent.stop(LONG);
    agent.finish();
}

#[test]
fn there_must_be_something_to_pause() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "exit 8");
    let mut agent = entrypoint.welcome();
    assert_eq!(agent.pause("one", true).unwrap(), "the program has not been started");
    agent.send(&Order::default().message());
    agent.receive();
    assert_eq!(agent.exited().outcome, Outcome::Code(8));
    assert_eq!(agent.pause("two", true).unwrap(), "the program has ended");
}

#[test]
fn what_a_program_left_behind_can_be_paused_where_it_is_waited_for() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "(echo up; while :; do sleep 0.01; done) & exit 3");
    let mut agent = entrypoint.launch_as(&Order {
        leftovers: Leftovers::Wait,
        ..Order::default()
    });
    agent.await_line("up");
    eventually("the program has ended", || {
        agent
            .signal(libc::SIGURG, Target::Main)
            .is_some_and(|why| why == "the program has ended")
    });
    assert_eq!(agent.pause("one", true), None);
    assert!(is_still(&agent));
    agent.send(&ToEntrypoint::Stop {
        signal: libc::SIGTERM,
        grace_millis: 60_000,
        cause: StopCause::Requested,
    });
    assert_eq!(agent.finish().exited.outcome, Outcome::Code(3));
}
