//! Signals on their way: each request once, and an answer for everybody who asked.

use std::collections::{HashMap, VecDeque};

use remoteprocess_entrypoint::message::{Target, ToEntrypoint};
use tokio::sync::oneshot;

use super::link::Link;
use super::machine::Phase;

/// Requests remembered, so that a repeat is harmless.
const REMEMBERED: usize = 256;

/// Why a signal was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// There is nothing to signal.
    #[error("the program is not running")]
    NotRunning,
    /// The entrypoint is not connected: try again.
    #[error("the entrypoint is not connected")]
    EntrypointAway,
    /// The connection ended before the answer: nobody knows whether the signal was sent.
    #[error("the entrypoint did not answer")]
    Unanswered,
    /// The entrypoint's own words.
    #[error("{0}")]
    Refused(String),
}

type Answer = oneshot::Sender<Result<(), SignalError>>;

#[derive(Debug)]
struct Pending {
    request_id: String,
    answers: Vec<Answer>,
}

/// All signal requests of this agent's life.
#[derive(Debug, Default)]
pub struct Signals {
    next: u64,
    pending: HashMap<u64, Pending>,
    finished: VecDeque<(String, Result<(), SignalError>)>,
}

impl Signals {
    /// Sends a signal, or joins an earlier request of the same id.
    pub fn request(
        &mut self,
        request_id: String,
        number: i32,
        target: Target,
        answer: Answer,
        link: Option<&Link>,
        phase: Phase,
    ) {
        let known = self.finished.iter().find(|(id, _)| *id == request_id);
        if let Some((_, result)) = known {
            let _ = answer.send(result.clone());
            return;
        }
        let mut pending = self.pending.values_mut();
        if let Some(pending) = pending.find(|pending| pending.request_id == request_id) {
            pending.answers.push(answer);
            return;
        }
        if !matches!(phase, Phase::Running | Phase::Stopping) {
            let _ = answer.send(Err(SignalError::NotRunning));
            return;
        }
        self.next += 1;
        let id = self.next;
        let order = ToEntrypoint::Signal { id, number, target };
        if !link.is_some_and(|link| link.send(order)) {
            let _ = answer.send(Err(SignalError::EntrypointAway));
            return;
        }
        let answers = vec![answer];
        let pending = Pending { request_id, answers };
        self.pending.insert(id, pending);
    }

    /// Takes the entrypoint's answer.
    pub fn done(&mut self, id: u64, error: Option<String>) {
        if let Some(pending) = self.pending.remove(&id) {
            self.finish(pending, error.map_or(Ok(()), |error| Err(SignalError::Refused(error))));
        }
    }

    /// The connection is gone, and the answers with it.
    pub fn forget_pending(&mut self) {
        for (_, pending) in std::mem::take(&mut self.pending) {
            self.finish(pending, Err(SignalError::Unanswered));
        }
    }

    fn finish(&mut self, pending: Pending, result: Result<(), SignalError>) {
        for answer in pending.answers {
            let _ = answer.send(result.clone());
        }
        if self.finished.len() == REMEMBERED {
            self.finished.pop_front();
        }
        self.finished.push_back((pending.request_id, result));
    }
}
