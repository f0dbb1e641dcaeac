//! What the program reads: once, in order, over any number of agents.

use remoteprocess_entrypoint::message::{Outcome, ToEntrypoint};

use crate::agent::{Entrypoint, Finished, Mode, Order};

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
    let output = crate::agent::Output::of(agent.pipes.remove(0));
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
