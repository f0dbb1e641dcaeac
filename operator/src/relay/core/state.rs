//! The state of processes, from status, live attempts and archive.

use std::sync::Arc;

use kube::ResourceExt;
use remoteprocess_api::{AttemptStatus, RemoteProcess, RemoteProcessStatus};
use remoteprocess_proto::v1::{Cursor, GetStateRequest, ListRequest, ProcessKey, ProcessState, State};
use remoteprocess_tls::User;

use super::authorize::{Authorized, Caller};
use super::{Core, check_key, unreadable};
use crate::directory::Listed;
use crate::relay::attempt::{AttemptKey, Target};
use crate::relay::error::Error;
use crate::relay::live::LiveAttempt;
use crate::relay::status::{archived_attempt, known_end, reason};

impl Core {
    /// The state of one process.
    pub(crate) async fn state(&self, caller: &Caller, process: Option<ProcessKey>) -> Result<ProcessState, Error> {
        match caller {
            Caller::User(caller) => {
                let target = self.allow::<GetStateRequest>(&caller.user, process).await?;
                self.state_of_target(&target).await
            }
            Caller::Replica(forwarded) => Ok(self.state_at_home(&*self.at_home(forwarded, process)?)),
        }
    }

    /// The states of all processes in a namespace (empty: in all).
    pub(crate) async fn list(&self, user: &User, namespace: &str) -> Result<Vec<ProcessState>, Error> {
        let mut processes = self.processes(user, namespace).await?;
        let mut states = Vec::new();
        while let Some(process) = processes.next().await {
            states.push(self.state_of(&process));
        }
        Ok(states)
    }

    /// All processes in a namespace (empty: in all), by namespace and name.
    pub(crate) async fn processes(&self, user: &User, namespace: &str) -> Result<Listed, Error> {
        check_key(&ProcessKey {
            namespace: namespace.to_owned(),
            ..ProcessKey::default()
        })?;
        self.authorizer
            .authorize(user, ListRequest::ACTION, namespace, "")
            .await?;
        Ok(self.directory.list(namespace))
    }

    /// One process.
    pub(crate) async fn process(&self, user: &User, process: ProcessKey) -> Result<Arc<RemoteProcess>, Error> {
        let target = self.allow::<GetStateRequest>(user, Some(process)).await?;
        let deleted = || Error::not_found("the process has been deleted; its attempts and their output can be read");
        self.object(&target).ok_or_else(deleted)
    }

    /// The record of one attempt: from the status, or else from the archive.
    pub(crate) async fn attempt(&self, user: &User, process: ProcessKey, number: u32) -> Result<AttemptStatus, Error> {
        let target = self.allow::<GetStateRequest>(user, Some(process)).await?;
        if let Some(process) = self.object(&target)
            && let Some(attempt) = process.status.as_ref().and_then(|status| status.attempt(number))
        {
            return Ok(attempt.clone());
        }
        self.check_attempt(&target, number).await?;
        let manifest = self.archive.manifest(&target.attempt(number)).await;
        let manifest = manifest.map_err(|error| unreadable(&error))?;
        let unknown = || Error::not_found(format!("there is no record of attempt {number}, and no output of it"));
        manifest.map(|manifest| archived_attempt(&manifest)).ok_or_else(unknown)
    }

    /// What the home knows of a process.
    fn state_at_home(&self, live: &LiveAttempt) -> ProcessState {
        let target = live.subject().target();
        let process = self.object(&target);
        ProcessState {
            process: Some(target.key()),
            state: process.map(|process| wire_state(&process)),
            attempt: live.subject().key.attempt,
            output: Some(live.received()),
            exit: live.exit(),
        }
    }

    async fn state_of_target(&self, target: &Target) -> Result<ProcessState, Error> {
        if let Some(process) = self.object(target) {
            let mut state = self.state_of(&process);
            let key = target.attempt(state.attempt);
            if self.live.get(&key).is_none()
                && self.may_live(&key)
                && let Some(home) = self.live.peers().home_of(&key).await
            {
                state.output = home.state.output;
                state.exit = home.state.exit.or(state.exit);
            }
            return Ok(state);
        }
        let attempts = self
            .archive
            .attempts(&target.uid)
            .await
            .map_err(|error| unreadable(&error))?;
        let attempt = attempts.last().copied().unwrap_or_default();
        let key = target.attempt(attempt);
        let manifest = self.archive.manifest(&key).await.map_err(|error| unreadable(&error))?;
        let exit = manifest.as_ref().and_then(crate::relay::archive::Manifest::exit_frame);
        let state = State {
            message: "the object has been deleted".to_owned(),
            ..State::default()
        };
        Ok(ProcessState {
            process: Some(target.key()),
            state: Some(state),
            attempt,
            output: manifest.map(|manifest| manifest.end()),
            exit,
        })
    }

    fn state_of(&self, process: &RemoteProcess) -> ProcessState {
        let uid = process.uid().unwrap_or_default();
        let attempt = process
            .status
            .as_ref()
            .and_then(RemoteProcessStatus::current_attempt)
            .unwrap_or_default();
        let live = self.live.get(&AttemptKey {
            uid: uid.clone(),
            attempt,
        });
        let recorded = process
            .status
            .as_ref()
            .and_then(|status| status.output.as_ref())
            .map(|output| Cursor {
                stdout: output.stdout_bytes.unwrap_or_default(),
                stderr: output.stderr_bytes.unwrap_or_default(),
            });
        ProcessState {
            process: Some(ProcessKey {
                namespace: process.namespace().unwrap_or_default(),
                name: process.name_any(),
                uid,
            }),
            state: Some(wire_state(process)),
            attempt,
            output: live.as_ref().map(|live| live.received()).or(recorded),
            exit: live
                .and_then(|live| live.exit())
                .or_else(|| known_end(process, attempt)),
        }
    }
}

/// The state according to the status, for a user who waits.
pub(crate) fn wire_state(process: &RemoteProcess) -> State {
    let status = process.status.clone().unwrap_or_default();
    State {
        phase: reason::phase_to_wire(status.phase.unwrap_or_default()).into(),
        reason: status.reason.map(reason::to_wire).unwrap_or_default().into(),
        message: status.message.unwrap_or_default(),
    }
}
