//! What keeps a candidate from its Lease, in words, and how often the log has them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::Candidate;

/// The log has each obstacle at most once in this time.
const AGAIN: Duration = Duration::from_secs(60);
/// Most characters of what the API server said.
const MAX_SAID: usize = 1024;

/// What keeps a candidate from its Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// A right is missing.
    Forbidden,
    /// The Lease of this name belongs to another program.
    Foreign,
    /// The API server refuses to read or to write it, or what it has is no Lease.
    Refused,
    /// The API server does not answer.
    Unanswered,
}

/// Why one attempt has not come to its end.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) obstacle: Obstacle,
    /// A sentence for people.
    pub(crate) message: String,
}

impl Trouble {
    /// The Lease belongs to another program; `whose` says to which.
    pub(crate) fn foreign(candidate: &Candidate, whose: &str) -> Self {
        let lease = name(candidate);
        Self {
            obstacle: Obstacle::Foreign,
            message: format!(
                "{lease} was made by another program, {whose}, and is not taken over; delete it if nothing else needs it"
            ),
        }
    }

    /// No answer in time.
    pub(crate) fn late(candidate: &Candidate) -> Self {
        Self {
            obstacle: Obstacle::Unanswered,
            message: format!("no answer about {} from the API server", name(candidate)),
        }
    }

    /// The attempt to do this with it has failed.
    pub(crate) fn of(candidate: &Candidate, verb: &str, error: &kube::Error) -> Self {
        let (obstacle, said) = match error {
            kube::Error::Api(status) => {
                // A webhook or a policy answers 403, too. Another role would not help.
                let is_policy =
                    status.message.contains("denied the request") || status.message.contains("denied request");
                let is_forbidden = matches!(status.code, 401 | 403) && !is_policy;
                let obstacle = if is_forbidden {
                    Obstacle::Forbidden
                } else {
                    Obstacle::Refused
                };
                (obstacle, status.message.clone())
            }
            kube::Error::SerdeError(error) => (Obstacle::Refused, error.to_string()),
            other => (Obstacle::Unanswered, other.to_string()),
        };
        let said: String = said.chars().take(MAX_SAID).collect();
        let message = match obstacle {
            // It names everything itself.
            Obstacle::Forbidden => said,
            _ => format!("{} cannot be {verb}: {said}", name(candidate)),
        };
        Self { obstacle, message }
    }
}

fn name(candidate: &Candidate) -> String {
    format!("the Lease {} in namespace {}", candidate.lease, candidate.namespace)
}

/// When each obstacle was logged last.
#[derive(Debug, Default)]
pub(crate) struct Logged(BTreeMap<Obstacle, Instant>);

impl Logged {
    /// Whether this is to be logged; then it counts as logged now.
    pub(crate) fn is_due(&mut self, obstacle: Obstacle, now: Instant) -> bool {
        let is_due = self
            .0
            .get(&obstacle)
            .is_none_or(|last| now.duration_since(*last) >= AGAIN);
        if is_due {
            self.0.insert(obstacle, now);
        }
        is_due
    }
}
