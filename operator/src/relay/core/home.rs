//! Where an attempt lives: at this replica, at another, or nowhere.

use std::sync::Arc;
use std::time::Duration;

use remoteprocess_api::RemoteProcessStatus;
use remoteprocess_proto::v1::ProcessKey;
use tokio::time::timeout;

use super::authorize::{Caller, Forwarded};
use super::{Core, check_key};
use crate::relay::attempt::{AttemptKey, Target};
use crate::relay::error::Error;
use crate::relay::grpc::peers::Home;
use crate::relay::live::{Feed, LiveAttempt};

/// How long a new reader waits for the answer of another home.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// Where a process can be reached.
pub(crate) enum Reached {
    Here(Arc<LiveAttempt>),
    There(Box<Home>),
}

impl Core {
    /// The source of an attempt's output while it lives: the live attempt, or a mirror of it from another home.
    pub(super) async fn feed(
        &self,
        caller: &Caller,
        key: &AttemptKey,
        follow: bool,
        is_new: bool,
    ) -> Result<Option<Feed>, Error> {
        if let Some(live) = self.live.get(key) {
            return Ok((follow || live.is_open()).then(|| live.feed()));
        }
        if matches!(caller, Caller::Replica(_)) {
            return Err(Error::unavailable("this replica is no longer the home"));
        }
        if !self.may_live(key) {
            return Ok(None);
        }
        let mirror = self.live.mirror(key);
        if is_new {
            // A home that does not answer must not keep a reader from the archive for long.
            let _ = timeout(FIRST_LOOK, mirror.settled()).await;
        }
        Ok(mirror.feed())
    }

    /// The live attempt about which another replica asks. It never asks further replicas.
    pub(crate) fn at_home(
        &self,
        forwarded: &Forwarded,
        process: Option<ProcessKey>,
    ) -> Result<Arc<LiveAttempt>, Error> {
        let process = process.unwrap_or_default();
        check_key(&process)?;
        let attempt = forwarded
            .attempt
            .ok_or_else(|| Error::invalid("the request names no attempt"))?;
        let key = AttemptKey {
            uid: process.uid,
            attempt,
        };
        let live = self.live.get(&key);
        live.ok_or_else(|| Error::not_found("this replica is not the home of the process"))
    }

    /// Whether an attempt may have a home: it was granted and its output is not recorded.
    pub(crate) fn may_live(&self, key: &AttemptKey) -> bool {
        let process = self.directory.by_uid(&key.uid);
        process.is_some_and(|process| {
            let attempt = process.status.as_ref().and_then(|status| status.attempt(key.attempt));
            attempt.is_some_and(|attempt| attempt.granted_at.is_some() && attempt.output.is_none())
        })
    }

    /// The latest attempt; number 0 before the first.
    pub(crate) fn current(&self, target: &Target) -> Result<AttemptKey, Error> {
        let process = self
            .object(target)
            .ok_or_else(|| Error::not_found("the process has been deleted"))?;
        let attempt = process.status.as_ref().and_then(RemoteProcessStatus::current_attempt);
        Ok(target.attempt(attempt.unwrap_or_default()))
    }

    /// The live attempt, here or at its home.
    pub(crate) async fn reach(&self, target: &Target, key: &AttemptKey) -> Result<Reached, Error> {
        if let Some(live) = self.live.get(key) {
            return Ok(Reached::Here(live));
        }
        if self.may_live(key)
            && let Some(home) = self.live.peers().home_of(key).await
        {
            return Ok(Reached::There(Box::new(home)));
        }
        let is_over = self.object(target).is_some_and(|process| process.is_final());
        Err(Error::failed_precondition(if is_over {
            "the process has ended"
        } else {
            "the process has not started, or its agent is not connected"
        }))
    }
}
