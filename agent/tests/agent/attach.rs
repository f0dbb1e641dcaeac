//! Writing to the program: each byte once, by one writer, over any number of connections and agents.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse, Input, InputEnd, WindowSize};
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::{Code, Status, Streaming};

use super::in_time;
use super::pod::{Options, Pod, launch_with};
use super::relay::{Archive, Operator, TestRelay};
use super::verbs::get_state;

/// One connection of a writer.
struct Connection {
    requests: mpsc::Sender<AttachRequest>,
    answers: Streaming<AttachResponse>,
}

fn opening(session: &str) -> AttachOpen {
    AttachOpen {
        protocol: PROTOCOL,
        session: session.into(),
        user: format!("user of {session}"),
        ..AttachOpen::default()
    }
}

fn resuming(session: &str) -> AttachOpen {
    AttachOpen {
        resume: true,
        ..opening(session)
    }
}

impl Connection {
    async fn open(operator: &Operator, address: &str, open: AttachOpen) -> Result<Self, Status> {
        let mut agent = operator
            .dial(address)
            .await
            .ok_or_else(|| Status::unavailable("no agent"))?;
        let (requests, mut outgoing) = mpsc::channel(4);
        let connection = Self::say(&requests, Asked::Open(open));
        connection.await;
        let outgoing = futures::stream::poll_fn(move |cx| outgoing.poll_recv(cx));
        let answers = agent.attach(outgoing).await?.into_inner();
        Ok(Self { requests, answers })
    }

    async fn say(requests: &mpsc::Sender<AttachRequest>, asked: Asked) {
        // Fails only when the connection has broken, which the answers tell.
        let _ = requests.send(AttachRequest { request: Some(asked) }).await;
    }

    async fn send(&self, offset: u64, bytes: &[u8]) {
        let bytes = bytes.to_vec().into();
        Self::say(&self.requests, Asked::Input(Input { offset, bytes })).await;
    }

    async fn end(&self, offset: u64) {
        Self::say(&self.requests, Asked::End(InputEnd { offset })).await;
    }

    async fn answer(&mut self) -> Result<AttachResponse, Status> {
        let answer = in_time("an answer", self.answers.message()).await?;
        answer.ok_or_else(|| Status::unavailable("the stream ended"))
    }

    /// Waits until the input up to this offset was accepted.
    async fn accepted(&mut self, offset: u64) -> Result<(), Status> {
        while self.answer().await?.accepted < offset {}
        Ok(())
    }
}

/// Runs the home in a task, which returns what it has received, while the test does something else.
fn be_home(mut relay: TestRelay) -> (Operator, JoinHandle<Archive>) {
    let operator = relay.operator();
    (operator, tokio::spawn(async move { relay.be_home(|_| {}).await }))
}

/// A port at which successive agents of one pod are found.
pub(crate) fn at_a_port() -> (&'static [(&'static str, &'static str)], String) {
    let port = remoteprocess_ports::free_port();
    let env = vec![("RPROC_LISTEN_PORT", &*port.to_string().leak())];
    (env.leak(), format!("127.0.0.1:{port}"))
}

