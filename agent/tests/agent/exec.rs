//! Further commands beside the program, over any number of connections, for as long as their agent lives.

use std::sync::atomic::Ordering;
use std::time::Duration;

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::exec_request::Request as Asked;
use remoteprocess_proto::v1::exec_response::Response as Said;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::{
    Cursor, ExecOpen, ExecRequest, ExecResponse, Exit, HangUp, Input, InputEnd, Stream as WireStream,
};
use remoteprocess_proto::v1::{Reason, Variable, WindowSize};
use rustix::process::Signal;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use super::attach::at_a_port;
use super::pod::{Options, Pod};
use super::relay::{Operator, TestRelay};
use super::{in_time, until};

const SLEEPS: &str = "echo up; exec sleep 600";

fn command(session: &str, words: &[&str]) -> ExecOpen {
    ExecOpen {
        protocol: PROTOCOL,
        session: session.into(),
        command: words.iter().map(|word| word.as_bytes().to_vec().into()).collect(),
        user: "alice".into(),
        ..ExecOpen::default()
    }
}

fn shell(session: &str, script: &str) -> ExecOpen {
    command(session, &["sh", "-c", script])
}

/// One connection to a session.
struct Connection {
    requests: mpsc::Sender<ExecRequest>,
    answers: Streaming<ExecResponse>,
}

impl Connection {
    async fn open(operator: &Operator, address: &str, open: ExecOpen) -> Result<Self, Status> {
        let agent = operator.dial(address).await;
        let mut agent = agent.ok_or_else(|| Status::unavailable("no agent"))?;
        let (requests, mut outgoing) = mpsc::channel(64);
        let request = Some(Asked::Open(open));
        requests.send(ExecRequest { request }).await.unwrap();
        let outgoing = futures::stream::poll_fn(move |cx| outgoing.poll_recv(cx));
        let answers = agent.exec(outgoing).await?.into_inner();
        Ok(Self { requests, answers })
    }

    async fn say(&self, asked: Asked) {
        // Fails only when the connection has broken, which the answers tell.
        let _ = self.requests.send(ExecRequest { request: Some(asked) }).await;
    }

    async fn answer(&mut self) -> Result<Said, Status> {
        let answer = in_time("an answer", self.answers.message()).await?;
        let answer = answer.ok_or_else(|| Status::unavailable("the stream ended"))?;
        Ok(answer.response.unwrap())
    }
}

/// What a client has received.
#[derive(Default)]
struct Got {
    output: [Vec<u8>; 2],
    accepted: u64,
}

impl Got {
    fn cursor(&self) -> Cursor {
        Cursor {
            stdout: self.output[0].len() as u64,
            stderr: self.output[1].len() as u64,
        }
    }

    fn take(&mut self, said: Said) -> Option<Exit> {
        match said {
            Said::Input(input) => self.accepted = input.accepted,
            Said::Data(data) => {
                let output = &mut self.output[usize::from(data.stream() == WireStream::Stderr)];
                assert_eq!(data.offset, output.len() as u64, "dense");
                output.extend_from_slice(&data.bytes);
            }
            Said::Exit(exit) => return Some(exit),
        }
        None
    }

    /// Up to the end, on one connection.
    async fn finish(&mut self, connection: &mut Connection) -> Result<Exit, Status> {
        loop {
            if let Some(exit) = self.take(connection.answer().await?) {
                return Ok(exit);
            }
            connection.say(Asked::Received(self.cursor())).await;
        }
    }

    fn text(&self, index: usize) -> String {
        String::from_utf8_lossy(&self.output[index]).into_owned()
    }
}

/// A session from its beginning to its end.
async fn run(operator: &Operator, address: &str, open: ExecOpen) -> Result<(Got, Exit), Status> {
    let mut got = Got::default();
    let mut connection = Connection::open(operator, address, open).await?;
    let exit = got.finish(&mut connection).await?;
    Ok((got, exit))
}

