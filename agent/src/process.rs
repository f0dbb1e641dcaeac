//! The process: the conversation with its entrypoint, its facts, its output.
//!
//! One task, the conversation, owns the [`machine::Machine`] and carries out its actions, in order. All other tasks use
//! [`Process`] to talk to it.

mod capture;
mod conversation;
mod echo;
pub mod exec;
pub mod facts;
pub mod input;
mod link;
pub mod machine;
mod requests;
pub mod settings;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use remoteprocess_entrypoint::message::Target;
use tokio::sync::{mpsc, oneshot, watch};

pub use conversation::Request;
pub use echo::Echo;
pub use requests::RequestError;
pub use writer::Writer;

use crate::spool::{self, Appender, Spool};
use conversation::Conversation;
use exec::{ExecError, ExecRequest};
use facts::{Facts, Stop};
use input::View;
use machine::Phase;
use requests::Ask;
use settings::LaunchSettings;

/// Everything the process needs to know from outside.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the entrypoint finds us.
    pub socket: PathBuf,
    /// The line that ends a limited echo.
    pub echo_pointer: String,
}

/// What other tasks can see of the process.
#[derive(Clone, Debug)]
pub struct Status {
    /// Phase of the attempt.
    pub phase: Phase,
    /// Whether an entrypoint is connected.
    pub is_connected: bool,
    /// What is recorded on the spool.
    pub facts: Facts,
}

/// The process, from outside the task that owns it.
#[derive(Clone, Debug)]
pub struct Process {
    spool: Arc<Spool>,
    status: watch::Receiver<Status>,
    input: watch::Receiver<View>,
    requests: mpsc::UnboundedSender<Request>,
}

impl Process {
    /// Listens for the entrypoint and continues from what an earlier agent left on the spool.
    pub fn start(spool: Arc<Spool>, appender: Appender, settings: Settings) -> Result<Self, StartError> {
        Conversation::start(spool, appender, settings)
    }

    /// A handle to a process, and the requests that are made through it. The owner of the other ends answers the
    /// requests, and says what is known of the process: [`Self::start`] makes a conversation with an entrypoint the owner.
    pub fn connect(spool: Arc<Spool>, status: watch::Receiver<Status>, input: watch::Receiver<View>) -> (Self, Inbox) {
        #[allow(
            clippy::disallowed_methods,
            reason = "each call waits for its answer, and calls are bounded at the listener"
        )]
        let (requests, inbox) = mpsc::unbounded_channel();
        let process = Self {
            spool,
            status,
            input,
            requests,
        };
        (process, inbox)
    }

    /// Its output.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// The current status, and its changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The relay allows the launch, with these settings. Only the first time means anything.
    pub fn grant(&self, settings: LaunchSettings) {
        let _ = self.requests.send(Request::Granted(settings));
    }

    /// Starts the stop path; returns when the order is recorded and on its way.
    pub async fn stop(&self, stop: Stop) {
        let (done, noted) = oneshot::channel();
        let _ = self.requests.send(Request::Stop(stop, done));
        // Ends early only when the whole agent ends.
        let _ = noted.await;
    }

    /// Sends one signal, once for each `request_id`.
    pub async fn signal(&self, request_id: String, number: i32, target: Target) -> Result<(), RequestError> {
        self.ask(request_id, Ask::Signal(number, target)).await
    }

    /// Pauses the program and all its descendants, or resumes them; returns when that has happened and is recorded. A
    /// repeat with the same `request_id` does nothing.
    pub async fn pause(&self, request_id: String, paused: bool) -> Result<(), RequestError> {
        self.ask(request_id, Ask::Pause(paused)).await
    }

    async fn ask(&self, id: String, ask: Ask) -> Result<(), RequestError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Ask { id, ask, answer });
        answered.await.unwrap_or(Err(RequestError::EntrypointAway))
    }

    /// Starts a command in the container, or joins one by its name.
    ///
    /// # Errors
    /// Why there is no such command.
    pub async fn exec(&self, opening: exec::Opening) -> Result<exec::Client, ExecError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Exec(ExecRequest::Open(opening, answer)));
        answered.await.unwrap_or(Err(ExecError::Leaving))
    }

    /// Sets how long the program may run, counted from its start; returns when that is recorded.
    pub async fn set_run_deadline(&self, run_deadline: Option<Duration>) -> Result<(), RequestError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::RunDeadline(run_deadline, answer));
        answered.await.unwrap_or(Err(RequestError::EntrypointAway))
    }
}

/// The requests to a process, for its owner. It ends when the last handle is gone.
pub type Inbox = mpsc::UnboundedReceiver<Request>;

/// Why the process could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The facts on the spool cannot be read.
    #[error("the facts on the spool")]
    Facts(#[from] spool::Error),
    /// No socket, or no thread.
    #[error("the handover socket or the capture thread")]
    Io(#[from] io::Error),
}
