//! Triggers for people: one as a line of a table, and the details of one.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::bridge::BridgeSpec;
use remoteprocess_api::trigger::{MessageId, Payload, ProcessTriggerSpec, ProcessTriggerStatus, SourceSpec};

use super::bridged::{Row, number, ready, ready_cells};
use super::description::{Page, conditions, describe_events, moment};
use super::row::command;
use super::since;

impl Row for ProcessTrigger {
    const COLUMNS: &'static [&'static str] = &[
        "SOURCE",
        "READY",
        "RUNNING",
        "SUCCEEDED",
        "FAILED",
        "LAG",
        "LAST-MESSAGE",
    ];
    const WIDE_COLUMNS: &'static [&'static str] = &["DEAD-LETTERED", "REASON"];

    fn cells(trigger: Option<&Self>, now: Timestamp) -> (Vec<String>, Vec<String>) {
        let source = trigger.map_or("Unreadable", |trigger| trigger.spec.source.kind());
        let status = trigger.and_then(|trigger| trigger.status.clone()).unwrap_or_default();
        let (ready, reason) = ready_cells(&status.conditions);
        let cells = vec![
            source.to_owned(),
            ready,
            number(status.running),
            number(status.succeeded),
            number(status.failed),
            number(status.lag),
            since(status.last_message_time, now),
        ];
        (cells, vec![number(status.dead_lettered), reason])
    }
}

/// The state of a trigger as the end of a sentence: `Ready is False: Forbidden: the API server …`.
pub fn state(trigger: &ProcessTrigger) -> String {
    let conditions = trigger.status.as_ref().map(|status| status.conditions.as_slice());
    let conditions = conditions.unwrap_or_default();
    let bad = conditions.iter().find(|condition| condition.status != "True");
    match bad.or_else(|| ready(conditions)) {
        Some(condition) => {
            let Condition {
                type_,
                status,
                reason,
                message,
                ..
            } = condition;
            format!("{type_} is {status}: {reason}: {message}")
        }
        None => "its bridge has not reported yet".to_owned(),
    }
}

/// The text of `rproc trigger describe`. `events`: absent if the user may not read them.
pub fn describe(trigger: &ProcessTrigger, events: Option<&[Event]>, now: Timestamp) -> String {
    let mut page = Page::default();
    let spec = &trigger.spec;
    page.metadata(&trigger.metadata, now);
    page.field("Account", Some(&spec.service_account_name));
    page.field("Suspended", spec.is_suspended().then_some("yes: no messages are taken"));
    let has_stand_by = BridgeSpec::replicas(spec.bridge.as_ref()) > 1;
    page.field("Stand-by", has_stand_by.then_some("a second pod of the bridge"));
    source(&mut page, &spec.source);
    rules(&mut page, spec);
    page.field("Image", Some(&spec.template.spec.image));
    page.field("Command", Some(command(&spec.template.spec.argv())));
    let status = trigger.status.clone().unwrap_or_default();
    counts(&mut page, &status, now);
    conditions(&mut page, &status.conditions, None, now);
    describe_events(&mut page, events, now);
    page.0
}

fn source(page: &mut Page, source: &SourceSpec) {
    page.title(&format!("Source {}", source.kind()));
    if let Some(http) = &source.http {
        page.inner("Secret", Some(&http.secret_name));
        page.inner("TLS", http.tls_secret_name.as_deref());
    }
    if let Some(nats) = &source.nats {
        page.inner("Servers", Some(nats.servers.join(", ")));
        page.inner("Stream", Some(&nats.stream));
        page.inner("Subject", nats.subject.as_deref());
        page.inner("Consumer", nats.consumer.as_deref());
        page.inner("Results", nats.result_subject.as_deref());
        page.inner("Dead letters", nats.dead_letter_subject.as_deref());
    }
    if let Some(rabbitmq) = &source.rabbitmq {
        page.inner("Address", Some(&rabbitmq.address));
        page.inner("Virtual host", rabbitmq.virtual_host.as_deref());
        page.inner("Queue", Some(&rabbitmq.queue));
        page.inner("Dead letters", rabbitmq.dead_letter_exchange.as_deref());
        page.inner("Replays from", rabbitmq.dead_letter_queue.as_deref());
    }
    if let Some(pubsub) = &source.pubsub {
        page.inner("Project", Some(&pubsub.project));
        page.inner("Subscription", Some(&pubsub.subscription));
        page.inner("Endpoint", pubsub.endpoint.as_deref());
        page.inner("Results", pubsub.result_topic.as_deref());
        page.inner("Dead letters", pubsub.dead_letter_topic.as_deref());
        page.inner("Replays from", pubsub.dead_letter_subscription.as_deref());
    }
}

