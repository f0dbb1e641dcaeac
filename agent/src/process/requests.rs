//! Requests to the entrypoint: each is carried out once, and every requester gets an answer.
//!
//! The entrypoint remembers what it has carried out, so any agent may send a request again.

use std::collections::{HashMap, VecDeque};

use remoteprocess_entrypoint::message::{Target, ToEntrypoint};
use tokio::sync::oneshot;

use super::link::Link;
use super::machine::Phase;

/// Number of requests remembered, so that a repeat is answered after the entrypoint is gone.
const REMEMBERED: usize = 256;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no program.
    #[error("the program is not running")]
    NotRunning,
    /// The entrypoint is not connected: try again.
    #[error("the entrypoint is not connected")]
    EntrypointAway,
    /// The connection ended before the answer. The request may have been carried out; a repeat with the same id is not
    /// carried out twice.
    #[error("the entrypoint did not answer")]
    Unanswered,
    /// The stop path has begun.
    #[error("the process is being stopped")]
    Stopping,
    /// The entrypoint refused; its message.
    #[error("{0}")]
    Refused(String),
}

type Answer = oneshot::Sender<Result<(), RequestError>>;

/// The request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Send this signal to these processes.
    Signal(i32, Target),
    /// Pause or resume.
    Pause(bool),
}

#[derive(Debug)]
struct Pending {
    ask: Ask,
    answers: Vec<Answer>,
}

/// All requests to this agent.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pending: HashMap<String, Pending>,
    done: VecDeque<String>,
}

impl Requests {
    /// Sends a request, or joins an earlier one with the same id.
    pub(super) fn request(&mut self, request: String, ask: Ask, answer: Answer, link: Option<&Link>, phase: Phase) {
        if self.done.contains(&request) {
            let _ = answer.send(Ok(()));
            return;
        }
        if let Some(pending) = self.pending.get_mut(&request) {
            pending.answers.push(answer);
            return;
        }
        if !matches!(phase, Phase::Running | Phase::Paused | Phase::Stopping) {
            let _ = answer.send(Err(RequestError::NotRunning));
            return;
        }
        let order = match ask {
            Ask::Signal(number, target) => ToEntrypoint::Signal {
                request: request.clone(),
                number,
                target,
            },
            Ask::Pause(paused) => ToEntrypoint::Pause {
                request: request.clone(),
                paused,
            },
        };
        if !link.is_some_and(|link| link.send(order)) {
            let _ = answer.send(Err(RequestError::EntrypointAway));
            return;
        }
        let answers = vec![answer];
        self.pending.insert(request, Pending { ask, answers });
    }

    /// Handles the entrypoint's answer; returns what was carried out. [`Requests::confirm`] then answers the
    /// requesters.
    pub(super) fn done(&mut self, request: &str, error: Option<String>) -> Option<Ask> {
        match error {
            None => self.pending.get(request).map(|pending| pending.ask),
            Some(error) => {
                let pending = self.pending.remove(request)?;
                tell(pending, &Err(RequestError::Refused(error)));
                None
            }
        }
    }

    /// Answers the requesters once the result is recorded.
    pub(super) fn confirm(&mut self, request: String) {
        if let Some(pending) = self.pending.remove(&request) {
            tell(pending, &Ok(()));
            if self.done.len() == REMEMBERED {
                self.done.pop_front();
            }
            self.done.push_back(request);
        }
    }

    /// The connection is gone, and with it the pending answers.
    pub(super) fn forget_pending(&mut self) {
        for (_, pending) in self.pending.drain() {
            tell(pending, &Err(RequestError::Unanswered));
        }
    }
}

fn tell(pending: Pending, result: &Result<(), RequestError>) {
    for answer in pending.answers {
        // The requester may be gone.
        let _ = answer.send(result.clone());
    }
}
