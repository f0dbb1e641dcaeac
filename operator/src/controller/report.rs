//! Kubernetes Events: one for each change of phase, none for anything else.

use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource};
use remoteprocess_api::{Phase, RemoteProcess, names::CONTROLLER_MANAGER};
use tracing::debug;

/// That it goes on after a pause is another news than that it runs.
const RESUMED: &str = "Resumed";

/// Writes Events. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reporter(Recorder);

impl Reporter {
    pub(super) fn new(client: Client) -> Self {
        Self(Recorder::new(client, CONTROLLER_MANAGER.into()))
    }

    /// Reports the new phase, if it is one. An event that cannot be written is only logged:
    /// the status says the same.
    pub(super) async fn report_phase(&self, before: &RemoteProcess, now: &RemoteProcess) {
        let Some(event) = phase_event(before, now) else { return };
        if let Err(error) = self.0.publish(&event, &now.object_ref(&())).await {
            debug!(%error, "cannot write an event");
        }
    }
}

fn phase_event(before: &RemoteProcess, now: &RemoteProcess) -> Option<Event> {
    let status = now.status.as_ref()?;
    let phase = status.phase?;
    let previous = before.status.as_ref().and_then(|status| status.phase);
    // That it waits is no news at its creation.
    if previous == Some(phase) || (previous.is_none() && phase == Phase::Pending) {
        return None;
    }
    let is_resumed = (previous, phase) == (Some(Phase::Paused), Phase::Running);
    let note = if is_resumed {
        Some(match now.asked().sentence() {
            Some(asked) => format!("the program goes on, {asked}"),
            None => "the program goes on".to_owned(),
        })
    } else {
        status.message.clone()
    };
    Some(Event {
        type_: if phase == Phase::Failed {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: match status.reason {
            _ if is_resumed => RESUMED.to_owned(),
            Some(reason) => reason.to_string(),
            None => phase.to_string(),
        },
        note,
        action: phase.to_string(),
        secondary: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn process(desired: &str, status: Value) -> RemoteProcess {
        let setter = json!({"manager": "rproc", "fieldsV1": {"f:spec": {"f:desiredState": {}}}});
        serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"name": "job", "managedFields": [setter]},
            "spec": {"image": "i", "command": ["x"], "desiredState": desired}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_pause_and_its_end_are_news_with_who_asked() {
        let running = process(
            "Running",
            json!({"phase": "Running", "reason": "Running", "message": "it runs"}),
        );
        let paused = process(
            "Paused",
            json!({"phase": "Paused", "reason": "Paused", "message": "paused by rproc"}),
        );
        let news = |before, now| {
            let event = phase_event(before, now).unwrap();
            (event.reason, event.note.unwrap())
        };
        assert_eq!(news(&running, &paused), ("Paused".into(), "paused by rproc".into()));
        assert_eq!(
            news(&paused, &running),
            ("Resumed".into(), "the program goes on, asked by rproc".into())
        );
        assert!(phase_event(&paused, &paused).is_none());
    }
}
