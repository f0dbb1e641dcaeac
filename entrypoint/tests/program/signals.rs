//! Signals that the agent sends, and which processes get them.

use remoteprocess_entrypoint::message::{Outcome, Target};
use rstest::rstest;

use crate::agent::{Entrypoint, Mode};

/// The program, one process in its group and one in a session of its own; each prints which it is.
const FAMILY: &str = "trap 'echo main; exit 9' USR1
    sh -c 'trap \"echo member; exit\" USR1; touch $WORK/a; while :; do sleep 0.02; done' &
    setsid sh -c 'trap \"echo stranger; exit\" USR1; touch $WORK/b; while :; do sleep 0.02; done' &
    while [ ! -e $WORK/a ] || [ ! -e $WORK/b ]; do sleep 0.02; done
    echo up; while :; do sleep 0.02; done";

#[rstest]
fn a_signal_goes_to_its_target(
    #[values(Mode::Subreaper, Mode::Namespace)] mode: Mode,
    #[values(
        (Target::Main, "main"),
        (Target::Group, "main member"),
        (Target::All, "main member stranger")
    )]
    target: (Target, &str),
) {
    let entrypoint = Entrypoint::shell(mode, FAMILY);
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    assert_eq!(agent.signal(libc::SIGUSR1, target.0), None);
    let finished = agent.finish();
    let mut reached: Vec<&str> = finished.text().split_whitespace().collect();
    reached.sort_unstable();
    assert_eq!(reached.join(" "), target.1);
    assert_eq!(finished.exited.outcome, Outcome::Code(9));
    assert_eq!(finished.stop(), None);
}

#[test]
fn signals_that_cannot_be_sent_are_refused_with_a_sentence() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "sleep 60");
    let mut agent = entrypoint.welcome();
    let early = agent.signal(libc::SIGTERM, Target::Main).unwrap();
    assert_eq!(early, "the program has not been started");
    drop(agent);
    let mut agent = entrypoint.welcome();
    agent.send(&crate::agent::Order::default().message());
    agent.receive();
    for number in [-1, 0, 65] {
        let refused = agent.signal(number, Target::All).unwrap();
        assert_eq!(refused, format!("{number} is not a signal"));
    }
    assert_eq!(agent.signal(64, Target::Main), None, "real-time signals are signals");
    assert_eq!(agent.exited().outcome, Outcome::Signal(64));
    let late = agent.signal(libc::SIGTERM, Target::Group).unwrap();
    assert_eq!(late, "the program has ended");
}

#[test]
fn a_signal_is_sent_once_for_each_request_whatever_agent_asks() {
    let script = "trap 'echo usr1' USR1; echo up; while :; do sleep 0.02; done";
    let entrypoint = Entrypoint::shell(Mode::Subreaper, script);
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    assert_eq!(agent.signal_as("a", libc::SIGUSR1, Target::Main), None);
    agent.await_line("usr1");
    drop(agent);
    let mut agent = entrypoint.welcome();
    agent.receive();
    assert_eq!(agent.signal_as("a", libc::SIGUSR1, Target::Main), None);
    assert_eq!(agent.signal_as("b", libc::SIGUSR1, Target::Main), None);
    agent.await_line("usr1");
    agent.stop(std::time::Duration::from_secs(60));
    assert_eq!(agent.finish().text(), "");
}
