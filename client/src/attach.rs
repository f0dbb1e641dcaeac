//! Input into a process, over any number of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::{AttachOpen, AttachRequest, AttachResponse, ProcessKey, WindowSize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::dial::{Dial, NEW_LIMIT, client};
use crate::stream::pending::{Pending, Said};
use crate::stream::{
    Broken, ENDED, Error, Here, Local, Policy, Requests, Session, came, due, finish, next, opened, run, session_name,
    unless_left,
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
    /// The stream that the current one replaces. It stays until the current one has begun: its end would let go of the
    /// input.
    former: Option<(Requests<AttachRequest>, Streaming<AttachResponse>)>,
    has_begun: Arc<AtomicBool>,
    unknown_until: Instant,
    /// Is told what happens.
    nobody: (),
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
            former: None,
            has_begun: Arc::default(),
            unknown_until: Instant::now() + NEW_LIMIT,
            nobody: (),
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
    pub async fn run(&mut self, local: mpsc::Receiver<Local>, leaving: watch::Receiver<bool>) -> Result<(), Error> {
        run(self, &mut Here::new(local, leaving)).await
    }

    async fn write(
        &mut self,
        requests: Requests<AttachRequest>,
        mut answers: Streaming<AttachResponse>,
        here: &mut Here,
    ) -> Result<(), Broken<Error>> {
        let say = |said| requests.send(request(asked(said)));
        let mut is_begun = false;
        // When the window gets its real size.
        let mut restore_at = None;
        loop {
            let has_room = is_begun && self.pending.has_room();
            tokio::select! {
                answer = next(answers.message()) => {
                    let answer = answer?.ok_or(Broken::Cut(ENDED))?;
                    // The rest has no reader. If the entrypoint is lost, it is also not known how far the input has
                    // come.
                    if answer.is_over {
                        return Ok(());
                    }
                    self.pending.take(answer.accepted)?;
                    self.has_begun.store(true, Ordering::Relaxed);
                    if !std::mem::replace(&mut is_begun, true) {
                        self.former = None;
                        restore_at = self.say_first_size(say);
                        self.pending.again(say);
                    }
                }
                Some(said) = here.local.recv(), if has_room => self.pending.say(said, say),
                () = came(&here.renewed), if is_begun => {
                    self.former = Some((requests, answers));
                    return Err(Broken::Renewed);
                }
                () = came(&here.leaving) => {
                    // The end of the requests lets go of the input.
                    finish(requests, answers).await;
                    return Ok(());
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
}

impl<D: Dial> Session for Writer<D> {
    type Over = ();
    type Error = Error;
    type Dial = D;
    type Progress = ();

    async fn serve(&mut self, channel: Channel, here: &mut Here) -> Result<(), Broken<Error>> {
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
        let mut client = client(channel);
        let Some(answers) = unless_left(&mut (), here, opened(client.attach(outgoing))).await? else {
            return Ok(());
        };
        self.write(requests, answers?.into_inner(), here).await
    }

    fn left(&self) {}

    fn policy(&self) -> Policy {
        let accepted = self.pending.accepted();
        Policy {
            has_begun: accepted.is_some(),
            is_new: Instant::now() < self.unknown_until,
            waits_for_place: false,
            arrived: accepted.map_or(0, |accepted| accepted + 1),
            // A new process has its first agent at any moment.
            longest_wait: accepted.map_or(FIRST_WAIT, |_| Duration::MAX),
        }
    }

    fn parts(&mut self) -> (&mut D, &mut ()) {
        (&mut self.dial, &mut self.nobody)
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
