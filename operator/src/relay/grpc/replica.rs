//! What another replica may ask: the live sessions of this one, for users whom it has authorised.

use std::sync::Arc;
use std::time::Duration;

use remoteprocess_proto::v1::{ProcessKey, ProcessState};
use tokio::time::timeout;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::{RelayParts, Target, check_key};
use crate::relay::attempt::AttemptKey;
use crate::relay::core::authorize::Caller;
use crate::relay::core::state::wire_state;
use crate::relay::grpc::peers::ATTEMPT;
use crate::relay::live::{Feed, Session};

/// How long a new reader waits for the answer of another home.
const FIRST_LOOK: Duration = Duration::from_secs(1);

impl RelayParts {
    /// What an attempt is read from while it lives: its session, or a mirror of it at another home.
    pub(crate) async fn feed(
        &self,
        caller: &Caller,
        key: &AttemptKey,
        follow: bool,
        is_new: bool,
    ) -> Result<Option<Feed>, Status> {
        if let Some(session) = self.sessions.get(key) {
            return Ok((follow || session.is_open()).then(|| session.feed()));
        }
        if *caller == Caller::Replica {
            return Err(Status::unavailable("this replica is no longer the home"));
        }
        if !self.may_live(key) {
            return Ok(None);
        }
        let mirror = self.sessions.mirror(key);
        if is_new {
            // A home that does not answer must not keep a reader from the archive for long.
            let _ = timeout(FIRST_LOOK, mirror.settled()).await;
        }
        Ok(mirror.feed())
    }

    /// The session that another replica asks about. Never asks further.
    pub(crate) fn at_home(&self, metadata: &MetadataMap, process: Option<ProcessKey>) -> Result<Arc<Session>, Status> {
        let attempt = metadata
            .get(ATTEMPT)
            .and_then(|attempt| attempt.to_str().ok()?.parse().ok());
        let process = process.unwrap_or_default();
        check_key(&process)?;
        let key = AttemptKey {
            uid: process.uid,
            attempt: attempt.ok_or_else(|| Status::invalid_argument("which attempt?"))?,
        };
        let session = self.sessions.get(&key);
        session.ok_or_else(|| Status::not_found("this replica is not the home of the process"))
    }

    /// What the home knows of a process.
    pub(crate) fn state_at_home(&self, session: &Session) -> ProcessState {
        let target = Target::of_session(session);
        let process = self.object(&target);
        ProcessState {
            process: Some(target.key()),
            state: process.map(|process| wire_state(&process)),
            attempt: session.subject().key.attempt,
            output: Some(session.received()),
            exit: session.exit(),
        }
    }

    /// True while an attempt may have a home: it was granted and its output is not recorded.
    pub(crate) fn may_live(&self, key: &AttemptKey) -> bool {
        let process = self.directory.by_uid(&key.uid);
        process.is_some_and(|process| {
            let attempt = process.status.as_ref().and_then(|status| status.attempt(key.attempt));
            attempt.is_some_and(|attempt| attempt.granted_at.is_some() && attempt.output.is_none())
        })
    }
}

impl Target {
    pub(crate) fn of_session(session: &Session) -> Self {
        let subject = session.subject();
        Self {
            namespace: subject.namespace.clone(),
            name: subject.name.clone(),
            uid: subject.key.uid.clone(),
        }
    }
}
