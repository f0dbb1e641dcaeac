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

pub use echo::Echo;
pub use requests::RequestError;
pub use writer::Writer;

use crate::spool::{self, Appender, Spool};
use conversation::{Conversation, Request};
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
    ///
    /// # Errors
    /// When the socket or a thread cannot be made, or the facts on the spool cannot be read.
    pub fn start(spool: Arc<Spool>, appender: Appender, settings: Settings) -> Result<Self, StartError> {
        let started = Conversation::start(Arc::clone(&spool), appender, settings)?;
        Ok(Self {
            spool,
            status: started.status,
            input: started.input,
            requests: started.requests,
        })
    }

    /// A process whose entrypoint and facts are played by the caller: `status` is what is known of it, and the returned
    /// value receives what is asked of it. For simulations, which have neither sockets nor threads.
    #[must_use]
    pub fn played(spool: Arc<Spool>, status: watch::Receiver<Status>) -> (Self, Asked) {
        #[allow(
            clippy::disallowed_methods,
            reason = "each call waits for its answer, and calls are bounded at the listener"
        )]
        let (requests, asked) = mpsc::unbounded_channel();
        let process = Self {
            spool,
            status,
            input: watch::channel(View::default()).1,
            requests,
        };
        (process, Asked(asked))
    }

    /// Its output.
    #[must_use]
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// The current status, and its changes.
    #[must_use]
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
    ///
    /// # Errors
    /// When it was not sent, and why.
    pub async fn signal(&self, request_id: String, number: i32, target: Target) -> Result<(), RequestError> {
        self.ask(request_id, Ask::Signal(number, target)).await
    }

    /// Pauses the program and all its descendants, or resumes them; returns when that has happened and is recorded. A
    /// repeat with the same `request_id` does nothing.
    ///
    /// # Errors
    /// When it has not happened, and why.
    pub async fn pause(&self, request_id: String, paused: bool) -> Result<(), RequestError> {
        self.ask(request_id, Ask::Pause(paused)).await
    }

    async fn ask(&self, id: String, ask: Ask) -> Result<(), RequestError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Ask { id, ask, answer });
        answered.await.unwrap_or(Err(RequestError::EntrypointAway))
    }

    /// Sets how long the program may run, counted from its start; returns when that is recorded.
    ///
    /// # Errors
    /// When there is no program, or it is being stopped.
    pub async fn limit(&self, limit: Option<Duration>) -> Result<(), RequestError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Limit(limit, answer));
        answered.await.unwrap_or(Err(RequestError::EntrypointAway))
    }
}

/// What a played process is asked.
#[derive(Debug)]
pub struct Asked(mpsc::UnboundedReceiver<Request>);

impl Asked {
    /// Waits for a grant; returns `None` when nothing can ask anymore. Signals and stops are refused.
    pub async fn granted(&mut self) -> Option<LaunchSettings> {
        loop {
            if let Request::Granted(settings) = self.0.recv().await? {
                return Some(settings);
            }
        }
    }
}

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
