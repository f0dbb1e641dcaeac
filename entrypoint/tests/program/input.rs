//! What the program reads: once, in order, over any number of agents.

use std::fs;

use remoteprocess_entrypoint::message::{Outcome, ToEntrypoint};
use rstest::rstest;

use crate::agent::{Agent, Entrypoint, Finished, Mode, Order, Output};

fn with_input() -> Order {
    Order {
        stdin: true,
        ..Order::default()
    }
}

/// Every misplaced byte is visible.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

fn code(finished: &Finished) -> i32 {
    match finished.exited.outcome {
        Outcome::Code(code) => code,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_megabyte_arrives_whole_and_ends() {
    let mut entrypoint = Entrypoint::start(Mode::Namespace, &["cat"]);
    let mut agent = entrypoint.launch_as(&with_input());
    let output = Output::of(agent.pipes.remove(0));
    let input = bytes(1 << 20);
    let state = agent.feed(agent.first_input(), &input);
    agent.end_input(state.offset);
    assert!(output.bytes() == input);
    assert_eq!(code(&agent.finish()), 0);
    assert_eq!(entrypoint.code(), 0);
}

#[test]
fn an_agent_that_dies_in_between_loses_and_doubles_nothing() {
    let mut entrypoint = Entrypoint::start(Mode::Subreaper, &["sh", "-c", "exec cat > $WORK/got"]);
    let input = bytes(1_000_000);
    let mut agent = entrypoint.launch_as(&with_input());
    let mut state = agent.first_input();
    // Each agent sends what it believes is missing, and leaves before the last piece is answered.
    for end in [1, 300_001, 300_010, 700_000, 1_000_000] {
        let from = usize::try_from(state.offset).unwrap();
        state = agent.feed(state, &input[from..end]);
        let last = ToEntrypoint::Input {
            offset: state.offset,
            bytes: input[end..(end + 5).min(input.len())].to_vec(),
        };
        agent.send(&last);
        drop(agent);
        agent = entrypoint.welcome();
        state = agent.launched().unwrap();
        assert!(state.offset >= end as u64);
    }
    agent.end_input(1_000_000);
    assert_eq!(code(&agent.finish()), 0);
    assert!(std::fs::read(entrypoint.path("got")).unwrap() == input);
    entrypoint.wait();
}

#[test]
fn without_input_the_program_reads_the_end_and_none_is_taken() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "cat; echo end; sleep 600");
    let mut agent = entrypoint.launch();
    agent.await_line("end");
    agent.send(&ToEntrypoint::Input {
        offset: 0,
        bytes: b"x".to_vec(),
    });
    // This is the next answer: the input was not answered.
    assert_eq!(agent.signal(9, remoteprocess_entrypoint::message::Target::Main), None);
    agent.exited();
}

#[test]
fn a_program_that_closes_its_input_says_so() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "exec <&-; echo closed; sleep 600");
    let mut agent = entrypoint.launch_as(&with_input());
    agent.await_line("closed");
    agent.send(&ToEntrypoint::Input {
        offset: 0,
        bytes: b"x".to_vec(),
    });
    assert!(agent.input().is_over);
    agent.signal(9, remoteprocess_entrypoint::message::Target::Main);
    agent.exited();
}

/// Launches a program whose input is a file.
fn launch_from_file(entrypoint: &Entrypoint, content: &[u8]) -> Agent {
    fs::write(entrypoint.path("stdin"), content).unwrap();
    let agent = entrypoint.launch_as(&Order {
        stdin_from_file: true,
        ..Order::default()
    });
    assert_eq!(agent.first_input, None, "no client can write");
    agent
}

#[rstest]
fn a_file_is_read_to_its_last_byte(
    #[values(Mode::Subreaper, Mode::Namespace)] mode: Mode,
    #[values(0, 1, 900 << 10)] length: usize,
) {
    let mut entrypoint = Entrypoint::start(mode, &["cat"]);
    let content = bytes(length);
    let mut agent = launch_from_file(&entrypoint, &content);
    let output = Output::of(agent.pipes.remove(0));
    assert!(output.bytes() == content);
    assert_eq!(code(&agent.finish()), 0);
    assert_eq!(entrypoint.code(), 0);
}

#[test]
fn a_file_is_opened_as_a_shell_opens_it_and_no_client_can_write() {
    // The program can seek in it.
    let script = "readlink /proc/self/fd/0; tail -c 3; echo; echo end; sleep 600";
    let entrypoint = Entrypoint::shell(Mode::Subreaper, script);
    let mut agent = launch_from_file(&entrypoint, b"12\x00abc");
    agent.await_line(&format!("{}\nabc\nend", entrypoint.path("stdin").display()));
    agent.send(&ToEntrypoint::Input {
        offset: 0,
        bytes: b"x".to_vec(),
    });
    // This is the next answer: the input was not answered.
    assert_eq!(agent.signal(9, remoteprocess_entrypoint::message::Target::Main), None);
    agent.exited();
}

#[test]
fn without_its_file_the_program_is_not_started_and_the_file_is_named() {
    for is_directory in [false, true] {
        let mut entrypoint = Entrypoint::shell(Mode::Subreaper, "echo run > $WORK/runs");
        let path = entrypoint.path("stdin");
        if is_directory {
            fs::create_dir(&path).unwrap();
        }
        let order = Order {
            stdin_from_file: true,
            ..Order::default()
        };
        let mut agent = entrypoint.welcome();
        agent.send(&order.message());
        let Outcome::NotExecutable { message } = agent.exited().outcome else {
            panic!("it was started");
        };
        let begin = format!(
            "cannot start \"sh\": its standard input, {} (spec.stdinFrom), ",
            path.display()
        );
        let why = ["No such file or directory", "it is not a regular file"][usize::from(is_directory)];
        assert!(message.starts_with(&begin) && message.contains(why), "{message}");
        agent.send(&ToEntrypoint::Recorded);
        assert_eq!(entrypoint.code(), 126);
        assert!(!entrypoint.path("runs").exists());
    }
}
