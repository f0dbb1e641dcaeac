//! The side of the process: its output and its input, or a command in its container.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use remoteprocess_client::attach::Writer;
use remoteprocess_client::exec::{Exec, Over};
use remoteprocess_client::pool::Shared;
use remoteprocess_client::stream::{self, Local};
use remoteprocess_client::{Cluster, DialError, Follower, Ledger, Progress, Sink, SinkError, gap, output};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::{Cursor, Data, ExecOpen, Exit, Gap, ProcessKey, Reason, State, Variable, WindowSize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::Kind;
use super::message::{InputState, Open, ServerMessage};
use super::socket::Outgoing;
use crate::exit;
use crate::interact::DEFAULT_WINDOW;
use crate::output::{Control, Controlled};
use crate::replay::{reached, want};

/// The type of the terminal in the page, which nearly every image knows.
const TERM: &str = "xterm-256color";
/// The command of an exec that names none.
const SHELL: &str = "sh";

/// What a terminal will be connected to.
pub(super) struct Target {
    cluster: Arc<Cluster>,
    kind: Kind,
    process: ProcessKey,
}

impl Target {
    /// A target without a connection so far.
    pub(super) fn new(cluster: Arc<Cluster>, kind: Kind, process: ProcessKey) -> Self {
        Self { cluster, kind, process }
    }

    /// Serves the client until the process or the command has ended, or `left` becomes true. Its last message is the
    /// reason.
    pub(super) async fn run(
        self,
        open: Open,
        out: Outgoing,
        local: mpsc::Receiver<Local>,
        left: watch::Receiver<bool>,
    ) {
        let key = ProcessKey {
            uid: open.uid.clone(),
            ..self.process
        };
        // A connection of its own: a client that takes no output delays no other terminal.
        let line = Shared::new(self.cluster);
        // A client that is gone needs no answer.
        let _ = match self.kind {
            Kind::Attach => attach(line, key, &open, &out, local, left).await,
            Kind::Exec => exec(line, key, open, &out, local, left).await,
        };
    }
}

async fn attach(
    mut line: Shared,
    key: ProcessKey,
    open: &Open,
    out: &Outgoing,
    local: mpsc::Receiver<Local>,
    left: watch::Receiver<bool>,
) -> Result<(), SinkError> {
    let reached = tokio::select! {
        reached = reached(&mut line, &key) => reached,
        () = came(&left) => return Ok(()),
    };
    if reached.is_some() {
        out.tell(&ServerMessage::Live).await?;
    }
    let sink = ClientSink::new(out, reached.unwrap_or_default());
    let mut follower = Follower {
        ledger: Ledger::new(want(&key, reached)),
        dial: line.clone(),
        sink: sink.clone(),
        progress: ClientProgress::new(out, reached.is_some()),
        unknown_until: Instant::now(),
    };
    let followed = {
        let mut writing = std::pin::pin!(input(line, &key, open, out, (local, left.clone())));
        let mut following = std::pin::pin!(follower.run());
        let mut is_writing = true;
        loop {
            let followed = tokio::select! {
                followed = &mut following => Some(followed),
                told = &mut writing, if is_writing => {
                    is_writing = false;
                    told?;
                    continue;
                }
                () = came(&left) => None,
            };
            match followed {
                Some(followed) if !*left.borrow() => break followed,
                // It tells the relay that the input is free.
                _ if is_writing => return writing.await,
                _ => return Ok(()),
            }
        }
    };
    sink.restore().await?;
    let last = match followed {
        Ok(Some(exit)) => {
            let message = exit::verdict(&key.name, &exit, &follower.ledger).message;
            ended(&key.name, &exit, message)
        }
        Ok(None) => failed(Code::Unknown, "the output ended without the end of the process"),
        Err(output::Error::Output(error)) => return Err(error),
        Err(output::Error::Relay(status)) => failed(status.code(), status.message()),
        Err(output::Error::Dial(error)) => failed(dial_code(&error), &error.to_string()),
        Err(error) => failed(Code::Unknown, &error.to_string()),
    };
    out.tell(&last).await
}

/// Passes on the input as long as the process takes it, and tells why it does not anymore.
async fn input(
    line: Shared,
    key: &ProcessKey,
    open: &Open,
    out: &Outgoing,
    (local, left): (mpsc::Receiver<Local>, watch::Receiver<bool>),
) -> Result<(), SinkError> {
    if open.watch {
        return Ok(());
    }
    let mut writer = Writer::new(line, key.clone(), open.take_over, true);
    if let Some(size) = open.size {
        writer.resize(size.into());
    }
    let written = writer.run(local, left.clone()).await;
    if *left.borrow() {
        return Ok(());
    }
    match written {
        Ok(()) => {
            let message = "the program does not read its input anymore".to_owned();
            let state = InputState::Closed;
            out.tell(&ServerMessage::Input { state, message }).await
        }
        // The output tells how it has ended.
        Err(stream::Error::Relay(status)) if status.code() == Code::OutOfRange => Ok(()),
        Err(error) => {
            let state = match &error {
                stream::Error::Relay(status) if is_held(status) => InputState::Held,
                _ => InputState::Refused,
            };
            let message = error.to_string();
            out.tell(&ServerMessage::Input { state, message }).await
        }
    }
}

/// Whether another client has the input.
fn is_held(status: &Status) -> bool {
    matches!(status.code(), Code::ResourceExhausted | Code::Aborted)
}

async fn exec(
    line: Shared,
    key: ProcessKey,
    open: Open,
    out: &Outgoing,
    local: mpsc::Receiver<Local>,
    left: watch::Receiver<bool>,
) -> Result<(), SinkError> {
    let command = match open.command.is_empty() {
        true => vec![SHELL.to_owned()],
        false => open.command,
    };
    let size = open.size.map_or(DEFAULT_WINDOW, WindowSize::from);
    let opening = ExecOpen {
        protocol: PROTOCOL,
        process: Some(key),
        command: command.into_iter().map(Bytes::from).collect(),
        environment: vec![Variable {
            name: "TERM".into(),
            value: TERM.into(),
        }],
        stdin: true,
        terminal: Some(size),
        ..ExecOpen::default()
    };
    let sink = ClientSink::new(out, Cursor::default());
    let mut exec = Exec::new(line, opening, sink.clone(), ClientProgress::new(out, false));
    exec.resize(size);
    let over = exec.run(local, left).await;
    sink.restore().await?;
    let last = match over {
        Ok(Over::Exit(exit)) => command_ended(&exit),
        // The client is gone.
        Ok(Over::Left { .. }) => return Ok(()),
        Err(stream::Error::Output(error)) => return Err(error),
        Err(stream::Error::Relay(status)) => failed(status.code(), status.message()),
        Err(stream::Error::Dial(error)) => failed(dial_code(&error), &error.to_string()),
        Err(error) => failed(Code::Unknown, &error.to_string()),
    };
    out.tell(&last).await
}

/// The last message after the end of a command.
fn command_ended(exit: &Exit) -> ServerMessage {
    let is_explained = matches!(exit.reason(), Reason::CommandNotFound | Reason::CommandNotExecutable)
        || exit.outcome() == Outcome::Unknown;
    ended("the command", exit, is_explained.then(|| exit.message.clone()))
}

/// The last message after an end that is known. `message` explains what the code does not.
fn ended(name: &str, exit: &Exit, message: Option<String>) -> ServerMessage {
    let message = message.filter(|message| !message.is_empty());
    ServerMessage::Exit {
        code: (exit.outcome() == Outcome::Code).then_some(exit.value),
        signal: (exit.outcome() == Outcome::Signal).then(|| remoteprocess_api::signal::name(exit.value)),
        message: message.unwrap_or_else(|| exit::ended(name, exit)),
    }
}

fn failed(code: Code, message: &str) -> ServerMessage {
    ServerMessage::Error {
        code: format!("{code:?}"),
        message: message.to_owned(),
    }
}

fn dial_code(error: &DialError) -> Code {
    match error {
        DialError::Refused(_) => Code::PermissionDenied,
        DialError::Missing(_) => Code::FailedPrecondition,
        DialError::Unreachable(_) => Code::Unavailable,
    }
}

/// Returns when this has become true, or cannot become true anymore.
async fn came(it: &watch::Receiver<bool>) {
    // An error means that the socket is gone, and with it the client.
    let _ = it.clone().wait_for(|has_come| *has_come).await;
}

/// Shows output in the terminal of the client, without the queries of a replay. Cheap to clone.
#[derive(Clone)]
struct ClientSink {
    out: Outgoing,
    control: Control,
    streams: Arc<Mutex<[Controlled; 2]>>,
}

impl ClientSink {
    /// A sink on which everything before these offsets is a replay.
    fn new(out: &Outgoing, live_from: Cursor) -> Self {
        Self {
            out: out.clone(),
            control: Control::Typed { live_from },
            streams: Arc::default(),
        }
    }

    /// Leaves the modes that the program has set.
    async fn restore(&self) -> Result<(), SinkError> {
        let restored = self.with(|streams| streams.each_mut().map(Controlled::restore).concat());
        self.out.bytes(restored.into()).await
    }

    fn with<T>(&self, use_them: impl FnOnce(&mut [Controlled; 2]) -> T) -> T {
        use_them(&mut self.streams.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sink for ClientSink {
    async fn attempt(&mut self, _: u32) -> Result<(), SinkError> {
        Ok(())
    }

    async fn data(&mut self, data: Data) -> Result<(), SinkError> {
        let is_stderr = data.stream() == remoteprocess_proto::v1::Stream::Stderr;
        let shown = self.with(|streams| streams[usize::from(is_stderr)].apply(self.control, &data));
        self.out.bytes(shown).await
    }

    async fn gap(&mut self, gap: Gap) -> Result<(), SinkError> {
        let message = gap::loss(&gap);
        self.out.tell(&ServerMessage::Gap { message }).await
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Tells the client about the connection to the relay and about the state of the process.
struct ClientProgress {
    out: Outgoing,
    link: Link,
    /// What the client is not told yet.
    waiting: Option<ServerMessage>,
    /// The last state that it was told.
    state: Option<ServerMessage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    New,
    Live,
    Cut,
}

impl ClientProgress {
    fn new(out: &Outgoing, is_live: bool) -> Self {
        Self {
            out: out.clone(),
            link: if is_live { Link::Live } else { Link::New },
            waiting: None,
            state: None,
        }
    }
}

impl Progress for ClientProgress {
    fn state(&mut self, state: &State) {
        let reason: &str = state.reason().into();
        let message = if state.message.is_empty() {
            reason
        } else {
            &state.message
        };
        let told = ServerMessage::State {
            phase: state.phase().to_string(),
            message: message.to_owned(),
        };
        if self.state.as_ref() != Some(&told) {
            self.waiting = Some(told.clone());
            self.state = Some(told);
        }
    }

    fn cut(&mut self, message: String) {
        if self.link != Link::Cut {
            self.link = Link::Cut;
            // The next connection tells it again.
            self.state = None;
            self.waiting = Some(ServerMessage::Cut { message });
        }
    }

    async fn alive(&mut self) -> Result<(), SinkError> {
        if self.link == Link::Live {
            return Ok(());
        }
        self.link = Link::Live;
        self.waiting = None;
        self.out.tell(&ServerMessage::Live).await
    }

    fn due(&self) -> impl Future<Output = ()> + Send {
        let is_due = self.waiting.is_some();
        async move {
            if !is_due {
                std::future::pending().await
            }
        }
    }

    async fn tell(&mut self) -> Result<(), SinkError> {
        match self.waiting.take() {
            Some(told) => self.out.tell(&told).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use remoteprocess_proto::v1::Phase;
    use tokio_tungstenite::tungstenite::protocol::Message;

    use super::*;

    #[tokio::test]
    async fn a_state_is_told_once_and_again_after_a_cut() {
        let (queue, mut messages) = mpsc::channel(8);
        let mut progress = ClientProgress::new(&Outgoing::new(queue), false);
        let paused = State {
            phase: Phase::Paused.into(),
            message: "by alice".into(),
            ..State::default()
        };
        for is_cut in [false, true] {
            if is_cut {
                progress.cut("no route".to_owned());
                progress.tell().await.unwrap();
                progress.cut("still no route".to_owned());
            }
            for _ in 0..2 {
                progress.alive().await.unwrap();
                progress.state(&paused);
                progress.tell().await.unwrap();
            }
        }
        drop(progress);
        let mut told = Vec::new();
        while let Some(Message::Text(text)) = messages.recv().await {
            told.push(text.to_string());
        }
        let state = r#"{"type":"state","phase":"Paused","message":"by alice"}"#;
        let (live, cut) = (r#"{"type":"live"}"#, r#"{"type":"cut","message":"no route"}"#);
        assert_eq!(told, [live, state, cut, live, state]);
    }

    #[test]
    fn a_command_that_cannot_run_is_explained() {
        let exit = |outcome: Outcome, value, reason: Reason| Exit {
            outcome: outcome.into(),
            value,
            reason: reason.into(),
            message: "no such file".into(),
            ..Exit::default()
        };
        for (exit, code, signal, message) in [
            (
                exit(Outcome::Code, 127, Reason::CommandNotFound),
                Some(127),
                None,
                "no such file",
            ),
            (
                exit(Outcome::Unknown, 0, Reason::SessionLost),
                None,
                None,
                "no such file",
            ),
            (
                exit(Outcome::Code, 7, Reason::NonZeroExit),
                Some(7),
                None,
                "the command exited with code 7",
            ),
            (
                exit(Outcome::Signal, 9, Reason::Signaled),
                None,
                Some("SIGKILL"),
                "the command was ended by SIGKILL",
            ),
        ] {
            let expected = ServerMessage::Exit {
                code,
                signal: signal.map(str::to_owned),
                message: message.to_owned(),
            };
            assert_eq!(command_ended(&exit), expected);
        }
    }
}
