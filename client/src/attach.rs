//! Input into a process, over any number of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse, ProcessKey, WindowSize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tonic::Streaming;

use crate::dial::{Dial, DialError, NEW_LIMIT};
use crate::retry::Backoff;
use crate::stream::pending::{Pending, Said};
use crate::stream::{
    Broken, End, Error, Local, Requests, connect, due, finish, left, mend, next, opened, session_name,
};

/// How long the window is one line shorter, so that a full-screen program draws everything again.
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
    /// A writer without a connection so far.
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

    /// The initial size of the window.
    pub const fn resize(&mut self, size: WindowSize) {
        self.pending.window = Some(size);
    }

    /// Writes the local input until its end is accepted, there is no reader anymore, or `leaving` becomes true. When
    /// you leave, the relay is told, so that another writer may have the input.
    ///
    /// # Errors
    /// An error that another connection would not fix.
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
            // A new process has its first agent at any moment.
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
        let connected = tokio::select! {
            connected = connect(&mut self.dial) => connected,
            () = left(leaving) => return Ok(End::Over(())),
        };
        let mut client = match connected {
            Ok(client) => client,
            Err(broken) => return self.mend(broken),
        };
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
        let answers = tokio::select! {
            answers = opened(client.attach(outgoing)) => answers,
            () = left(leaving) => return Ok(End::Over(())),
        };
        match answers {
            Ok(answers) => self.serve(requests, answers, local, leaving).await,
            Err(broken) => self.mend(broken),
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
        // When the window gets its real size.
        let mut restore_at = None;
        loop {
            let has_room = is_begun && self.pending.has_room();
            tokio::select! {
                answer = next(&mut answers) => {
                    let answer = match answer {
                        Ok(answer) => answer,
                        Err(broken) => return self.mend(broken),
                    };
                    // The rest has no reader. If the entrypoint is lost, it is also not known how far the input has
                    // come.
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

    /// Sends the size of the window; if the screen should be drawn again, a smaller one first. Returns until when.
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

    fn mend(&mut self, broken: Broken) -> Result<End<()>, Error> {
        mend(&mut self.dial, broken, Instant::now() < self.unknown_until)
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
