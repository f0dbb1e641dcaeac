//! Processes that outlive the program, with `Wait`.

use std::time::{Duration, Instant};

use remoteprocess_entrypoint::message::{Leftovers, Outcome, StopCause, Target};
use rstest::rstest;

use crate::agent::{Entrypoint, Mode, Order};

fn wait() -> Order {
    Order {
        leftovers: Leftovers::Wait,
        ..Order::default()
    }
}

/// A program that exits with 4 and leaves a shell behind, which then prints `up` and waits. `trap` is its first command.
fn leave_behind(trap: &str) -> String {
    format!(
        "sh -c \"{trap}; while kill -0 $$ 2>/dev/null; do sleep 0.01; done; echo up; while :; do sleep 0.02; done\" & exit 4"
    )
}

#[rstest]
fn the_run_lasts_until_the_last_descendant_has_ended(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    // A daemon in the classic way: it has left group, session and parent.
    let script = "(setsid sh -c 'sleep 2.6; echo daemon' &) ; echo main; exit 4";
    let mut entrypoint = Entrypoint::shell(mode, script);
    let begin = std::time::SystemTime::now();
    let start = Instant::now();
    let finished = entrypoint.launch_as(&wait()).finish();
    assert!(
        start.elapsed() >= Duration::from_millis(2600),
        "longer than any patience with leftovers"
    );
    assert_eq!(finished.text(), "main\ndaemon\n");
    assert_eq!(
        (finished.exited.outcome, finished.exited.leftovers, finished.exited.stop),
        (Outcome::Code(4), 0, None)
    );
    let begin = begin.duration_since(std::time::UNIX_EPOCH).unwrap();
    let end = Duration::from_nanos(finished.exited.at_unix_nanos);
    assert!(
        end >= begin + Duration::from_millis(2600),
        "the end is that of the last one"
    );
    assert_eq!(entrypoint.code(), 4);
}

#[rstest]
fn a_stop_ends_what_is_waited_for(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let entrypoint = Entrypoint::shell(mode, &leave_behind("trap 'echo bye; exit' TERM"));
    let agent = entrypoint.launch_as(&wait());
    agent.await_line("up");
    agent.stop(Duration::from_secs(60));
    let finished = agent.finish();
    assert_eq!(finished.text(), "bye\n");
    assert_eq!(finished.stop(), Some(StopCause::Requested));
    assert_eq!(finished.exited.leftovers, 0);
}

#[rstest]
fn what_is_waited_for_is_killed_after_the_grace(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let entrypoint = Entrypoint::shell(mode, &leave_behind("trap '' TERM"));
    let agent = entrypoint.launch_as(&wait());
    agent.await_line("up");
    agent.stop(Duration::from_millis(300));
    assert_eq!(
        agent.finish().exited.outcome,
        Outcome::Code(4),
        "the program's own end stands"
    );
}

#[test]
fn what_is_waited_for_can_be_signalled() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, &leave_behind("trap 'echo usr1; exit' USR1"));
    let mut agent = entrypoint.launch_as(&wait());
    agent.await_line("up");
    assert_eq!(agent.signal(libc::SIGUSR1, Target::Group), None);
    assert_eq!(agent.finish().text(), "usr1\n");
}

#[test]
fn an_agent_that_is_lost_ends_what_is_waited_for() {
    let mut entrypoint = Entrypoint::shell(Mode::Subreaper, "(echo up; sleep 60) & exit 4");
    let agent = entrypoint.launch_as(&Order {
        agent_lost: Duration::from_millis(300),
        ..wait()
    });
    agent.await_line("up");
    entrypoint.listener = None;
    drop(agent);
    assert_eq!(entrypoint.code(), 4);
}
