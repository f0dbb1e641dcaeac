use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::Stream;
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse, Input, InputEnd, ProcessKey, WindowSize};
use remoteprocess_proto::{MAX_MESSAGE, PROTOCOL};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Status, Streaming};

use crate::follow::{Backoff, DIAL_LIMIT, Dial, DialError, NEW_LIMIT, SILENCE_LIMIT, cause};

/// Bytes that were sent and not accepted.
const WINDOW: usize = 128 * 1024;
/// Bytes in one message.
const CHUNK: usize = 32 * 1024;
/// How long the window is a line shorter, so that a full-screen program draws everything again.
const SHORTER: Duration = Duration::from_millis(150);
/// Longest pause between two tries before the first connection.
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// Time for the last word of the relay when this side lets go.
const FAREWELL: Duration = Duration::from_secs(2);

/// What happens on this side.
#[derive(Clone, Debug)]
pub enum Local {
    /// More input.
    Bytes(Bytes),
    /// No more input.
    End,
    /// The window has another size.
    Resize(WindowSize),
}

/// Why nothing can be written any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The relay refused, for good.
    #[error("{}", .0.message())]
    Relay(Status),
    /// There is no way to the relay.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Going on would lose or double bytes.
    #[error("the relay has accepted {accepted} bytes of input where between {from} and {to} were sent")]
    Inconsistent {
        /// What it says.
        accepted: u64,
        /// What it had accepted before.
        from: u64,
        /// What was sent.
        to: u64,
    },
}

/// How one connection ended.
enum End {
    Over,
    Cut,
}

/// Writes into a process over any number of connections: nothing twice, nothing left out.
pub struct Writer<D> {
    dial: D,
    process: ProcessKey,
    session: String,
    take_over: bool,
    redraw: bool,
    window: Option<WindowSize>,
    /// Offset of the first byte in `pending`; unknown until the relay has said where the input stands.
    accepted: Option<u64>,
    /// Sent, or to be sent, and not accepted.
    pending: BytesMut,
    has_ended: bool,
    has_begun: Arc<AtomicBool>,
    unknown_until: Instant,
}

/// What one connection has, beside its answers.
struct Line {
    requests: mpsc::UnboundedSender<AttachRequest>,
    /// When the window gets its true size.
    restore_at: Option<Instant>,
}

impl Line {
    /// Fails only when the connection has broken, which its answers tell.
    fn say(&self, asked: Asked) {
        let _ = self.requests.send(AttachRequest { request: Some(asked) });
    }
}

struct Outgoing(mpsc::UnboundedReceiver<AttachRequest>);

impl Stream for Outgoing {
    type Item = AttachRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AttachRequest>> {
        self.0.poll_recv(cx)
    }
}

impl<D: Dial> Writer<D> {
    /// Nothing is connected yet.
    pub fn new(dial: D, process: ProcessKey, take_over: bool, redraw: bool) -> Self {
        let now = jiff::Timestamp::now().as_nanosecond();
        Self {
            dial,
            process,
            session: format!("{now:x}-{:x}", std::process::id()),
            take_over,
            redraw,
            window: None,
            accepted: None,
            pending: BytesMut::new(),
            has_ended: false,
            has_begun: Arc::default(),
            unknown_until: Instant::now() + NEW_LIMIT,
        }
    }

    /// Becomes true when the process can be written into for the first time.
    #[must_use]
    pub fn has_begun(&self) -> Arc<AtomicBool> {
        self.has_begun.clone()
    }

    /// The size of the window at first.
    pub const fn resize(&mut self, size: WindowSize) {
        self.window = Some(size);
    }

