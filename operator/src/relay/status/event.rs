//! Events of a running program, named by their content: a second writer of the same Event finds it already there.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Resource;
use remoteprocess_api::sanitize::plain;
use remoteprocess_api::{EventAction, EventReason, RemoteProcess, names};
use sha2::{Digest, Sha256};

use crate::relay::attempt::Subject;
use crate::relay::live::Fact;

/// Maximum length of a note (Kubernetes, `Event.note`).
const NOTE: usize = 1024;

/// The content of an Event.
struct News {
    kind: &'static str,
    reason: EventReason,
    action: EventAction,
    note: String,
    /// One Event for each value of this.
    occasion: i64,
}

/// The Event for a fact; `None` for a fact that is in the status.
pub(super) fn build(subject: &Subject, replica: &str, fact: &Fact, now: Timestamp) -> Option<Event> {
    let name = &subject.name;
    let news = match fact {
        Fact::DeadlineNear(run_deadline) => News {
            kind: "Normal",
            reason: EventReason::DeadlineNear,
            action: EventAction::Warn,
            note: format!(
                "it will soon have run for {} s, and is stopped then (spec.deadlines.runSeconds); for more time: \
                 rproc extend {name} --by 10m",
                run_deadline.as_secs()
            ),
            occasion: i64::try_from(run_deadline.as_secs()).unwrap_or(i64::MAX),
        },
        Fact::PauseFailed { generation, why } => News {
            kind: "Warning",
            reason: EventReason::PauseFailed,
            action: EventAction::Pause,
            note: format!("it cannot be paused: {why}"),
            occasion: *generation,
        },
        Fact::Started { .. } | Fact::Paused(_) | Fact::RunDeadline(_) => return None,
    };
    Some(event(subject, replica, news, now))
}

/// The Event of a status that the API server refuses to write. The output is safe, but the status does not show it.
pub(super) fn of_refusal(subject: &Subject, replica: &str, what: &str, error: &kube::Error, now: Timestamp) -> Event {
    let attempt = subject.key.attempt;
    let why = match error {
        kube::Error::Api(status) => &status.message,
        _ => "",
    };
    let news = News {
        kind: "Warning",
        reason: EventReason::StatusRefused,
        action: EventAction::Record,
        note: format!(
            "the API server refuses the {what} of attempt {attempt} in the status; it is tried again until the cause is \
             removed: {why}"
        ),
        occasion: 0,
    };
    event(subject, replica, news, now)
}

fn event(subject: &Subject, replica: &str, news: News, now: Timestamp) -> Event {
    let key = &subject.key;
    let occasion = format!("{} {} {} {}", key.uid, key.attempt, news.reason, news.occasion);
    let digest = Sha256::digest(occasion);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{}", subject.name, hex::encode(&digest[..8]))),
            namespace: Some(subject.namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(news.kind.to_owned()),
        reason: Some(news.reason.to_string()),
        action: Some(news.action.to_string()),
        note: Some(plain(&news.note, NOTE / 4)),
        regarding: Some(ObjectReference {
            api_version: Some(RemoteProcess::api_version(&()).into_owned()),
            kind: Some(RemoteProcess::kind(&()).into_owned()),
            name: Some(subject.name.clone()),
            namespace: Some(subject.namespace.clone()),
            uid: Some(key.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(names::RELAY_MANAGER.to_owned()),
        reporting_instance: Some(replica.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::subject;
    use super::*;

    #[test]
    fn one_occasion_has_one_name() {
        let subject = subject();
        let named = |replica, seconds| {
            let event = build(
                &subject,
                replica,
                &Fact::DeadlineNear(Duration::from_secs(seconds)),
                Timestamp::now(),
            )
            .unwrap();
            (event.metadata.name.unwrap(), event.note.unwrap())
        };
        let (name, note) = named("operator-0", 60);
        assert_eq!(named("operator-1", 60).0, name);
        assert_ne!(named("operator-0", 120).0, name);
        assert!(
            name.starts_with("hello.") && note.contains("rproc extend hello"),
            "{name}: {note}"
        );
        let refused = Fact::PauseFailed {
            generation: 3,
            why: "busy\u{1b}".to_owned(),
        };
        let event = build(&subject, "operator-0", &refused, Timestamp::now()).unwrap();
        assert_eq!(
            (event.type_.as_deref(), event.note.as_deref()),
            (Some("Warning"), Some("it cannot be paused: busy"))
        );
    }
}
