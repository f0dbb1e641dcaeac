//! A program at a terminal.

use remoteprocess_entrypoint::input::WindowSize;
use remoteprocess_entrypoint::message::{Outcome, ToEntrypoint};

use crate::agent::{Entrypoint, Mode, Order, Output};

fn at_terminal(rows: u16, columns: u16) -> Order {
    Order {
        stdin: true,
        terminal: Some(WindowSize { rows, columns }),
        ..Order::default()
    }
}

#[test]
fn it_is_the_leader_of_a_session_at_a_terminal_of_the_size_that_was_asked_for() {
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size < /dev/tty && echo term=$TERM && \
                  ps -o pid=,sid=,tpgid= -p $$ | awk '{ print ($1 == $2 && $2 == $3) }'; exit 7";
    let mut entrypoint = Entrypoint::configured(Mode::Namespace, &[], &["sh", "-c", script], |run| {
        run.env_remove("TERM");
    });
    let finished = entrypoint.launch_as(&at_terminal(31, 101)).finish();
    assert_eq!(finished.text(), "31 101\r\nterm=xterm\r\n1\r\n");
    assert_eq!((finished.exited.outcome, entrypoint.code()), (Outcome::Code(7), 7));
}

#[test]
fn what_is_typed_is_echoed_and_signals_come_by_key() {
    let script =
        "trap 'echo interrupted; exit 3' INT; echo ready; read line; echo got $line; while :; do sleep 1; done";
    let mut entrypoint = Entrypoint::shell(Mode::Namespace, script);
    let mut agent = entrypoint.launch_as(&at_terminal(24, 80));
    agent.await_line("ready\r");
    let state = agent.feed(agent.first_input(), b"hello\r");
    agent.await_line("hello\r");
    agent.await_line("got hello\r");
    agent.feed(state, b"\x03");
    let finished = agent.finish();
    assert_eq!(finished.exited.outcome, Outcome::Code(3));
    assert!(finished.text().contains("interrupted\r\n"), "{:?}", finished.text());
    assert_eq!(entrypoint.code(), 3);
}

#[test]
fn a_new_size_is_reported() {
    let script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut entrypoint = Entrypoint::shell(Mode::Namespace, script);
    let agent = entrypoint.launch_as(&at_terminal(24, 80));
    agent.await_line("ready\r");
    let resize = WindowSize { rows: 50, columns: 132 };
    agent.send(&ToEntrypoint::Resize(resize));
    assert_eq!(agent.finish().text(), "50 132\r\n");
    assert_eq!(entrypoint.code(), 0);
}

#[test]
fn the_end_of_the_input_is_typed_also_within_a_line() {
    for typed in [&b"one\r"[..], b"two"] {
        let mut entrypoint = Entrypoint::shell(Mode::Subreaper, "stty -echo; echo ready; cat");
        let mut agent = entrypoint.launch_as(&at_terminal(24, 80));
        agent.await_line("ready\r");
        let state = agent.feed(agent.first_input(), typed);
        agent.end_input(state.offset);
        let finished = agent.finish();
        let text = String::from_utf8_lossy(typed).replace('\r', "\r\n");
        assert_eq!(
            (finished.text(), &finished.exited.outcome),
            (text.as_str(), &Outcome::Code(0))
        );
        entrypoint.wait();
    }
}

#[test]
fn an_agent_that_dies_loses_nothing_of_what_a_terminal_shows() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "stty -opost; seq 200000; echo end");
    let mut agent = entrypoint.launch_as(&at_terminal(24, 80));
    let mut shown = Vec::new();
    for part in [1, 70_000, 300_000] {
        let mut bytes = vec![0; part];
        let read = rustix::io::read(&agent.pipes[0], &mut bytes[..]).unwrap();
        shown.extend_from_slice(&bytes[..read]);
        drop(agent);
        agent = entrypoint.welcome();
        assert!(agent.launched().is_some());
    }
    let rest = Output::of(agent.pipes.remove(0));
    agent.exited();
    shown.extend(rest.bytes());
    agent.send(&ToEntrypoint::Recorded);
    let wanted: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(shown == (wanted + "end\n").into_bytes(), "{} bytes", shown.len());
}

#[test]
fn a_program_that_cannot_be_started_leaves_no_terminal_behind() {
    let entrypoint = Entrypoint::start(Mode::Subreaper, &["/no/such/program"]);
    let mut agent = entrypoint.welcome();
    agent.send(&at_terminal(24, 80).message());
    assert!(matches!(agent.exited().outcome, Outcome::NotFound { .. }));
    assert!(agent.pipes.is_empty());
}
