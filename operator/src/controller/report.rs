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
    Some(Event {
        type_: if phase == Phase::Failed {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: match (previous, phase, status.reason) {
            (Some(Phase::Paused), Phase::Running, _) => RESUMED.to_owned(),
            (_, _, Some(reason)) => reason.to_string(),
            (_, _, None) => phase.to_string(),
        },
        note: status.message.clone(),
        action: phase.to_string(),
        secondary: None,
    })
}
