//! Kubernetes Events: one for each change of phase, and one for each message for which a process waits long.

mod long_wait;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::names::CONTROLLER_MANAGER;
use remoteprocess_api::{EventAction, EventReason, Phase, Reason, RemoteProcess};
use serde_json::json;
use sha2::{Digest, Sha256};
use tracing::debug;

pub(crate) use long_wait::LongWait;

/// Writes Events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reporter {
    client: Client,
    instance: String,
}

/// The content of an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
struct News {
    is_warning: bool,
    reason: String,
    action: String,
    note: Option<String>,
}

impl Reporter {
    pub(crate) fn new(client: Client) -> Self {
        let reporter = kube::runtime::events::Reporter::from(CONTROLLER_MANAGER);
        let instance = reporter.instance.unwrap_or(reporter.controller);
        Self { client, instance }
    }

    /// Reports the phase if it is new. An Event that cannot be written is only logged: the status says the same.
    pub(crate) async fn report_phase(&self, before: &RemoteProcess, now: &RemoteProcess) {
        let Some(news) = phase_news(before, now) else { return };
        let moment = Timestamp::now();
        let name = format!("{}.{:x}", now.name_any(), moment.as_nanosecond());
        self.create(&self.event(now, name, &news, moment)).await;
    }

    /// Reports a long wait of a process; `count` is how often that was due. The note of an Event cannot change, so each
    /// message has an Event of its own; repetitions update its series.
    pub(crate) async fn report_wait(&self, process: &RemoteProcess, count: u32) {
        let Some(news) = wait_news(process) else { return };
        let moment = Timestamp::now();
        let event = self.event(process, event_name(process, &news), &news, moment);
        // It may already exist, from another leader, or may be gone, because it was too old.
        if count == 1 {
            if self.create(&event).await == Some(409) {
                self.renew(&event, 2, moment).await;
            }
        } else if self.renew(&event, count, moment).await == Some(404) {
            self.create(&event).await;
        }
    }

    /// Reports that a pod was deleted because a container that is not ours kept it alive.
    pub(crate) async fn report_held_pod(&self, process: &RemoteProcess, pod: &str, holder: &str) {
        let news = News {
            is_warning: true,
            reason: Reason::ForeignContainer.to_string(),
            action: EventAction::PodDeleted.to_string(),
            note: Some(format!(
                "the pod {pod} is deleted: its attempt has ended, and the container {holder}, which is not ours, has kept it alive"
            )),
        };
        let event = self.event(process, event_name(process, &news), &news, Timestamp::now());
        self.create(&event).await;
    }

    /// Reports a new state of the bridge of a trigger or a sink. The same sentence about the same object has one Event as long as that is
    /// kept. A bridge that starts is not worth an Event.
    pub(crate) async fn report_bridge<K>(&self, object: &K, deployed: &Condition)
    where
        K: Resource<DynamicType = ()>,
    {
        if deployed.reason == BridgeReason::Starting.to_string() {
            return;
        }
        let news = News {
            is_warning: deployed.status != "True",
            reason: deployed.reason.clone(),
            action: EventAction::Deploy.to_string(),
            note: Some(deployed.message.clone()),
        };
        let event = self.event(object, event_name(object, &news), &news, Timestamp::now());
        self.create(&event).await;
    }

    /// Creates an Event; returns the code of a refusal.
    async fn create(&self, event: &Event) -> Option<u16> {
        answered(self.events(event).create(&PostParams::default(), event).await)
    }

    async fn renew(&self, event: &Event, count: u32, moment: Timestamp) -> Option<u16> {
        let series = EventSeries {
            count: i32::try_from(count).unwrap_or(i32::MAX),
            last_observed_time: MicroTime(moment),
        };
        let patch = Patch::Merge(json!({"series": series}));
        let params = PatchParams::default();
        answered(self.events(event).patch(&event.name_any(), &params, &patch).await)
    }

    fn events(&self, event: &Event) -> Api<Event> {
        Api::namespaced(self.client.clone(), &event.namespace().unwrap_or_default())
    }

    fn event<K: Resource<DynamicType = ()>>(&self, object: &K, name: String, news: &News, moment: Timestamp) -> Event {
        let News {
            is_warning,
            reason,
            action,
            note,
        } = news.clone();
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: object.namespace(),
                ..ObjectMeta::default()
            },
            action: Some(action),
            event_time: Some(MicroTime(moment)),
            note,
            reason: Some(reason),
            regarding: Some(ObjectReference {
                resource_version: None,
                ..object.object_ref(&())
            }),
            reporting_controller: Some(CONTROLLER_MANAGER.into()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if is_warning { "Warning" } else { "Normal" }.into()),
            ..Event::default()
        }
    }
}

fn answered(answer: kube::Result<Event>) -> Option<u16> {
    let error = answer.err()?;
    debug!(%error, "cannot write an event");
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn phase_news(before: &RemoteProcess, now: &RemoteProcess) -> Option<News> {
    let status = now.status.as_ref()?;
    let phase = status.phase?;
    let previous = before.status.as_ref().and_then(|status| status.phase);
    // A new process that waits is not worth an Event.
    if previous == Some(phase) || (previous.is_none() && phase == Phase::Pending) {
        return None;
    }
    let is_resumed = (previous, phase) == (Some(Phase::Paused), Phase::Running);
    let note = if is_resumed {
        Some(format!("the program continues, resumed {}", now.requester()))
    } else {
        status.message.clone()
    };
    Some(News {
        is_warning: phase == Phase::Failed,
        reason: match status.reason {
            _ if is_resumed => EventReason::Resumed.to_string(),
            Some(reason) => reason.to_string(),
            None => phase.to_string(),
        },
        note,
        action: phase.to_string(),
    })
}

fn wait_news(process: &RemoteProcess) -> Option<News> {
    let status = process.status.as_ref()?;
    Some(News {
        is_warning: true,
        reason: status.reason?.to_string(),
        note: status.message.clone(),
        action: EventAction::Waiting.to_string(),
    })
}

/// The same name for the same message about the same object, whichever operator reports it.
fn event_name<K: Resource<DynamicType = ()>>(object: &K, news: &News) -> String {
    let digest = Sha256::new()
        .chain_update(object.uid().unwrap_or_default())
        .chain_update([0])
        .chain_update(&news.reason)
        .chain_update([0])
        .chain_update(news.note.as_deref().unwrap_or_default())
        .finalize();
    format!("{}.{}", object.name_any(), hex::encode(&digest[..8]))
}

#[cfg(test)]
mod tests;
