//! Tells the live sessions what the objects say: that they are to stop, that the status holds an end, that they are
//! gone. And makes up for what a former relay could not write any more.

use std::sync::Arc;

use kube::ResourceExt;
use remoteprocess_api::{DesiredState, ExitSource, Reason, RemoteProcess};
use remoteprocess_proto::v1::{Cursor, Exit};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::archive::{Archive, AttemptKey, Subject};
use super::directory::{Change, Directory};
use super::record::known_end;
use super::session::{Ending, Record, Session, Sessions};

/// Raw bytes of output from which the status' tail is made.
const TAIL_BYTES: usize = 4096;

/// Follows the directory; never ends. Subscribe before the first list is delivered.
pub async fn run(mut changes: mpsc::UnboundedReceiver<Change>, sessions: Sessions) {
    while let Some(change) = changes.recv().await {
        match change {
            Change::Is(process) => {
                for session in of(&sessions, &process) {
                    advise(&session, &process);
                }
            }
            Change::Gone(process) => {
                for session in of(&sessions, &process) {
                    let message = "the process has been deleted".to_owned();
                    let reason = Reason::Interrupted.to_string();
                    let end = known_end(&process, session.subject().key.attempt);
                    session.close_with(end.unwrap_or(Exit {
                        reason,
                        message,
                        ..Exit::default()
                    }));
                }
            }
        }
    }
}

/// Tells one session what its object says now.
pub fn advise(session: &Session, process: &RemoteProcess) {
    if process.spec.desired_state == DesiredState::Stopped {
        session.stop_by_spec();
    }
    let number = session.subject().key.attempt;
    let status = process.status.as_ref();
    let by_us = status
        .and_then(|status| status.attempt(number))
        .and_then(|attempt| attempt.exit.as_ref())
        .is_some_and(|exit| exit.source == ExitSource::Entrypoint);
    if let Some(exit) = known_end(process, number).filter(|_| !by_us) {
        session.close_with(exit);
    }
}

/// The live sessions of an object.
fn of(sessions: &Sessions, process: &RemoteProcess) -> Vec<Arc<Session>> {
    let uid = process.uid().unwrap_or_default();
    let attempts = process.status.iter().flat_map(|status| &status.attempts);
    attempts
        .filter_map(|attempt| {
            sessions.get(&AttemptKey {
                uid: uid.clone(),
                attempt: attempt.number,
            })
        })
        .collect()
}

/// Records the ends that were archived by a relay which died before it could write them into the status.
pub async fn make_up(directory: &Directory, archive: &Archive, sessions: &Sessions, record: &dyn Record) {
    for process in directory.list("") {
        let Some(subject) = unfinished(&process).filter(|subject| sessions.get(&subject.key).is_none()) else {
            continue;
        };
        match archived_end(archive, &subject).await {
            Ok(Some(ending)) => {
                info!(
                    uid = subject.key.uid,
                    attempt = subject.key.attempt,
                    "recording an end that was only archived"
                );
                record.ended(&subject, &ending).await;
            }
            Ok(None) => {}
            Err(error) => warn!(uid = subject.key.uid, %error, "cannot read what is archived"),
        }
    }
}

/// The current attempt, if it was granted and its output is not recorded.
fn unfinished(process: &RemoteProcess) -> Option<Subject> {
    let status = process.status.as_ref()?;
    let attempt = status.attempt(status.attempt?)?;
    if attempt.granted_at.is_none() || attempt.output.is_some() {
        return None;
    }
    Some(Subject {
        namespace: process.namespace()?,
        name: process.name_any(),
        pod_uid: attempt.pod_uid.clone().unwrap_or_default(),
        key: AttemptKey {
            uid: process.uid()?,
            attempt: attempt.number,
        },
    })
}

async fn archived_end(archive: &Archive, subject: &Subject) -> Result<Option<Ending>, super::archive::Error> {
    let Some(manifest) = archive.manifest(&subject.key).await? else {
        return Ok(None);
    };
    let Some(exit) = manifest.exit_frame() else {
        return Ok(None);
    };
    let tail = archive.last_bytes(&subject.key, TAIL_BYTES).await?;
    let end = Cursor {
        stdout: manifest.stdout_bytes,
        stderr: manifest.stderr_bytes,
    };
    Ok(Some(Ending {
        exit,
        end,
        gaps: manifest.gaps,
        tail,
    }))
}
