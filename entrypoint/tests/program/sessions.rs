//! Further commands beside the program: they have streams, pauses and ends of their own, and do not affect the program.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use remoteprocess_entrypoint::input::{InputState, WindowSize};
use remoteprocess_entrypoint::message::{FromEntrypoint, Leftovers, Outcome, StopCause, Target, ToEntrypoint};
use remoteprocess_entrypoint::session::{Command, News, Order as SessionOrder};
use rstest::rstest;

use crate::agent::{Agent, Entrypoint, Mode, Order, Output, eventually};

const SLEEPS: &str = "echo up; exec sleep 600";

fn shell(script: &str) -> Command {
    command(&["sh", "-c", script])
}

fn command(words: &[&str]) -> Command {
    Command {
        words: words.iter().map(|word| word.as_bytes().to_vec().into()).collect(),
        ..Command::default()
    }
}

fn order(agent: &Agent, name: &str, order: SessionOrder) {
    agent.send(&ToEntrypoint::Session {
        session: name.into(),
        order,
    });
}

/// The next news of this session, except about its input.
fn news(agent: &mut Agent, name: &str) -> (News, Vec<OwnedFd>) {
    let program = std::mem::take(&mut agent.pipes);
    loop {
        match agent.receive() {
            FromEntrypoint::Session {
                news: News::Input(_), ..
            } => {}
            FromEntrypoint::Session { session, news } if session == name => {
                return (news, std::mem::replace(&mut agent.pipes, program));
            }
            other => panic!("not of {name}: {other:?}"),
        }
    }
}

/// Starts a session; returns how far its input has come, and its output.
fn start(agent: &mut Agent, name: &str, command: Command) -> (InputState, Vec<OwnedFd>) {
    order(agent, name, SessionOrder::Start(command));
    match news(agent, name) {
        (News::Started(input), outputs) => (input, outputs),
        (other, _) => panic!("not begun: {other:?}"),
    }
}

fn ended(agent: &mut Agent, name: &str) -> Outcome {
    match news(agent, name).0 {
        News::Ended(outcome) => outcome,
        other => panic!("not the end: {other:?}"),
    }
}

fn input_of(agent: &mut Agent) -> InputState {
    match agent.receive() {
        FromEntrypoint::Session {
            news: News::Input(state),
            ..
        } => state,
        other => panic!("not the input: {other:?}"),
    }
}

fn running(mode: Mode) -> (Entrypoint, Agent) {
    let entrypoint = Entrypoint::shell(mode, SLEEPS);
    let agent = entrypoint.launch();
    agent.await_line("up");
    (entrypoint, agent)
}

/// The program ends, and nothing that sessions have started is counted or awaited.
fn await_end(agent: &mut Agent) {
    let begun = Instant::now();
    assert_eq!(agent.signal(libc::SIGKILL, Target::Main), None);
    let exited = loop {
        match agent.receive() {
            FromEntrypoint::Exited(exited) => break exited,
            FromEntrypoint::Session { .. } => {}
            other => panic!("not the end: {other:?}"),
        }
    };
    // Leftovers have 100 ms, and then 2 s.
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert_eq!((exited.outcome, exited.leftovers), (Outcome::Signal(libc::SIGKILL), 0));
}

fn end_program(mut agent: Agent) {
    await_end(&mut agent);
    agent.send(&ToEntrypoint::Recorded);
}

fn is_alive(pid: i32) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn written(entrypoint: &Entrypoint, name: &str) -> i32 {
    let mut pid = None;
    eventually("a process id", || {
        let text = std::fs::read_to_string(entrypoint.path(name)).unwrap_or_default();
        pid = text.strip_suffix('\n').and_then(|text| text.parse().ok());
        pid.is_some()
    });
    pid.unwrap()
}

