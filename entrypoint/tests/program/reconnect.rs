//! The agent dies and is restarted.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use remoteprocess_entrypoint::message::{
    FromEntrypoint, Outcome, PROTOCOL_VERSION, Resume, Secret, StopCause, ToEntrypoint,
};
use rstest::rstest;

use crate::agent::{Agent, Entrypoint, Mode, Order, SECRET};

const RESUMED: Option<Resume> = Some(Resume {
    secret: SECRET,
    launched: true,
});

/// Reconnects, gets the pipes with the greeting and is told of the launch again.
fn resume(entrypoint: &Entrypoint) -> Agent {
    let mut agent = entrypoint.welcome();
    assert_eq!(agent.resume, RESUMED);
    assert_eq!(agent.pipes.len(), 2, "with the greeting");
    assert!(matches!(agent.receive(), FromEntrypoint::Launched { .. }));
    agent
}

#[rstest]
fn an_agent_that_dies_many_times_loses_no_byte(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let lines = 7_000_000;
    let entrypoint = Entrypoint::start(mode, &["seq", "1", &lines.to_string()]);
    let mut agent = entrypoint.launch();
    let mut collected = Vec::new();
    for _ in 0..12 {
        let stdout = File::from(agent.pipes.remove(0));
        stdout.take(4_000_000).read_to_end(&mut collected).unwrap();
        drop(agent);
        agent = resume(&entrypoint);
    }
    let finished = agent.finish();
    collected.extend(finished.stdout);
    assert!(collected.len() > 50_000_000);
    let mut expected = collected.split(|byte| *byte == b'\n');
    for number in 1..=lines {
        let line = expected.next().unwrap();
        assert_eq!(line, number.to_string().as_bytes());
    }
    assert_eq!(expected.collect::<Vec<_>>(), [b""]);
    assert_eq!(finished.exited.outcome, Outcome::Code(0));
}

#[rstest]
fn the_exit_is_reported_again_to_a_returning_agent(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let mut entrypoint = Entrypoint::shell(mode, "echo kept; exit 8");
    let mut agent = entrypoint.launch();
    let first = agent.exited();
    drop(agent);
    let mut agent = resume(&entrypoint);
    assert_eq!(agent.exited(), first);
    drop(agent);
    let finished = resume(&entrypoint).finish();
    assert_eq!((finished.text(), &finished.exited), ("kept\n", &first));
    assert_eq!(entrypoint.code(), 8);
}

#[test]
fn an_exit_without_an_agent_is_reported_to_the_next_one() {
    let mut entrypoint = Entrypoint::shell(Mode::Subreaper, "echo kept; sleep 0.1; exit 8");
    let agent = entrypoint.launch();
    entrypoint.listener = None;
    drop(agent);
    entrypoint.listen_again();
    let finished = resume(&entrypoint).finish();
    assert_eq!(
        (finished.text(), &finished.exited.outcome),
        ("kept\n", &Outcome::Code(8))
    );
}

#[test]
fn an_agent_that_dies_before_the_launch_is_known_to_the_next() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "exit 8");
    drop(entrypoint.accept());
    assert_eq!(entrypoint.welcome().resume, None, "it had not answered");
    let mut agent = entrypoint.welcome();
    assert_eq!(
        agent.resume,
        Some(Resume {
            secret: SECRET,
            launched: false
        })
    );
    assert!(agent.pipes.is_empty());
    agent.send(&Order::default().message());
    assert!(matches!(agent.receive(), FromEntrypoint::Launched { .. }));
    assert_eq!(agent.finish().exited.outcome, Outcome::Code(8));
}

#[test]
fn a_failed_start_is_reported_again_and_not_retried() {
    let entrypoint = Entrypoint::start(Mode::Subreaper, &["no-such-program"]);
    let (agent, first) = entrypoint.launch_what_cannot_start();
    drop(agent);
    let mut agent = entrypoint.welcome();
    assert_eq!(
        agent.resume,
        Some(Resume {
            secret: SECRET,
            launched: false
        })
    );
    agent.send(&Order::default().message());
    assert_eq!(agent.exited(), first);
}

#[test]
fn a_stranger_with_another_secret_is_left() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "echo up; sleep 60");
    let agent = entrypoint.launch();
    agent.await_line("up");
    drop(agent);
    let stranger = entrypoint.accept();
    let secret = Secret([1; 32]);
    stranger.send(&ToEntrypoint::Welcome {
        version: PROTOCOL_VERSION,
        secret,
    });
    // It may have disconnected already.
    let stop = ToEntrypoint::Stop {
        signal: libc::SIGKILL,
        grace_millis: 0,
        cause: StopCause::Requested,
    };
    let _ = stranger.connection.send(&stop, &[]);
    assert!(stranger.is_hung_up());
    let mut agent = resume(&entrypoint);
    let target = remoteprocess_entrypoint::message::Target::Main;
    assert_eq!(agent.signal(libc::SIGUSR1, target), None, "the program was not touched");
    assert_eq!(agent.finish().exited.outcome, Outcome::Signal(libc::SIGUSR1));
}

#[rstest]
fn a_program_without_an_agent_is_stopped_in_the_end(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "trap 'echo lost; exit 6' TERM; echo up; while :; do sleep 0.02; done";
    let mut entrypoint = Entrypoint::shell(mode, script);
    let order = Order {
        agent_lost: Duration::from_millis(300),
        ..Order::default()
    };
    let agent = entrypoint.launch_as(&order);
    agent.await_line("up");
    let pipe = agent.pipes[0].try_clone().unwrap();
    entrypoint.listener = None;
    drop(agent);
    let witness = Agent {
        pipes: vec![pipe],
        first_input: None,
        ..lonely()
    };
    witness.await_line("lost");
    entrypoint.listen_again();
    let finished = resume(&entrypoint).finish();
    assert_eq!(finished.stop(), Some(StopCause::AgentLost));
    assert_eq!(finished.exited.outcome, Outcome::Code(6));
    assert_eq!(entrypoint.code(), 6);
}

/// An agent without an entrypoint: only the pipes matter.
fn lonely() -> Agent {
    let (connection, _) = remoteprocess_entrypoint::socket::Connection::pair().unwrap();
    Agent {
        connection,
        resume: None,
        pid: 0,
        pipes: Vec::new(),
        first_input: None,
    }
}
