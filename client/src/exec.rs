//! Another command in a process's container, over any number of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use remoteprocess_proto::v1::exec_request::Request as Asked;
use remoteprocess_proto::v1::exec_response::Response as Answer;
use remoteprocess_proto::v1::{Cursor, Data, ExecOpen, ExecRequest, ExecResponse, Exit, HangUp, WindowSize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tonic::Streaming;

use crate::dial::{Dial, DialError};
use crate::retry::Backoff;
use crate::sink::{Progress, Sink, during};
use crate::stream::pending::{Pending, Said};
use crate::stream::{Broken, End, Error, Local, Requests, connect, finish, left, mend, next, opened, session_name};

/// Number of bytes of output after which the agent is told that they arrived: it keeps 256 KiB.
const CONFIRM: u64 = 64 * 1024;
/// When the connection has been broken for this long, Ctrl-C leaves instead of going to the command.
const CUT: Duration = Duration::from_secs(5);

const LEFT_UNTOLD: Over = Over::Left { is_told: false };

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
    pub async fn run(
        &mut self,
        mut local: mpsc::Receiver<Local>,
        leaving: watch::Receiver<bool>,
    ) -> Result<Over, Error> {
        let mut backoff = Backoff::default();
        let mut cut_at = Instant::now();
        loop {
            let before = (self.pending.accepted(), self.received);
            match self.connect(&mut local, &leaving).await {
                Ok(End::Over(over)) => return Ok(over),
                Ok(End::Cut(why)) | Err(Error::Dial(DialError::Unreachable(why))) => self.progress.cut(why),
                Err(Error::Dial(DialError::Missing(why))) if self.open.resume => self.progress.cut(why),
                Err(error) => return Err(error),
            }
            if before != (self.pending.accepted(), self.received) {
                (backoff, cut_at) = (Backoff::default(), Instant::now());
            }
            if cut_at.elapsed() > CUT {
                self.is_connected.store(false, Ordering::Relaxed);
            }
            tokio::select! {
                waited = during(&mut self.progress, sleep(backoff.wait())) => waited?,
                () = left(&leaving) => return Ok(LEFT_UNTOLD),
            }
        }
    }

    async fn connect(
        &mut self,
        local: &mut mpsc::Receiver<Local>,
        leaving: &watch::Receiver<bool>,
    ) -> Result<End<Over>, Error> {
        let connected = tokio::select! {
            connected = during(&mut self.progress, connect(&mut self.dial)) => connected?,
            () = left(leaving) => return Ok(End::Over(LEFT_UNTOLD)),
        };
        let mut client = match connected {
            Ok(client) => client,
            Err(broken) => return self.mend(broken),
        };
        let (requests, outgoing) = Requests::new();
        self.open.received = Some(self.received);
        if self.open.terminal.is_some() {
            self.open.terminal = self.pending.window.or(self.open.terminal);
        }
        requests.send(request(Asked::Open(self.open.clone())));
        let answers = tokio::select! {
            answers = during(&mut self.progress, opened(client.exec(outgoing))) => answers?,
            () = left(leaving) => return Ok(End::Over(LEFT_UNTOLD)),
        };
        match answers {
            Ok(answers) => self.serve(requests, answers, local, leaving).await,
            Err(broken) => self.mend(broken),
        }
    }

    async fn serve(
        &mut self,
        requests: Requests<ExecRequest>,
        mut answers: Streaming<ExecResponse>,
        local: &mut mpsc::Receiver<Local>,
        leaving: &watch::Receiver<bool>,
    ) -> Result<End<Over>, Error> {
        let mut is_begun = false;
        loop {
            let has_room = is_begun && self.pending.has_room();
            tokio::select! {
                answer = next(&mut answers) => {
                    let answer = match answer {
                        Ok(answer) => answer.response,
                        Err(broken) => return self.mend(broken),
                    };
                    match self.hear(answer, &requests, &mut is_begun).await {
                        Ok(None) => {}
                        Ok(Some(exit)) => {
                            let over = Over::Exit(Box::new(exit));
                            return Ok(End::Over(hang_up(requests, answers, over).await));
                        }
                        // The rest will not, or cannot, be read.
                        Err(error) => return Err(hang_up(requests, answers, error).await),
                    }
                }
                Some(said) = local.recv(), if has_room => {
                    self.pending.say(said, |said| requests.send(request(asked(said))));
                }
                () = left(leaving) => {
                    return Ok(End::Over(hang_up(requests, answers, Over::Left { is_told: true }).await));
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

    fn mend(&mut self, broken: Broken) -> Result<End<Over>, Error> {
        mend(&mut self.dial, broken, false)
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