#[rstest]
fn each_has_streams_environment_directory_and_code_of_its_own(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let (mut entrypoint, mut agent) = running(mode);
    // It does not end before the other one has started.
    let go = entrypoint.path("go");
    let script = format!(
        "echo $MORE ${{WORK:+inherited}} $PWD; echo wrong >&2; read line || echo none; \
         while [ ! -e {} ]; do sleep 0.01; done; exit 7",
        go.display()
    );
    let with_more = Command {
        environment: vec![(b"MORE".to_vec().into(), b"more".to_vec().into())],
        directory: Some(b"/".to_vec().into()),
        ..shell(&script)
    };
    let (input, mut first) = start(&mut agent, "a", with_more);
    assert!(input.is_over, "it takes none");
    let (_, second) = start(&mut agent, "b", shell("kill -TERM $$"));
    std::fs::write(go, "").unwrap();
    assert_eq!((first.len(), second.len()), (2, 2));
    let mut outcomes = [None, None];
    while outcomes.contains(&None) {
        let FromEntrypoint::Session {
            session,
            news: News::Ended(outcome),
        } = agent.receive()
        else {
            panic!("not an end")
        };
        outcomes[usize::from(session == "b")] = Some(outcome);
    }
    assert_eq!(outcomes, [Some(Outcome::Code(7)), Some(Outcome::Signal(libc::SIGTERM))]);
    let stderr = Output::of(first.pop().unwrap()).text();
    assert_eq!(
        (Output::of(first.pop().unwrap()).text().as_str(), stderr.as_str()),
        ("more inherited /\nnone\n", "wrong\n")
    );
    let pipes: Vec<Output> = agent.pipes.drain(..).map(Output::of).collect();
    end_program(agent);
    // Its output was read before; nothing of a session is in the program's streams.
    assert!(pipes.into_iter().all(|pipe| pipe.bytes().is_empty()));
    assert_eq!(entrypoint.code(), 137);
}

#[test]
fn what_cannot_be_started_says_why() {
    let (_entrypoint, mut agent) = running(Mode::Subreaper);
    let outcome = |agent: &mut Agent, name: &str, command| {
        let (_, outputs) = start(agent, name, command);
        let outcome = ended(agent, name);
        assert!(outputs.into_iter().all(|output| Output::of(output).bytes().is_empty()));
        outcome
    };
    let missing = outcome(&mut agent, "a", command(&["no-such-program"]));
    assert!(
        matches!(&missing, Outcome::NotFound { message } if message.contains("not found in PATH")),
        "{missing:?}"
    );
    let refused = outcome(&mut agent, "b", command(&["/etc/passwd"]));
    assert!(
        matches!(&refused, Outcome::NotExecutable { message } if message.contains("not executable")),
        "{refused:?}"
    );
    let nowhere = Command {
        directory: Some(b"/no/such/place".to_vec().into()),
        ..shell("true")
    };
    let nowhere = outcome(&mut agent, "c", nowhere);
    assert!(
        matches!(&nowhere, Outcome::NotExecutable { message } if message.contains("/no/such/place")),
        "{nowhere:?}"
    );
    let path = Command {
        environment: vec![(b"PATH".to_vec().into(), b"/none".to_vec().into())],
        ..command(&["ls"])
    };
    let path = outcome(&mut agent, "d", path);
    assert!(
        matches!(&path, Outcome::NotFound { message } if message.contains("(/none)")),
        "{path:?}"
    );
    end_program(agent);
}

#[test]
fn one_name_is_begun_once_over_all_agents() {
    let (entrypoint, mut agent) = running(Mode::Subreaper);
    let script = "echo $$ >> $WORK/started; trap '' TERM; echo; while :; do sleep 0.1; done";
    let (_, outputs) = start(&mut agent, "a", shell(script));
    order(&agent, "a", SessionOrder::Start(shell(script)));
    assert!(matches!(news(&mut agent, "a").0, News::Refused(_)));
    let pid = written(&entrypoint, "started");
    drop((agent, outputs));
    // Its output was in that agent's memory.
    let mut agent = entrypoint.welcome();
    agent.launched();
    eventually("the end of the session", || !is_alive(pid));
    order(&agent, "a", SessionOrder::Start(shell(script)));
    assert!(matches!(news(&mut agent, "a").0, News::Refused(why) if why.contains("started before")));
    assert_eq!(
        std::fs::read_to_string(entrypoint.path("started")).unwrap(),
        format!("{pid}\n")
    );
    let (_, outputs) = start(&mut agent, "b", shell("echo next"));
    assert_eq!(ended(&mut agent, "b"), Outcome::Code(0));
    assert_eq!(Output::of(outputs.into_iter().next().unwrap()).text(), "next\n");
    end_program(agent);
}

#[test]
fn there_must_be_a_program_beside_which_it_runs() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "exit 8");
    let mut agent = entrypoint.welcome();
    order(&agent, "a", SessionOrder::Start(shell("true")));
    assert!(matches!(news(&mut agent, "a").0, News::Refused(why) if why.contains("not been started")));
    agent.send(&Order::default().message());
    agent.receive();
    assert_eq!(agent.exited().outcome, Outcome::Code(8));
    order(&agent, "a", SessionOrder::Start(shell("true")));
    assert!(matches!(news(&mut agent, "a").0, News::Refused(why) if why.contains("has ended")));
}