/// A program that sleeps, and where its agent is.
async fn sleeper(relay: &mut TestRelay) -> (Pod, String) {
    let mut pod = Pod::start(relay, &Options::default());
    pod.shell(SLEEPS);
    let address = relay.next_start().await.address;
    let operator = relay.operator();
    in_time("the start", async {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while run(&operator, &address, command("look", &["true"])).await.is_err() {
            look.tick().await;
        }
    })
    .await;
    (pod, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_streams_a_code_an_environment_and_a_terminal_of_its_own() {
    let mut relay = TestRelay::start().await;
    let (_pod, address) = sleeper(&mut relay).await;
    let operator = relay.operator();
    let variable = Variable {
        name: "MORE".into(),
        value: "more".into(),
    };
    let open = ExecOpen {
        environment: vec![variable],
        directory: Some("/".into()),
        ..shell("a", "echo $MORE $PWD; echo wrong >&2; exit 7")
    };
    let (got, exit) = run(&operator, &address, open).await.unwrap();
    assert_eq!((got.text(0).as_str(), got.text(1).as_str()), ("more /\n", "wrong\n"));
    assert_eq!((exit.outcome(), exit.value), (Outcome::Code, 7));
    let at_terminal = ExecOpen {
        terminal: Some(WindowSize { rows: 31, columns: 101 }),
        ..shell("b", "stty size; tty >&2; kill -9 $$")
    };
    let (got, exit) = run(&operator, &address, at_terminal).await.unwrap();
    assert!(
        got.text(0).starts_with("31 101\r\n/dev/") && got.output[1].is_empty(),
        "{}",
        got.text(0)
    );
    assert_eq!(
        (exit.outcome(), exit.value, exit.reason()),
        (Outcome::Signal, 9, Reason::Signaled)
    );
    for (words, value, reason) in [
        (["no-such-program"], 127, Reason::CommandNotFound),
        (["/etc/passwd"], 126, Reason::CommandNotExecutable),
    ] {
        let (_, exit) = run(&operator, &address, command(words[0], &words)).await.unwrap();
        assert_eq!(
            (exit.outcome(), exit.value, exit.reason()),
            (Outcome::Code, value, reason)
        );
        assert!(exit.message.contains(words[0]), "{}", exit.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabyte_goes_in_and_comes_back_once_though_connections_break() {
    let mut relay = TestRelay::start().await;
    let (_pod, address) = sleeper(&mut relay).await;
    let operator = relay.operator();
    let input: Vec<u8> = (0..1_000_000_usize).map(|at| (at * 31 % 251) as u8).collect();
    let mut open = ExecOpen {
        stdin: true,
        ..shell("a", "cat; echo done >&2; exit 5")
    };
    let mut got = Got::default();
    let mut rounds: usize = 0;
    let exit = in_time("all of it", async {
        loop {
            rounds += 1;
            open.received = Some(got.cursor());
            let mut connection = Connection::open(&operator, &address, open.clone()).await.unwrap();
            open.resume = true;
            let begin = got.output[0].len();
            assert_eq!(
                got.take(connection.answer().await.unwrap()),
                None,
                "how far the input has come"
            );
            // From a little below what is known to be missing, as a client does that has missed some answers.
            let mut at = usize::try_from(got.accepted).unwrap().saturating_sub(100);
            let enough = (at + 150_000).min(input.len());
            while at < enough {
                let end = (at + 33_333).min(enough);
                let bytes = input[at..end].to_vec().into();
                connection
                    .say(Asked::Input(Input {
                        offset: at as u64,
                        bytes,
                    }))
                    .await;
                at = end;
            }
            if at == input.len() {
                connection.say(Asked::End(InputEnd { offset: 1_000_000 })).await;
                return got.finish(&mut connection).await.unwrap();
            }
            // Some is confirmed, some has arrived, some is on its way.
            while got.output[0].len() < begin + 20_000 * (rounds % 5) {
                assert_eq!(got.take(connection.answer().await.unwrap()), None);
            }
            if rounds.is_multiple_of(2) {
                connection.say(Asked::Received(got.cursor())).await;
            }
            drop(connection);
        }
    })
    .await;
    assert_eq!((exit.outcome(), exit.value), (Outcome::Code, 5));
    assert!(got.output[0] == input && got.text(1) == "done\n");
    assert!(rounds > 6, "{rounds} rounds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_output_is_not_read_is_held_back_and_loses_nothing() {
    let mut relay = TestRelay::start().await;
    let (pod, address) = sleeper(&mut relay).await;
    let operator = relay.operator();
    let script = format!("seq 400000; touch {}", pod.path("through").display());
    let connection = Connection::open(&operator, &address, shell("a", &script))
        .await
        .unwrap();
    drop(connection);
    let again = ExecOpen {
        resume: true,
        ..shell("a", &script)
    };
    let mut got = Got::default();
    let mut connection = Connection::open(&operator, &address, again.clone()).await.unwrap();
    // Nothing is confirmed: only this much arrives, and the command is held back.
    while got.output[0].len() < 256 * 1024 {
        assert_eq!(got.take(connection.answer().await.unwrap()), None);
    }
    assert_eq!(got.output[0].len(), 256 * 1024);
    assert!(!pod.path("through").exists());
    drop(connection);
    // A client that has received nothing gets all of it.
    let mut got = Got::default();
    let mut connection = Connection::open(&operator, &address, again).await.unwrap();
    assert_eq!(got.finish(&mut connection).await.unwrap().value, 0);
    let wanted: String = (1..=400_000).map(|number| format!("{number}\n")).collect();
    assert!(got.output[0] == wanted.into_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_loses_its_sessions_and_reports_it() {
    let (env, address) = at_a_port();
    let relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        env,
        ..Options::default()
    };
    let mut pod = Pod::start(&relay, &options);
    pod.shell(SLEEPS);
    let operator = relay.operator();
    let hung_up = pod.path("hung-up");
    let script = format!(
        "trap '' PIPE; echo $$ >> {}; trap 'touch {}; exit' HUP; echo in; while :; do sleep 0.05; done",
        pod.path("started").display(),
        hung_up.display()
    );
    let mut connection = in_time("the session", async {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        loop {
            look.tick().await;
            if let Ok(connection) = Connection::open(&operator, &address, shell("a", &script)).await {
                return connection;
            }
        }
    })
    .await;
    let mut got = Got::default();
    while got.output[0] != b"in\n" {
        assert_eq!(got.take(connection.answer().await.unwrap()), None);
    }
    pod.signal_agent(Signal::KILL);
    while connection.answer().await.is_ok() {}
    until("the hang-up", || hung_up.exists()).await;
    // Once for a client that knows that it was started, and once for a client that does not.
    for (resume, code) in [(true, Code::Aborted), (false, Code::FailedPrecondition)] {
        let open = ExecOpen {
            resume,
            ..shell("a", &script)
        };
        let status = in_time("the answer of the next agent", async {
            let mut look = tokio::time::interval(Duration::from_millis(20));
            loop {
                look.tick().await;
                match run(&operator, &address, open.clone()).await.err().unwrap() {
                    early if matches!(early.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {}
                    // The next agent has not met the entrypoint.
                    early if early.message().contains("not been started yet") => {}
                    status => return status,
                }
            }
        })
        .await;
        assert_eq!(status.code(), code, "{status:?}");
    }
    let started = std::fs::read_to_string(pod.path("started")).unwrap();
    assert_eq!(started.lines().count(), 1, "once");
    let (_, exit) = run(&operator, &address, shell("b", "exit 4")).await.unwrap();
    assert_eq!(exit.value, 4, "the program and its container are as they were");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_only_its_own_session() {
    let mut relay = TestRelay::start().await;
    let (pod, address) = sleeper(&mut relay).await;
    let operator = relay.operator();
    let hung_up = pod.path("hung-up");
    let script = format!(
        "trap 'touch {}; exit' HUP; echo in; while :; do sleep 0.05; done",
        hung_up.display()
    );
    let mut connection = Connection::open(&operator, &address, shell("a", &script))
        .await
        .unwrap();
    while !matches!(connection.answer().await.unwrap(), Said::Data(_)) {}
    let foreign = ExecOpen {
        user: "bob".into(),
        ..shell("a", &script)
    };
    let refused = Connection::open(&operator, &address, foreign).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // The later connection of the same client has it.
    let later = Connection::open(&operator, &address, shell("a", &script))
        .await
        .unwrap();
    let superseded = loop {
        if let Err(status) = connection.answer().await {
            break status;
        }
    };
    assert_eq!(superseded.code(), Code::Aborted);
    drop(connection);
    assert!(!hung_up.exists(), "an end without a word");
    later.say(Asked::HangUp(HangUp {})).await;
    until("the hang-up", || hung_up.exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_sessions_is_limited_and_needs_a_program() {
    let mut relay = TestRelay::start().await;
    relay.grants.store(false, Ordering::Relaxed);
    let mut pod = Pod::start(&relay, &Options::default());
    let go = pod.path("go");
    pod.shell(&format!("while [ ! -f {} ]; do sleep 0.05; done; exit 3", go.display()));
    let address = relay.next_start().await.address;
    let operator = relay.operator();
    let early = run(&operator, &address, shell("early", "true")).await.err().unwrap();
    assert_eq!(
        (early.code(), early.message().contains("not been started")),
        (Code::FailedPrecondition, true)
    );
    relay.grants.store(true, Ordering::Relaxed);
    let home = tokio::spawn(async move { relay.be_home(|_| {}).await });
    let script = "trap 'exit 9' HUP; echo in; while :; do sleep 0.05; done";
    let mut connections = Vec::new();
    in_time("sixteen sessions", async {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while connections.len() < 16 {
            let open = shell(&connections.len().to_string(), script);
            match Connection::open(&operator, &address, open).await {
                Ok(connection) => connections.push(connection),
                Err(_) => drop(look.tick().await),
            }
        }
    })
    .await;
    let full = run(&operator, &address, shell("more", "true")).await.err().unwrap();
    assert_eq!(full.code(), Code::ResourceExhausted);
    for connection in &mut connections {
        while !matches!(connection.answer().await.unwrap(), Said::Data(_)) {}
    }
    // The end of the program ends all sessions, and is the same as without them.
    std::fs::write(go, "").unwrap();
    for mut connection in connections {
        let mut got = Got {
            output: [b"in\n".to_vec(), Vec::new()],
            ..Got::default()
        };
        match got.finish(&mut connection).await {
            Ok(exit) if exit.outcome() == Outcome::Code => assert_eq!(exit.value, 9, "hung up"),
            // The container ended first.
            Ok(exit) => assert!(exit.message.contains("the program has ended"), "{exit:?}"),
            Err(status) => assert_ne!(status.code(), Code::Ok),
        }
    }
    let archive = in_time("the end", home).await.unwrap();
    let exit = archive.exit();
    assert_eq!((exit.outcome(), exit.value, exit.leftovers), (Outcome::Code, 3, 0));
    assert!(exit.sealed && archive.total() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_of_a_command_that_does_not_read_its_input_has_the_commands_own_code() {
    let mut relay = TestRelay::start().await;
    let (_pod, address) = sleeper(&mut relay).await;
    let operator = relay.operator();
    let directory = tempfile::tempdir().unwrap();
    let may_end = directory.path().join("end");
    let script = format!(
        "exec <&-; until [ -e {} ]; do sleep 0.02; done; exit 5",
        may_end.display()
    );
    let open = ExecOpen {
        stdin: true,
        ..shell("deaf", &script)
    };
    let mut connection = Connection::open(&operator, &address, open).await.unwrap();
    let piece = |number: u64| {
        Asked::Input(Input {
            offset: number * 32 * 1024,
            bytes: vec![b'x'; 32 * 1024].into(),
        })
    };
    for number in 0..4 {
        connection.say(piece(number)).await;
    }
    let mut got = Got::default();
    loop {
        let said = connection.answer().await.unwrap();
        let is_over = matches!(&said, Said::Input(input) if input.is_over);
        assert!(got.take(said).is_none(), "the command still runs");
        if is_over {
            break;
        }
    }
    // As a client does that has not been told yet, or has only now read this far.
    connection.say(piece(4)).await;
    connection.say(Asked::End(InputEnd { offset: 5 * 32 * 1024 })).await;
    std::fs::write(&may_end, "").unwrap();
    let exit = got.finish(&mut connection).await.unwrap();
    assert_eq!((exit.outcome(), exit.value), (Outcome::Code, 5));
}
