//! The state of processes, from status, live sessions and archive.

use kube::ResourceExt;
use remoteprocess_api::RemoteProcess;
use remoteprocess_proto::v1::{Cursor, ProcessKey, ProcessState, State};
use tonic::Status;

use super::{RelayParts, Target, unreadable};
use crate::relay::attempt::AttemptKey;
use crate::relay::status::{known_end, reason};

impl RelayParts {
    pub(crate) async fn state(&self, target: &Target) -> Result<ProcessState, Status> {
        if let Some(process) = self.object(target) {
            let mut state = self.state_of(&process);
            let key = AttemptKey {
                uid: target.uid.clone(),
                attempt: state.attempt,
            };
            if self.sessions.get(&key).is_none()
                && self.may_live(&key)
                && let Some(home) = self.sessions.peers().home_of(&key).await
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
        let key = AttemptKey {
            uid: target.uid.clone(),
            attempt,
        };
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

    pub(crate) fn list(&self, namespace: &str) -> Vec<ProcessState> {
        self.directory
            .list(namespace)
            .iter()
            .map(|process| self.state_of(process))
            .collect()
    }

    fn state_of(&self, process: &RemoteProcess) -> ProcessState {
        let uid = process.uid().unwrap_or_default();
        let attempt = process
            .status
            .as_ref()
            .and_then(|status| status.attempt)
            .unwrap_or_default();
        let session = self.sessions.get(&AttemptKey {
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
            output: session.as_ref().map(|session| session.received()).or(recorded),
            exit: session
                .and_then(|session| session.exit())
                .or_else(|| known_end(process, attempt)),
        }
    }
}

/// What the status says, for a person who waits.
pub(crate) fn wire_state(process: &RemoteProcess) -> State {
    let status = process.status.clone().unwrap_or_default();
    State {
        phase: reason::phase_to_wire(status.phase.unwrap_or_default()).into(),
        reason: status.reason.map(reason::to_wire).unwrap_or_default().into(),
        message: status.message.unwrap_or_default(),
    }
}

impl Target {
    pub(crate) fn key(&self) -> ProcessKey {
        ProcessKey {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
        }
    }
}