/// Opens the input as soon as an agent answers.
async fn opened(operator: &Operator, address: &str, open: &AttachOpen) -> Connection {
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    loop {
        pause.tick().await;
        match Connection::open(operator, address, open.clone()).await {
            Ok(connection) => return connection,
            Err(status) => assert!(
                matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled),
                "{status:?}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabyte_arrives_once_though_connections_break_and_agents_die() {
    let (env, address) = at_a_port();
    let relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        env,
        ..launch_with(|launch| launch.stdin = true)
    };
    let mut pod = Pod::start(&relay, &options);
    pod.launch(&["cat"]);
    let (operator, home) = be_home(relay);
    let input: Vec<u8> = (0..1_000_000_usize).map(|at| (at * 31 % 251) as u8).collect();
    let mut open = opening("a");
    let mut rounds = 0;
    in_time("all of the input", async {
        loop {
            let mut connection = opened(&operator, &address, &open).await;
            open = resuming("a");
            let Ok(answer) = connection.answer().await else {
                continue;
            };
            // From a little below what is known to be missing, as a writer does that has missed some answers.
            let mut at = usize::try_from(answer.accepted).unwrap().saturating_sub(100);
            rounds += 1;
            let enough = (at + 150_000).min(input.len());
            while at < enough {
                let end = (at + 33_333).min(input.len());
                connection.send(at as u64, &input[at..end]).await;
                at = end;
            }
            match (at == input.len(), rounds % 2) {
                (true, _) => {
                    connection.end(1_000_000).await;
                    while let Ok(answer) = connection.answer().await {
                        if answer.is_over {
                            return;
                        }
                    }
                }
                (false, 0) => pod.signal_agent(Signal::KILL),
                (false, _) => drop(connection.accepted(at as u64 - 1000).await),
            }
        }
    })
    .await;
    let archive = in_time("the end", home).await.unwrap();
    assert_eq!((archive.exit().outcome(), archive.exit().value), (Outcome::Code, 0));
    assert_eq!(archive.cursor.stdout, 1_000_000);
    assert_eq!(archive.hashes[0].clone().finalize(), Sha256::digest(&input));
    assert!(
        rounds > 6 && archive.breaks > 2,
        "{rounds} rounds, {} breaks",
        archive.breaks
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_closes_its_input_while_it_flows_keeps_its_own_code() {
    let (env, address) = at_a_port();
    let relay = TestRelay::start().await;
    let options = Options {
        env,
        ..launch_with(|launch| launch.stdin = true)
    };
    let mut pod = Pod::start(&relay, &options);
    let directory = tempfile::tempdir().unwrap();
    let may_end = directory.path().join("end");
    let script = format!(
        "exec <&-; until [ -e {} ]; do sleep 0.02; done; exit 5",
        may_end.display()
    );
    pod.launch(&["sh", "-c", &script]);
    let (operator, home) = be_home(relay);
    let mut connection = opened(&operator, &address, &opening("a")).await;
    let piece = [b'x'; 32 * 1024];
    connection.answer().await.unwrap();
    for number in 0..4 {
        connection.send(number * piece.len() as u64, &piece).await;
    }
    while !connection.answer().await.unwrap().is_over {}
    // The client continues to send: it has not been told yet.
    connection.send(4 * piece.len() as u64, &piece).await;
    connection.end(5 * piece.len() as u64).await;
    std::fs::write(&may_end, "").unwrap();
    let exit = in_time("the end", home).await.unwrap().exit.unwrap();
    assert_eq!((exit.outcome(), exit.value), (Outcome::Code, 5));
    // The only thing said of the input is how far it has come.
    let last = loop {
        match connection.answer().await {
            Ok(answer) => assert!(answer.is_over),
            Err(status) => break status,
        }
    };
    assert_ne!(last.code(), Code::InvalidArgument, "no hole: {last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_writes_and_another_takes_over_only_when_it_says_so() {
    let mut relay = TestRelay::start().await;
    let options = launch_with(|launch| launch.stdin = true);
    relay.grants.store(false, Ordering::Relaxed);
    let mut pod = Pod::start(&relay, &options);
    pod.shell("cat; exit 5");
    let address = relay.next_start().await.address;
    let operator = relay.operator();
    // Before there is a program to read it.
    let mut first = opened(&operator, &address, &opening("a")).await;
    assert_eq!(first.answer().await.unwrap().accepted, 0);
    first.send(0, b"from a\n").await;
    relay.grants.store(true, Ordering::Relaxed);
    first.accepted(7).await.unwrap();
    let held = Connection::open(&operator, &address, opening("b")).await.err().unwrap();
    assert_eq!(
        (held.code(), held.message().contains("user of a")),
        (Code::ResourceExhausted, true)
    );
    let take_over = AttachOpen {
        take_over: true,
        ..opening("b")
    };
    let mut second = opened(&operator, &address, &take_over).await;
    let taken = loop {
        if let Err(status) = first.answer().await {
            break status;
        }
    };
    assert_eq!(
        (taken.code(), taken.message().contains("user of b")),
        (Code::Aborted, true)
    );
    let refused = Connection::open(&operator, &address, resuming("a"))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(second.answer().await.unwrap().accepted, 7);
    second.send(7, b"from b\n").await;
    second.accepted(14).await.unwrap();
    second.send(20, b"a hole").await;
    let hole = loop {
        if let Err(status) = second.answer().await {
            break status;
        }
    };
    assert_eq!(hole.code(), Code::InvalidArgument);
    // The writer let go: the next one need not wait.
    let second = opened(&operator, &address, &resuming("b")).await;
    drop(second.requests);
    let third = opened_after(&operator, &address).await;
    third.send(14, b"from c").await;
    third.end(20).await;
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!(
        (archive.head(0).as_str(), archive.exit().value),
        ("from a\nfrom b\nfrom c", 5)
    );
}

/// The agent hears of the end of a stream a moment later.
async fn opened_after(operator: &Operator, address: &str) -> Connection {
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let patient = async {
        loop {
            pause.tick().await;
            if let Ok(connection) = Connection::open(operator, address, opening("c")).await {
                return connection;
            }
        }
    };
    in_time("the input", patient).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_at_a_terminal_sees_keys_and_sizes() {
    let mut relay = TestRelay::start().await;
    let options = launch_with(|launch| {
        launch.stdin = true;
        launch.terminal = Some(WindowSize { rows: 24, columns: 80 });
    });
    relay.grants.store(false, Ordering::Relaxed);
    let mut pod = Pod::start(&relay, &options);
    pod.shell("stty size; read line; echo got $line; trap 'stty size; exit 4' WINCH; while :; do sleep 0.05; done");
    let address = relay.next_start().await.address;
    let operator = relay.operator();
    let mut writer = opened(&operator, &address, &opening("a")).await;
    let size = |rows, columns| Asked::Resize(WindowSize { rows, columns });
    Connection::say(&writer.requests, size(33, 111)).await;
    writer.send(0, b"next\r").await;
    relay.grants.store(true, Ordering::Relaxed);
    writer.accepted(5).await.unwrap();
    let mut agent = operator.dial(&address).await.unwrap();
    in_time("the first size and the line", async {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        // The terminal echoes what is typed; whether before or after the size is a matter of timing.
        let wanted = "next\r\n33 111\r\ngot next\r\n".len() as u64;
        while agent
            .get_state(get_state())
            .await
            .unwrap()
            .into_inner()
            .written
            .unwrap()
            .stdout
            < wanted
        {
            look.tick().await;
        }
    })
    .await;
    let home = tokio::spawn(async move { relay.be_home(|_| {}).await });
    // Only a change of size after the trap is set is seen; so the size changes until the program has ended.
    let mut rows = 40;
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    let changing = async {
        while writer
            .answers
            .message()
            .now_or_never()
            .is_none_or(|answer| matches!(answer, Ok(Some(answer)) if !answer.is_over))
        {
            rows += 1;
            Connection::say(&writer.requests, size(rows, 90)).await;
            pause.tick().await;
        }
    };
    in_time("the end of the input", changing).await;
    let archive = in_time("the end", home).await.unwrap();
    let text = archive.head(0);
    assert!(text.contains("33 111\r\n"), "{text:?}");
    assert!(text.contains("got next\r\n") && text.contains(" 90\r\n"), "{text:?}");
    assert_eq!((archive.exit().value, archive.cursor.stderr), (4, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_sees_the_size_of_its_terminal_without_an_attached_client() {
    for has_input in [false, true] {
        let relay = TestRelay::start().await;
        let options = launch_with(|launch| {
            launch.stdin = has_input;
            launch.terminal = Some(WindowSize { rows: 50, columns: 132 });
        });
        let mut pod = Pod::start(&relay, &options);
        pod.shell("stty size <&1");
        let (_, home) = be_home(relay);
        let archive = in_time("the end", home).await.unwrap();
        assert_eq!(archive.head(0), "50 132\r\n");
    }
}

/// Before the launch the agent does not know whether the program has an input.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_without_input_takes_none() {
    let mut relay = TestRelay::start().await;
    relay.grants.store(false, Ordering::Relaxed);
    let mut pod = Pod::start(&relay, &Options::default());
    pod.shell("sleep 600");
    let address = relay.next_start().await.address;
    let operator = relay.operator();
    let mut early = opened(&operator, &address, &opening("a")).await;
    assert!(!early.answer().await.unwrap().is_over);
    relay.grants.store(true, Ordering::Relaxed);
    let refused = early.accepted(1).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    let refused = Connection::open(&operator, &address, opening("b")).await;
    assert_eq!(refused.err().unwrap().code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_reads_a_file_takes_no_input_of_clients_and_says_why() {
    let (env, address) = at_a_port();
    let mut relay = TestRelay::start().await;
    relay.grants.store(false, Ordering::Relaxed);
    let options = Options {
        supervised: true,
        env,
        ..launch_with(|launch| launch.stdin_from_file = true)
    };
    let mut pod = Pod::start(&relay, &options);
    std::fs::write(pod.path("stdin"), "from the file").unwrap();
    let (ready, end) = (pod.path("ready"), pod.path("end"));
    pod.shell(&format!(
        "cat; touch {}; until test -e {}; do sleep 0.02; done",
        ready.display(),
        end.display()
    ));
    relay.next_start().await;
    let operator = relay.operator();
    let mut early = opened(&operator, &address, &opening("a")).await;
    early.send(0, b"from a client").await;
    assert!(!early.answer().await.unwrap().is_over);
    relay.grants.store(true, Ordering::Relaxed);
    let names_it = |refused: Status| {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("spec.stdinFrom"), "{refused:?}");
    };
    names_it(early.accepted(1).await.unwrap_err());
    let refused = Connection::open(&operator, &address, opening("b")).await;
    names_it(refused.err().unwrap());
    // The next agent knows it, too.
    super::until("the program runs", || ready.exists()).await;
    let before = pod.agent_pid();
    pod.signal_agent(Signal::KILL);
    super::until("another agent", || {
        pod.agent_pid().is_some_and(|pid| Some(pid) != before)
    })
    .await;
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let refused = loop {
        pause.tick().await;
        match Connection::open(&operator, &address, opening("c")).await {
            Err(status) if status.code() == Code::FailedPrecondition => break status,
            Err(_) => {}
            Ok(_) => panic!("it takes input"),
        }
    };
    names_it(refused);
    std::fs::write(end, "").unwrap();
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    assert_eq!((archive.head(0).as_str(), archive.exit().value), ("from the file", 0));
}
