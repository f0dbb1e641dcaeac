//! Processes without their message: a bridge has died after it had created the process and before it had stored the
//! message. If the message comes again it is stored. If not, the process would wait for it forever and hold a place.

use std::collections::BTreeSet;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use remoteprocess_api::{Phase, RemoteProcess};

use super::Engine;
use crate::kubernetes::ApiError;
use crate::runs::Known;

/// How long a process may be without its message.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);
/// Most processes that are looked at at the same time.
const MAX_INSPECTING: usize = 8;

#[derive(Default)]
pub(super) struct Orphans {
    /// Whether the process had its message, or else was deleted.
    pub(super) inspecting: FuturesUnordered<BoxFuture<'static, (String, Result<bool, ApiError>)>>,
    in_inspection: BTreeSet<String>,
}

/// Whether a process may wait for a message that nobody stores any more. One that has run once had its message.
fn is_suspect(process: &RemoteProcess, now: Timestamp) -> bool {
    let created = process.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let is_old = created.is_some_and(|created| now.duration_since(created) >= PATIENCE);
    let status = process.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    is_old && matches!(phase, Phase::Pending | Phase::Starting) && status.started_at.is_none()
}

impl Engine {
    /// Looks after processes that wait for longer than they should, if their message is not known to be stored.
    pub(super) fn start_inspections(&mut self) {
        let free = MAX_INSPECTING.saturating_sub(self.orphans.inspecting.len());
        let now = Timestamp::now();
        let suspects = self.runs.open().filter(|process| {
            let name = process.name_any();
            is_suspect(process, now)
                && !self.complete.contains(&name)
                && !self.in_hand.contains_key(&name)
                && !self.orphans.in_inspection.contains(&name)
        });
        let suspects: Vec<_> = suspects.take(free).cloned().collect();
        for process in suspects {
            let (kubernetes, name) = (self.kubernetes.clone(), process.name_any());
            self.orphans.in_inspection.insert(name.clone());
            self.orphans.inspecting.push(Box::pin(async move {
                let inspected = match kubernetes.has_message(&process).await {
                    Ok(false) => {
                        tracing::warn!(
                            process = name,
                            "a process has not got its message in a minute: it is deleted"
                        );
                        let deleted = kubernetes.delete(&name, &process.uid().unwrap_or_default()).await;
                        deleted.map(|()| false)
                    }
                    has_message => has_message,
                };
                (name, inspected)
            }));
        }
    }

    pub(super) fn inspected(&mut self, name: String, inspected: Result<bool, ApiError>) {
        self.orphans.in_inspection.remove(&name);
        match inspected {
            Ok(true) if self.runs.known(&name) == Known::Running => {
                self.complete.insert(name);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(process = name, %error, "cannot look for the message of a process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn who_has_waited_for_a_minute_and_never_run_is_looked_at() {
        let process = |status: Value| -> RemoteProcess {
            serde_json::from_value(json!({
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
                "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"image": "i", "command": ["x"]}, "status": status,
            }))
            .unwrap()
        };
        let after = |seconds| {
            let created: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
            created + SignedDuration::from_secs(seconds)
        };
        assert!(!is_suspect(&process(json!({})), after(59)));
        for status in [json!({}), json!({"phase": "Pending"}), json!({"phase": "Starting"})] {
            assert!(is_suspect(&process(status), after(60)));
        }
        for status in [
            json!({"phase": "Running"}),
            json!({"phase": "Failed"}),
            json!({"phase": "Pending", "startedAt": "2026-01-01T00:00:01Z"}),
        ] {
            assert!(!is_suspect(&process(status.clone()), after(600)), "{status}");
        }
    }
}
