//! Input into a process, over any number of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse, ProcessKey, WindowSize};
use remoteprocess_proto::{MAX_MESSAGE, PROTOCOL};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, Streaming};

use crate::dial::{DIAL_LIMIT, Dial, DialError, NEW_LIMIT, SILENCE_LIMIT};
use crate::retry::{Backoff, cause};
use crate::stream::pending::{Pending, Said};
use crate::stream::{End, Error, Local, Requests, due, finish, left, retry, session_name};

/// How long the window is a line shorter, so that a full-screen program draws everything again.
pub const SHORTER: Duration = Duration::from_millis(150);
/// Longest pause between two tries before the first connection.
const FIRST_WAIT: Duration = Duration::from_millis(300);

/// Writes into a process over any number of connections: nothing twice, nothing left out.
pub struct Writer<D> {
    dial: D,
    process: ProcessKey,
    session: String,
    take_over: bool,
    redraw: bool,
    pending: Pending,
    has_begun: Arc<AtomicBool>,
    unknown_until: Instant,
}

impl<D: Dial> Writer<D> {
    /// Nothing is connected yet.
    pub fn new(dial: D, process: ProcessKey, take_over: bool, redraw: bool) -> Self {
        Self {
            dial,
            process,
            session: session_name(),
            take_over,
            redraw,
            pending: Pending::default(),
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
        self.pending.window = Some(size);
    }

    /// Writes what is said locally, until its end is accepted, nobody reads any more, or `leaving` becomes true. Who
    /// leaves tells the relay, so that another may have the input.
    ///
    /// # Errors
    /// What another connection would not change.
    pub async fn run(&mut self, mut local: mpsc::Receiver<Local>, leaving: watch::Receiver<bool>) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        loop {
            let known = self.pending.accepted();
            match self.connect(&mut local, &leaving).await {
                Ok(End::Over(())) => return Ok(()),
                Ok(End::Cut(_)) | Err(Error::Dial(DialError::Unreachable(_))) => {}
                Err(Error::Dial(DialError::Missing(_))) if self.pending.accepted().is_some() => {}
                Err(error) => return Err(error),
            }
            if known != self.pending.accepted() {
                backoff = Backoff::default();
            }
            // A process that has just been made has its first agent at any moment.
            let wait = backoff.wait().min(if self.pending.accepted().is_some() {
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
    ) -> Result<End<()>, Error> {
        let dialled = tokio::select! {
            dialled = timeout(DIAL_LIMIT, self.dial.dial()) => dialled,
            () = left(leaving) => return Ok(End::Over(())),
        };
        let Ok(channel) = dialled else {
            return Ok(End::Cut("the relay cannot be reached in time".to_owned()));
        };
        let mut client = RelayClient::new(channel?).max_decoding_message_size(MAX_MESSAGE);
        let (requests, outgoing) = Requests::new();
        let is_known = self.pending.accepted().is_some();
        requests.send(request(Asked::Open(AttachOpen {
            protocol: PROTOCOL,
            process: Some(self.process.clone()),
            session: self.session.clone(),
            resume: is_known,
            take_over: self.take_over && !is_known,
            user: String::new(),
        })));
        let opened = tokio::select! {
            opened = timeout(SILENCE_LIMIT, client.attach(outgoing)) => opened,
            () = left(leaving) => return Ok(End::Over(())),
        };
        match opened {
            Ok(Ok(answers)) => self.serve(requests, answers.into_inner(), local, leaving).await,
            Ok(Err(status)) => self.retry(status),
            Err(_) => Ok(End::Cut("the relay does not answer".to_owned())),
        }
    }

    async fn serve(
        &mut self,
        requests: Requests<AttachRequest>,
        mut answers: Streaming<AttachResponse>,
        local: &mut mpsc::Receiver<Local>,
        leaving: &watch::Receiver<bool>,
    ) -> Result<End<()>, Error> {
        let say = |said| requests.send(request(asked(said)));
        let mut is_begun = false;
        // When the window gets its true size.
        let mut restore_at = None;
        loop {
            let has_room = is_begun && self.pending.has_room();
            tokio::select! {
                answer = timeout(SILENCE_LIMIT, answers.message()) => {
                    let answer = match answer {
                        Ok(Ok(Some(answer))) => answer,
                        Ok(Err(status)) => return self.retry(status),
                        Ok(Ok(None)) => return Ok(End::Cut("the relay ended the stream".to_owned())),
                        Err(_) => return Ok(End::Cut("nothing came for 30 s".to_owned())),
                    };
                    // Nobody reads the rest. Where the entrypoint is lost, nobody knows how far the input has come either.
                    if answer.is_over {
                        return Ok(End::Over(()));
                    }
                    self.pending.take(answer.accepted)?;
                    self.has_begun.store(true, Ordering::Relaxed);
                    if !std::mem::replace(&mut is_begun, true) {
                        restore_at = self.say_first_size(say);
                        self.pending.again(say);
                    }
                }
                Some(said) = local.recv(), if has_room => self.pending.say(said, say),
                () = left(leaving) => {
                    // The end of the requests lets go of the input.
                    finish(requests, answers).await;
                    return Ok(End::Over(()));
                }
                () = due(restore_at) => {
                    restore_at = None;
                    self.pending.window.into_iter().for_each(|window| say(Said::Resize(window)));
                }
            }
        }
    }

    /// The size of the window; where the screen is to be drawn again, a smaller one first. Until when, then.
    fn say_first_size(&mut self, say: impl Fn(Said)) -> Option<Instant> {
        let window = self.pending.window?;
        if std::mem::take(&mut self.redraw) && window.rows > 1 {
            say(Said::Resize(WindowSize {
                rows: window.rows - 1,
                ..window
            }));
            return Some(Instant::now() + SHORTER);
        }
        say(Said::Resize(window));
        None
    }

    /// Whether another connection can mend what the relay answered.
    fn retry(&mut self, status: Status) -> Result<End<()>, Error> {
        let why = cause(&status);
        retry(&mut self.dial, status, Instant::now() < self.unknown_until)?;
        Ok(End::Cut(why))
    }
}

fn request(asked: Asked) -> AttachRequest {
    AttachRequest { request: Some(asked) }
}

fn asked(said: Said) -> Asked {
    match said {
        Said::Input(input) => Asked::Input(input),
        Said::End(end) => Asked::End(end),
        Said::Resize(size) => Asked::Resize(size),
    }
}