#[rstest]
fn a_pause_does_not_stop_it(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let (_entrypoint, mut agent) = running(mode);
    let script = "(while [ -d $WORK ]; do sleep 0.01; done) & echo before; read go; sleep 0.05; echo $go";
    let takes_input = Command {
        stdin: true,
        ..shell(script)
    };
    let (_, mut outputs) = start(&mut agent, "a", takes_input);
    assert_eq!(agent.pause("one", true), None);
    order(
        &agent,
        "a",
        SessionOrder::Input {
            offset: 0,
            bytes: b"went on\n".to_vec(),
        },
    );
    assert_eq!(
        ended(&mut agent, "a"),
        Outcome::Code(0),
        "it runs, and so do the programs that it starts"
    );
    let (_, later) = start(&mut agent, "b", shell("echo also during a pause"));
    assert_eq!(ended(&mut agent, "b"), Outcome::Code(0));
    assert_eq!(
        Output::of(later.into_iter().next().unwrap()).text(),
        "also during a pause\n"
    );
    assert_eq!(agent.pause("two", false), None);
    let output = outputs.remove(0);
    let mut bytes = [0; 100];
    let read = rustix::io::read(&output, &mut bytes[..]).unwrap();
    assert_eq!(&bytes[..read], b"before\nwent on\n");
    end_program(agent);
}

#[rstest]
fn the_end_of_the_program_ends_them_and_waits_for_none(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let (mut entrypoint, mut agent) = running(mode);
    // One ends by the hang-up, one ignores everything, one has left behind a process in a session of its own.
    let polite = shell("trap 'echo bye; exit 4' HUP; echo $$ > $WORK/polite; while :; do sleep 0.05; done");
    let (_, mut outputs) = start(&mut agent, "polite", polite);
    let deaf = "trap '' HUP TERM INT; sh -c 'echo $PPID' > $WORK/deaf; while :; do sleep 0.05; done";
    start(&mut agent, "deaf", shell(deaf));
    start(
        &mut agent,
        "gone",
        shell("setsid sh -c 'echo $$ > $WORK/orphan; exec sleep 600' & exit 0"),
    );
    assert_eq!(ended(&mut agent, "gone"), Outcome::Code(0), "at once");
    for name in ["polite", "deaf", "orphan"] {
        written(&entrypoint, name);
    }
    await_end(&mut agent);
    assert_eq!(ended(&mut agent, "polite"), Outcome::Code(4), "behind the report");
    agent.send(&ToEntrypoint::Recorded);
    assert_eq!(entrypoint.code(), 137);
    assert_eq!(Output::of(outputs.remove(0)).text(), "bye\n");
    if mode == Mode::Subreaper {
        for name in ["polite", "deaf", "orphan"] {
            let pid = written(&entrypoint, name);
            eventually(name, || !is_alive(pid));
        }
    }
}

#[test]
fn a_run_that_waits_for_its_leftovers_waits_for_no_session() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "(echo up; sleep 1; echo last) & exit 3");
    let mut agent = entrypoint.launch_as(&Order {
        leftovers: Leftovers::Wait,
        ..Order::default()
    });
    agent.await_line("up");
    let (_, outputs) = start(&mut agent, "a", shell("echo in; sleep 600"));
    let stdout = Output::of(agent.pipes.remove(0));
    assert_eq!(agent.exited().outcome, Outcome::Code(3));
    assert_eq!(
        ended(&mut agent, "a"),
        Outcome::Signal(libc::SIGHUP),
        "with the last of the run"
    );
    assert_eq!(stdout.text(), "last\n");
    assert_eq!(Output::of(outputs.into_iter().next().unwrap()).text(), "in\n");
    agent.send(&ToEntrypoint::Recorded);
}

