//! Another command in a process's container, over any number of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use remoteprocess_proto::v1::exec_request::Request as Asked;
use remoteprocess_proto::v1::exec_response::Response as Answer;
use remoteprocess_proto::v1::{Cursor, Data, ExecOpen, ExecRequest, ExecResponse, Exit, HangUp, WindowSize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::dial::{Dial, client};
use crate::sink::{Progress, Sink};
use crate::stream::pending::{Pending, Said};
use crate::stream::{
    Broken, ENDED, Error, Here, Local, Policy, Requests, Session, came, finish, next, opened, run, session_name,
    unless_left,
};

/// Number of bytes of output after which the agent is told that they arrived: it keeps 256 KiB.
const CONFIRM: u64 = 64 * 1024;
/// When the connection has been broken for this long, Ctrl-C leaves instead of going to the command.
const CUT: Duration = Duration::from_secs(5);

/// How a session ended.
#[derive(Debug)]
pub enum Over {
    /// The command has ended.
    Exit(Box<Exit>),
    /// The local user left.
    Left {
        /// The relay knows: the command is ended now, and not only after the session was left alone for long.
        is_told: bool,
    },
}

/// A session that is started once, and joined again after each break.
pub struct Exec<D, S, P> {
    dial: D,
    open: ExecOpen,
    pending: Pending,
    sink: S,
    progress: P,
    /// Output that has arrived, and how much of it the agent knows about.
    received: Cursor,
    confirmed: u64,
    is_connected: Arc<AtomicBool>,
    /// What had arrived when a connection broke for the first time since then, and when that was.
    alive: (u64, Instant),
}

impl<D: Dial, S: Sink, P: Progress> Exec<D, S, P> {
    /// A session without a connection so far. `open` says what to run; the session's name and the received offsets are
    /// filled in here.
    pub fn new(dial: D, open: ExecOpen, sink: S, progress: P) -> Self {
        Self {
            dial,
            open: ExecOpen {
                session: session_name(),
                ..open
            },
            pending: Pending::default(),
            sink,
            progress,
            received: Cursor::default(),
            confirmed: 0,
            is_connected: Arc::default(),
            alive: (0, Instant::now()),
        }
    }

    /// Whether there is a connection, or was one a moment ago: then Ctrl-C goes to the command.
    #[must_use]
    pub fn is_connected(&self) -> Arc<AtomicBool> {
        self.is_connected.clone()
    }

    /// The sink of the command's output.
    #[must_use]
    pub const fn sink(&self) -> &S {
        &self.sink
    }

    /// The initial size of the window.
    pub const fn resize(&mut self, size: WindowSize) {
        self.pending.window = Some(size);
    }

    /// Passes on local input and writes the output, until the command has ended or the user leaves.
    ///
    /// # Errors
    /// An error that another connection would not fix.
    pub async fn run(&mut self, local: mpsc::Receiver<Local>, leaving: watch::Receiver<bool>) -> Result<Over, Error> {
        self.alive = (self.policy().arrived, Instant::now());
        run(self, &mut Here::new(local, leaving)).await
    }

    async fn talk(
        &mut self,
        requests: Requests<ExecRequest>,
        mut answers: Streaming<ExecResponse>,
        here: &mut Here,
    ) -> Result<Over, Broken<Error>> {
        let mut is_begun = false;
        loop {
            let has_room = is_begun && self.pending.has_room();
            tokio::select! {
                answer = next(answers.message()) => {
                    let answer = answer?.ok_or(Broken::Cut(ENDED))?.response;
                    match self.hear(answer, &requests, &mut is_begun).await {
                        Ok(None) => {}
                        Ok(Some(exit)) => {
                            return Ok(hang_up(requests, answers, Over::Exit(Box::new(exit))).await);
                        }
                        // The rest will not, or cannot, be read.
                        Err(error) => return Err(Broken::Failed(hang_up(requests, answers, error).await)),
                    }
                }
                Some(said) = here.local.recv(), if has_room => {
                    self.pending.say(said, |said| requests.send(request(asked(said))));
                }
                () = came(&here.renewed), if is_begun => return Err(Broken::Renewed),
                () = came(&here.leaving) => {
                    return Ok(hang_up(requests, answers, Over::Left { is_told: true }).await);
                }
            }
        }
    }

    /// Handles an answer; returns the end of the command if it is that.
    async fn hear(
        &mut self,
        answer: Option<Answer>,
        requests: &Requests<ExecRequest>,
        is_begun: &mut bool,
    ) -> Result<Option<Exit>, Error> {
        self.open.resume = true;
        self.is_connected.store(true, Ordering::Relaxed);
        self.progress.alive().await?;
        match answer {
            Some(Answer::Input(input)) => {
                match input.is_over {
                    true => self.pending.close(),
                    false => self.pending.take(input.accepted)?,
                }
                if !std::mem::replace(is_begun, true) {
                    let say = |said| requests.send(request(asked(said)));
                    self.pending
                        .window
                        .into_iter()
                        .for_each(|window| say(Said::Resize(window)));
                    self.pending.again(say);
                }
            }
            Some(Answer::Data(data)) => self.take(data, requests).await?,
            Some(Answer::Exit(exit)) => return Ok(Some(exit)),
            None => {}
        }
        Ok(None)
    }

    async fn take(&mut self, data: Data, requests: &Requests<ExecRequest>) -> Result<(), Error> {
        let stream = data.stream();
        let expected = self.received.of(stream);
        if data.offset != expected {
            return Err(Error::Misplaced {
                offset: data.offset,
                expected,
            });
        }
        self.received.set(stream, expected + data.bytes.len() as u64);
        self.sink.data(data).await?;
        let total = self.received.stdout + self.received.stderr;
        if total - self.confirmed >= CONFIRM {
            self.confirmed = total;
            requests.send(request(Asked::Received(self.received)));
        }
        Ok(())
    }
}

impl<D: Dial, S: Sink, P: Progress> Session for Exec<D, S, P> {
    type Over = Over;
    type Error = Error;
    type Dial = D;
    type Progress = P;

    async fn serve(&mut self, channel: Channel, here: &mut Here) -> Result<Over, Broken<Error>> {
        let (requests, outgoing) = Requests::new();
        self.open.received = Some(self.received);
        if self.open.terminal.is_some() {
            self.open.terminal = self.pending.window.or(self.open.terminal);
        }
        requests.send(request(Asked::Open(self.open.clone())));
        let mut client = client(channel);
        let opening = unless_left(&mut self.progress, here, opened(client.exec(outgoing)));
        let Some(answers) = opening.await? else {
            return Ok(self.left());
        };
        self.talk(requests, answers?.into_inner(), here).await
    }

    fn left(&self) -> Over {
        Over::Left { is_told: false }
    }

    fn policy(&self) -> Policy {
        Policy {
            has_begun: self.open.resume,
            is_new: false,
            waits_for_place: false,
            arrived: self.pending.accepted().unwrap_or_default() + self.received.stdout + self.received.stderr,
            longest_wait: Duration::MAX,
        }
    }

    fn broke(&mut self, cause: String) {
        let arrived = self.policy().arrived;
        if arrived != self.alive.0 {
            self.alive = (arrived, Instant::now());
        }
        if self.alive.1.elapsed() > CUT {
            self.is_connected.store(false, Ordering::Relaxed);
        }
        self.progress.cut(cause);
    }

    fn parts(&mut self) -> (&mut D, &mut P) {
        (&mut self.dial, &mut self.progress)
    }
}

/// Tells the relay that the client does not come back, then returns this.
async fn hang_up<T>(requests: Requests<ExecRequest>, answers: Streaming<ExecResponse>, then: T) -> T {
    requests.send(request(Asked::HangUp(HangUp {})));
    finish(requests, answers).await;
    then
}

fn request(asked: Asked) -> ExecRequest {
    ExecRequest { request: Some(asked) }
}

fn asked(said: Said) -> Asked {
    match said {
        Said::Input(input) => Asked::Input(input),
        Said::End(end) => Asked::End(end),
        Said::Resize(size) => Asked::Resize(size),
    }
}
