//! The run deadline where the agent does not enforce it.

use std::time::{Duration, Instant};

use remoteprocess_entrypoint::message::{Outcome, StopCause, ToEntrypoint};
use remoteprocess_entrypoint::run_clock::BACKSTOP;
use rstest::rstest;

use crate::agent::{Entrypoint, Mode, Order};

const OBEYS: &str = "trap 'exit 5' TERM; echo up; while :; do sleep 0.02; done";

fn limited(run: Duration) -> Order {
    Order {
        run: Some(run),
        pause_stops_clock: true,
        ..Order::default()
    }
}

#[rstest]
fn the_entrypoint_acts_when_the_agent_has_not(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let mut entrypoint = Entrypoint::shell(mode, OBEYS);
    let run = Duration::from_millis(200);
    let start = Instant::now();
    let finished = entrypoint.launch_as(&limited(run)).finish();
    let elapsed = start.elapsed();
    assert!(elapsed >= run + BACKSTOP, "{elapsed:?}");
    assert!(elapsed < run + BACKSTOP + Duration::from_secs(2), "{elapsed:?}");
    assert_eq!(finished.exited.outcome, Outcome::Code(5));
    assert_eq!(finished.stop(), Some(StopCause::Deadline));
    assert_eq!(entrypoint.code(), 5);
}

#[test]
fn another_deadline_counts_from_the_start_and_a_pause_can_stop_the_clock() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, OBEYS);
    let start = Instant::now();
    let mut agent = entrypoint.launch_as(&limited(Duration::from_secs(600)));
    agent.await_line("up");
    agent.send(&ToEntrypoint::SetDeadline {
        run_deadline: Some(Duration::from_millis(100)),
    });
    assert_eq!(agent.pause("one", true), None);
    let pause = Duration::from_millis(1500);
    std::thread::park_timeout(pause);
    assert_eq!(agent.pause("two", false), None);
    let finished = agent.finish();
    let least = Duration::from_millis(100) + pause + BACKSTOP;
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
    assert_eq!(finished.stop(), Some(StopCause::Deadline));
}

#[test]
fn a_stop_at_the_deadline_says_so() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, OBEYS);
    let agent = entrypoint.launch();
    agent.await_line("up");
    agent.send(&ToEntrypoint::Stop {
        signal: libc::SIGTERM,
        grace_millis: 60_000,
        cause: StopCause::Deadline,
    });
    agent.stop(Duration::from_secs(60));
    assert_eq!(
        agent.finish().stop(),
        Some(StopCause::Deadline),
        "the first cause stays"
    );
}
