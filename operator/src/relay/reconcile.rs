//! Keeps the live attempts in line with their objects: passes on the desired state, closes attempts whose agent is
//! lost, and records ends that an earlier relay has only archived.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use remoteprocess_api::{AttemptStatus, DesiredState, ExitSource, RemoteProcess};
use remoteprocess_proto::v1::{Exit, Reason};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{info, warn};

use super::archive::{Archive, Manifest};
use super::attempt::{Agent, AttemptKey, Subject};
use super::live::{Desired, LiveAttempt, LiveAttempts, ProgramSpec, ProgramStatus, Record, StopOrder, TAIL_BYTES};
use super::status::{Recorder, known_end};
use crate::directory::{Change, Directory};

/// The requester of the end when the object is deleted.
const BY_DELETION: &str = "deletion";
/// How long an attempt that ended is left to the agent or to another replica.
const ABANDONED_AFTER: Duration = Duration::from_secs(30);

/// Keeps the live attempts in line with the directory.
#[derive(Clone)]
pub struct Reconciler {
    /// All existing processes.
    pub directory: Directory,
    /// The attempts that are live here.
    pub attempts: LiveAttempts,
    /// Reads pods, writes ends.
    pub recorder: Recorder,
}

impl Reconciler {
    /// Follows the directory; never returns. Subscribe before the first list is delivered.
    pub async fn run(self, mut changes: mpsc::UnboundedReceiver<Change>) {
        let mut waiting = HashSet::new();
        let mut closing = JoinSet::new();
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Some(Change::Is(process)) => {
                        self.tell(&process);
                        for subject in abandoned(&process) {
                            if waiting.insert(subject.key.clone()) {
                                closing.spawn(self.clone().close_abandoned(subject));
                            }
                        }
                    }
                    Some(Change::Gone(process)) => self.tell_gone(&process),
                    None => return,
                },
                Some(Ok(key)) = closing.join_next() => {
                    waiting.remove(&key);
                }
            }
        }
    }

    fn tell(&self, process: &RemoteProcess) {
        for live in of(&self.attempts, process) {
            live.update_desired(desired(process, live.subject().key.attempt));
        }
    }

    fn tell_gone(&self, process: &RemoteProcess) {
        for live in of(&self.attempts, process) {
            let message = "the process has been deleted".to_owned();
            let reason = Reason::Interrupted.into();
            let end = known_end(process, live.subject().key.attempt);
            let end = end.unwrap_or(Exit {
                reason,
                message,
                ..Exit::default()
            });
            live.update_desired(Desired {
                stop: Some(deletion()),
                end: Some(end),
                ..Desired::default()
            });
        }
    }

    /// Handles an attempt that ended, that is not live anywhere, and whose output is not recorded. Once its pod cannot
    /// send anything anymore, a live attempt without an agent closes it: archive and status name what is missing.
    async fn close_abandoned(self, subject: Subject) -> AttemptKey {
        loop {
            sleep(ABANDONED_AFTER).await;
            let process = self.directory.by_uid(&subject.key.uid);
            let Some(process) = process.filter(|process| abandoned(process).any(|it| it.key == subject.key)) else {
                return subject.key;
            };
            let pod = process
                .status
                .as_ref()
                .and_then(|status| status.attempt(subject.key.attempt)?.pod_name.clone());
            let has_pod = match pod {
                Some(pod) => self.recorder.has_pod(&subject.namespace, &pod).await.unwrap_or(true),
                None => false,
            };
            if !has_pod && self.attempts.get(&subject.key).is_none() {
                info!(
                    uid = subject.key.uid,
                    attempt = subject.key.attempt,
                    "closing an attempt without its agent"
                );
                let agent = Agent::lost(&subject);
                let live = self.attempts.open(subject.clone(), agent);
                live.update_desired(desired(&process, subject.key.attempt));
                return subject.key;
            }
        }
    }
}

/// The attempts whose end was not reported by the agent, and whose output is not recorded.
fn abandoned(process: &RemoteProcess) -> impl Iterator<Item = Subject> {
    unfinished(process).filter(|subject| known_end(process, subject.key.attempt).is_some())
}