    /// Writes what is said locally, until its end is accepted, nobody reads any more, or `leaving` becomes true. Who
    /// leaves tells the relay, so that another may have the input.
    ///
    /// # Errors
    /// What another connection would not change.
    pub async fn run(&mut self, mut local: mpsc::Receiver<Local>, leaving: watch::Receiver<bool>) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        loop {
            let known = self.accepted;
            match self.connect(&mut local, &leaving).await {
                Ok(End::Over) => return Ok(()),
                Ok(End::Cut) | Err(Error::Dial(DialError::Unreachable(_))) => {}
                Err(Error::Dial(DialError::Missing(_))) if self.accepted.is_some() => {}
                Err(error) => return Err(error),
            }
            if known != self.accepted {
                backoff = Backoff::default();
            }
            // A process that has just been made has its first agent at any moment.
            let wait = backoff.wait().min(if self.accepted.is_some() {
                Duration::MAX
            } else {
                FIRST_WAIT
            });
            tokio::select! {
                () = sleep(wait) => {}
                () = left(&leaving) => return Ok(()),
            }
        }
    }

    async fn connect(
        &mut self,
        local: &mut mpsc::Receiver<Local>,
        leaving: &watch::Receiver<bool>,
    ) -> Result<End, Error> {
        let dialled = tokio::select! {
            dialled = timeout(DIAL_LIMIT, self.dial.dial()) => dialled,
            () = left(leaving) => return Ok(End::Over),
        };
        let Ok(channel) = dialled else {
            return Ok(End::Cut);
        };
        let mut client = RelayClient::new(channel?).max_decoding_message_size(MAX_MESSAGE);
        let (requests, outgoing) = mpsc::unbounded_channel();
        let line = Line {
            requests,
            restore_at: None,
        };
        line.say(Asked::Open(AttachOpen {
            protocol: PROTOCOL,
            process: Some(self.process.clone()),
            session: self.session.clone(),
            resume: self.accepted.is_some(),
            take_over: self.take_over && self.accepted.is_none(),
            user: String::new(),
        }));
        let opened = tokio::select! {
            opened = timeout(SILENCE_LIMIT, client.attach(Outgoing(outgoing))) => opened,
            () = left(leaving) => return Ok(End::Over),
        };
        match opened {
            Ok(Ok(answers)) => self.serve(line, answers.into_inner(), local, leaving).await,
            Ok(Err(status)) => self.judge(status),
            Err(_) => Ok(End::Cut),
        }
    }

    async fn serve(
        &mut self,
        mut line: Line,
        mut answers: Streaming<AttachResponse>,
        local: &mut mpsc::Receiver<Local>,
        leaving: &watch::Receiver<bool>,
    ) -> Result<End, Error> {
        let mut is_begun = false;
        loop {
            let has_room = is_begun && self.pending.len() < WINDOW && !self.has_ended;
            tokio::select! {
                answer = timeout(SILENCE_LIMIT, answers.message()) => {
                    let answer = match answer {
                        Ok(Ok(Some(answer))) => answer,
                        Ok(Err(status)) => return self.judge(status),
                        Ok(Ok(None)) | Err(_) => return Ok(End::Cut),
                    };
                    self.take(answer)?;
                    if answer.is_over {
                        return Ok(End::Over);
                    }
                    self.has_begun.store(true, Ordering::Relaxed);
                    if !std::mem::replace(&mut is_begun, true) {
                        self.begin(&mut line);
                    }
                }
                Some(said) = local.recv(), if has_room => self.say(&line, said),
                () = left(leaving) => return Ok(farewell(line, answers).await),
                () = due(line.restore_at) => {
                    line.restore_at = None;
                    self.say_window(&line);
                }
            }
        }
    }

    /// Books what was accepted.
    fn take(&mut self, answer: AttachResponse) -> Result<(), Error> {
        let from = self.accepted.unwrap_or(answer.accepted);
        let to = from + self.pending.len() as u64;
        if !(from..=to).contains(&answer.accepted) {
            return Err(Error::Inconsistent {
                accepted: answer.accepted,
                from,
                to,
            });
        }
        // At most the length of what is pending.
        self.pending
            .advance(usize::try_from(answer.accepted - from).unwrap_or_default());
        self.accepted = Some(answer.accepted);
        Ok(())
    }

    /// Says again what an earlier connection may not have brought there.
    fn begin(&mut self, line: &mut Line) {
        if let Some(window) = self.window {
            if std::mem::take(&mut self.redraw) && window.rows > 1 {
                line.say(Asked::Resize(WindowSize {
                    rows: window.rows - 1,
                    ..window
                }));
                line.restore_at = Some(Instant::now() + SHORTER);
            } else {
                self.say_window(line);
            }
        }
        let begin = self.accepted.unwrap_or_default();
        send(line, begin, &self.pending.clone().freeze());
        if self.has_ended {
            self.say_end(line);
        }
    }

    fn say(&mut self, line: &Line, said: Local) {
        match said {
            Local::Bytes(bytes) => {
                let offset = self.accepted.unwrap_or_default() + self.pending.len() as u64;
                self.pending.extend_from_slice(&bytes);
                send(line, offset, &bytes);
            }
            Local::End => {
                self.has_ended = true;
                self.say_end(line);
            }
            Local::Resize(window) => {
                self.window = Some(window);
                self.say_window(line);
            }
        }
    }

    fn say_end(&self, line: &Line) {
        let offset = self.accepted.unwrap_or_default() + self.pending.len() as u64;
        line.say(Asked::End(InputEnd { offset }));
    }

    fn say_window(&self, line: &Line) {
        if let Some(window) = self.window {
            line.say(Asked::Resize(window));
        }
    }

    /// Whether another connection can mend what the relay answered.
    fn judge(&mut self, status: Status) -> Result<End, Error> {
        match status.code() {
            Code::NotFound if Instant::now() < self.unknown_until => {}
            Code::NotFound
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented => return Err(Error::Relay(status)),
            Code::Unauthenticated => self.dial.discredit(),
            // TLS 1.3 tells a client of its refusal only when it reads.
            _ if cause(&status).contains("fatal alert") => self.dial.discredit(),
            _ => {}
        }
        Ok(End::Cut)
    }
}

fn send(line: &Line, mut offset: u64, bytes: &Bytes) {
    for begin in (0..bytes.len()).step_by(CHUNK) {
        let bytes = bytes.slice(begin..bytes.len().min(begin + CHUNK));
        let length = bytes.len() as u64;
        line.say(Asked::Input(Input { offset, bytes }));
        offset += length;
    }
}

async fn left(leaving: &watch::Receiver<bool>) {
    // Whoever may say it lives as long as there is something to leave.
    if leaving.clone().wait_for(|is_leaving| *is_leaving).await.is_err() {
        std::future::pending().await
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The end of the requests lets go of the input; then the relay ends its answers.
async fn farewell(line: Line, mut answers: Streaming<AttachResponse>) -> End {
    drop(line);
    let _ = timeout(FAREWELL, async { while let Ok(Some(_)) = answers.message().await {} }).await;
    End::Over
}