#[rstest]
fn a_stop_reaches_them(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let entrypoint = Entrypoint::shell(mode, "trap '' TERM; echo up; while :; do sleep 0.05; done");
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    start(
        &mut agent,
        "a",
        shell("trap '' TERM HUP; echo $$ > $WORK/pid; while :; do sleep 0.05; done"),
    );
    written(&entrypoint, "pid");
    agent.stop(Duration::from_millis(200));
    let exited = loop {
        match agent.receive() {
            FromEntrypoint::Exited(exited) => break exited,
            FromEntrypoint::Session {
                session,
                news: News::Ended(outcome),
            } => {
                assert_eq!((session.as_str(), outcome), ("a", Outcome::Signal(libc::SIGKILL)));
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (exited.outcome, exited.stop),
        (Outcome::Signal(libc::SIGKILL), Some(StopCause::Requested))
    );
}

#[rstest]
fn a_closed_session_is_hung_up_and_killed_if_it_does_not_end(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let (entrypoint, mut agent) = running(mode);
    let (_, outputs) = start(
        &mut agent,
        "a",
        shell("trap 'date +bye > $WORK/bye; exit' HUP; echo up; while :; do sleep 0.05; done"),
    );
    let (_, deaf) = start(
        &mut agent,
        "b",
        shell("trap '' HUP; (trap '' HUP; while :; do sleep 0.05; done) & echo up; wait"),
    );
    for output in [&outputs[0], &deaf[0]] {
        let mut bytes = [0; 3];
        assert_eq!(rustix::io::read(output, &mut bytes), Ok(3));
    }
    order(&agent, "a", SessionOrder::Close);
    // What its trap starts may also finish.
    eventually("the hang-up", || {
        std::fs::read(entrypoint.path("bye")).is_ok_and(|bye| bye == b"bye\n")
    });
    let begun = Instant::now();
    order(&agent, "b", SessionOrder::Close);
    assert_eq!(Output::of(deaf.into_iter().next().unwrap()).text(), "");
    assert!((4..8).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    end_program(agent);
}

#[test]
fn a_megabyte_of_input_arrives_once_with_its_end() {
    let (_entrypoint, mut agent) = running(Mode::Subreaper);
    let cat = Command {
        stdin: true,
        ..command(&["cat"])
    };
    let (mut state, mut outputs) = start(&mut agent, "a", cat);
    let output = Output::of(outputs.remove(0));
    let input: Vec<u8> = (0..1_000_000_usize).map(|at| (at * 31 % 251) as u8).collect();
    while state.offset < 1_000_000 {
        let from = usize::try_from(state.offset).unwrap();
        let to = input.len().min(from + state.room as usize);
        for _ in 0..2 {
            // A repeat is not accepted.
            let bytes = input[from..to].to_vec();
            order(
                &agent,
                "a",
                SessionOrder::Input {
                    offset: from as u64,
                    bytes,
                },
            );
        }
        state = input_of(&mut agent);
        while state.offset == from as u64 || (state.room == 0 && state.offset < 1_000_000) {
            state = input_of(&mut agent);
        }
    }
    order(&agent, "a", SessionOrder::EndInput { offset: 1_000_000 });
    assert_eq!(ended(&mut agent, "a"), Outcome::Code(0));
    assert!(output.bytes() == input);
    end_program(agent);
}

#[rstest]
fn at_a_terminal_it_has_one_of_its_own(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let (_entrypoint, mut agent) = running(mode);
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size < /dev/tty && echo term=${TERM:+set} && \
                  ps -o pid=,sid=,tpgid= -p $$ | awk '{ print ($1 == $2 && $2 == $3) }'; \
                  trap 'stty size; exit 9' WINCH; echo ready; while :; do sleep 0.05; done";
    let at_terminal = Command {
        stdin: true,
        terminal: Some(WindowSize { rows: 31, columns: 101 }),
        ..shell(script)
    };
    let (_, mut outputs) = start(&mut agent, "a", at_terminal);
    assert_eq!(outputs.len(), 1);
    let program = std::mem::replace(&mut agent.pipes, outputs);
    agent.await_line("ready\r");
    order(&agent, "a", SessionOrder::Resize(WindowSize { rows: 50, columns: 90 }));
    outputs = std::mem::replace(&mut agent.pipes, program);
    assert_eq!(ended(&mut agent, "a"), Outcome::Code(9));
    assert_eq!(Output::of(outputs.remove(0)).text(), "50 90\r\n");
    end_program(agent);
}

#[test]
fn the_program_s_file_is_not_the_input_of_a_session() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, SLEEPS);
    std::fs::write(entrypoint.path("stdin"), "of the program").unwrap();
    let mut agent = entrypoint.launch_as(&Order {
        stdin_from_file: true,
        ..Order::default()
    });
    agent.await_line("up");
    let (_, outputs) = start(&mut agent, "a", command(&["cat"]));
    assert_eq!(ended(&mut agent, "a"), Outcome::Code(0));
    assert_eq!(Output::of(outputs.into_iter().next().unwrap()).text(), "");
    end_program(agent);
}