fn rules(page: &mut Page, spec: &ProcessTriggerSpec) {
    page.title("Messages");
    let message = spec.message.clone().unwrap_or_default();
    page.inner(
        "Id",
        Some(match message.id.unwrap_or_default() {
            MessageId::Auto => "from the broker or the sender, or of the payload".to_owned(),
            MessageId::Header => format!("header {}", message.id_header.unwrap_or_default()),
            MessageId::Body => "SHA-256 of the payload".to_owned(),
        }),
    );
    let name = spec.payload_env();
    page.inner(
        "Payload",
        Some(match spec.payload() {
            Payload::File => format!("file in {}; its path is in {name}", spec.payload_directory()),
            Payload::Env => format!("environment variable {name}"),
            Payload::Stdin => "standard input".to_owned(),
            Payload::None => "not given to the program".to_owned(),
        }),
    );
    page.inner("Size limit", Some(format!("{} bytes", spec.max_payload_bytes())));
    page.inner("At once", Some(format!("{} processes", spec.max_running())));
    let rate = spec.policy.as_ref().and_then(|policy| policy.max_per_minute);
    page.inner("Per minute", rate.map(|rate| format!("{rate} processes")));
    page.inner("Acknowledged", Some(spec.acknowledge()));
    page.inner(
        "Remembered",
        Some(format!("{} s after the end", spec.remember_seconds())),
    );
}

fn counts(page: &mut Page, status: &ProcessTriggerStatus, now: Timestamp) {
    page.title("Counts");
    page.inner("Waiting", status.lag);
    page.inner("Received", status.received);
    page.inner("Started", status.started);
    page.inner("Duplicates", status.duplicates);
    page.inner("Running", status.running);
    page.inner("Succeeded", status.succeeded);
    page.inner("Failed", status.failed);
    page.inner("Dead letters", status.dead_lettered);
    page.inner("Refused", status.refused);
    page.inner("Last message", status.last_message_time.map(|then| moment(then, now)));
}

#[cfg(test)]
mod tests {
    use kube::core::DynamicObject;
    use serde_json::{Value, json};

    use super::super::bridged::{Columns, tests::assert_examples};
    use super::*;
    use crate::render::Table;

    fn trigger(name: &str, source: &Value, status: &Value) -> Value {
        json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessTrigger",
            "metadata": {"name": name, "namespace": "shop", "uid": "u-1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "serviceAccountName": "orders", "source": source,
                "template": {"spec": {"image": "busybox:1.36", "command": ["sh", "-c", "cat \"$MESSAGE\""]}},
                "policy": {"maxRunning": 5, "maxPerMinute": 60},
            },
            "status": status,
        })
    }

    fn nats() -> Value {
        json!({"nats": {"servers": ["nats://a:4222", "nats://b:4222"], "stream": "ORDERS", "subject": "orders.new",
                        "deadLetterSubject": "orders.dead"}})
    }

    fn busy() -> Value {
        json!({
            "received": 120, "started": 118, "duplicates": 2, "succeeded": 100, "failed": 13, "deadLettered": 13,
            "running": 5, "lag": 880, "lastMessageTime": "2026-01-01T00:02:05Z",
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "Limited", "lastTransitionTime": "2026-01-01T00:02:00Z",
                 "message": "5 processes run, as many as policy.maxRunning allows; further messages wait in the broker"},
                {"type": "Connected", "status": "True", "reason": "Connected", "message": "\u{1b}[2J",
                 "lastTransitionTime": "2026-01-01T00:00:10Z"},
            ],
        })
    }

    #[test]
    fn a_table_of_triggers() {
        let objects: Vec<DynamicObject> = serde_json::from_value(json!([
            trigger("orders", &nats(), &busy()),
            trigger("hook", &json!({"http": {"secretName": "s"}}), &Value::Null),
            {"metadata": {"name": "odd"}, "spec": {"source": 7}},
        ]))
        .unwrap();
        let now = "2026-01-01T00:02:10Z".parse().unwrap();
        let columns = Columns {
            namespace: true,
            wide: true,
        };
        let mut rows = vec![columns.header::<ProcessTrigger>()];
        rows.extend(objects.iter().map(|object| columns.row::<ProcessTrigger>(object, now)));
        let mut table = Table::default();
        table.fit(&rows);
        insta::assert_snapshot!(table.lines(&rows));
    }

    #[test]
    fn the_details_of_a_trigger() {
        let now = "2026-01-01T00:02:10Z".parse().unwrap();
        let busy: ProcessTrigger = serde_json::from_value(trigger("orders", &nats(), &busy())).unwrap();
        let text = describe(&busy, Some(&[]), now);
        assert!(!text.contains('\u{1b}'), "{text}");
        insta::assert_snapshot!(text);
        assert!(
            state(&busy).starts_with("Ready is False: Limited: 5 processes run"),
            "{}",
            state(&busy)
        );
        for source in [
            json!({"http": {"secretName": "keys"}}),
            json!({"rabbitmq": {"address": "keys", "queue": "q"}}),
            json!({"pubsub": {"project": "keys", "subscription": "s"}}),
        ] {
            let new: ProcessTrigger = serde_json::from_value(trigger("new", &source, &Value::Null)).unwrap();
            assert!(describe(&new, None, now).contains("keys"), "{source}");
            assert_eq!(state(&new), "its bridge has not reported yet");
        }
    }

    #[test]
    fn the_examples_are_triggers_without_unknown_fields() {
        for text in [
            include_str!("../../../examples/triggers/http.yaml"),
            include_str!("../../../examples/triggers/nats.yaml"),
            include_str!("../../../examples/triggers/rabbitmq.yaml"),
            include_str!("../../../examples/triggers/pubsub.yaml"),
        ] {
            let trigger: ProcessTrigger = assert_examples(text, "orders", "remoteprocess-trigger");
            assert_ne!(trigger.spec.source.kind(), "none");
        }
    }
}