/// The desired state of one attempt of an object.
pub fn desired(process: &RemoteProcess, number: u32) -> Desired {
    let attempt = process.status.as_ref().and_then(|status| status.attempt(number));
    let by_us = attempt
        .and_then(|attempt| attempt.exit.as_ref())
        .is_some_and(|exit| exit.source == ExitSource::Entrypoint);
    Desired {
        stop: order_to_stop(process),
        program: Some(ProgramSpec {
            generation: process.metadata.generation.unwrap_or_default(),
            is_paused: process.spec.desired_state == DesiredState::Paused,
            requested_by: process.requester().requested_by(),
            run_deadline: process.spec.run_deadline(),
            status: attempt.map(program_status).unwrap_or_default(),
        }),
        end: known_end(process, number).filter(|_| !by_us),
        is_recorded: attempt.is_some_and(|attempt| attempt.output.is_some()),
    }
}

/// Who requests the end, if the object itself does.
fn order_to_stop(process: &RemoteProcess) -> Option<StopOrder> {
    if process.spec.desired_state == DesiredState::Stopped {
        let requester = process.requester();
        return Some(StopOrder {
            requested_by: requester.requested_by(),
            message: requester.why.unwrap_or_default(),
        });
    }
    process.metadata.deletion_timestamp.as_ref().map(|_| deletion())
}

fn deletion() -> StopOrder {
    StopOrder {
        requested_by: BY_DELETION.to_owned(),
        message: "the RemoteProcess was deleted".to_owned(),
    }
}

fn program_status(attempt: &AttemptStatus) -> ProgramStatus {
    ProgramStatus {
        is_started: attempt.started_at.is_some(),
        is_paused: attempt.paused_at.is_some(),
        run_deadline: attempt.run_deadline(),
    }
}

/// The live attempts of an object.
fn of(live: &LiveAttempts, process: &RemoteProcess) -> Vec<Arc<LiveAttempt>> {
    let uid = process.uid().unwrap_or_default();
    let attempts = process.status.iter().flat_map(|status| &status.attempts);
    attempts
        .filter_map(|attempt| {
            live.get(&AttemptKey {
                uid: uid.clone(),
                attempt: attempt.number,
            })
        })
        .collect()
}

/// Records the ends that were archived by a relay that died before it could write them into the status.
pub async fn record_archived_ends(
    directory: &Directory,
    archive: &Archive,
    attempts: &LiveAttempts,
    record: &dyn Record,
) {
    let mut processes = directory.list("");
    while let Some(process) = processes.next().await {
        for subject in unfinished(&process).filter(|subject| attempts.get(&subject.key).is_none()) {
            match archived_end(archive, &subject).await {
                Ok(Some((manifest, tail))) => {
                    info!(
                        uid = subject.key.uid,
                        attempt = subject.key.attempt,
                        "recording an end that was only archived"
                    );
                    record.ended(&subject, &manifest, &tail).await;
                }
                Ok(None) => {}
                Err(error) => warn!(uid = subject.key.uid, %error, "cannot read what is archived"),
            }
        }
    }
}

/// The attempts that were granted and whose output is not recorded.
fn unfinished(process: &RemoteProcess) -> impl Iterator<Item = Subject> {
    let attempts = process.status.iter().flat_map(|status| &status.attempts);
    attempts
        .filter(|attempt| attempt.granted_at.is_some() && attempt.output.is_none())
        .filter_map(|attempt| {
            Some(Subject {
                namespace: process.namespace()?,
                name: process.name_any(),
                pod_uid: attempt.pod_uid.clone().unwrap_or_default(),
                key: AttemptKey {
                    uid: process.uid()?,
                    attempt: attempt.number,
                },
            })
        })
}

/// The manifest of an attempt whose end is archived, and the tail of its output.
async fn archived_end(
    archive: &Archive,
    subject: &Subject,
) -> Result<Option<(Manifest, Vec<u8>)>, super::archive::Error> {
    let manifest = archive.manifest(&subject.key).await?;
    let Some(manifest) = manifest.filter(|manifest| manifest.exit.is_some()) else {
        return Ok(None);
    };
    let tail = archive.last_bytes(&subject.key, TAIL_BYTES).await?;
    Ok(Some((manifest, tail)))
}
