//! Sinks for people: one as a line of a table, and the details of one.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use remoteprocess_api::ProcessSink;
use remoteprocess_api::bridge::BridgeSpec;
use remoteprocess_api::sink::{DestinationSpec, OutputFormat, OutputStream, SinkOutput};

use super::bridged::{Row, number, ready_cells, trust};
use super::description::{Page, conditions, describe_events, moment};
use super::since;

impl Row for ProcessSink {
    const COLUMNS: &'static [&'static str] = &["DESTINATION", "READY", "SENT", "WAITING", "LAST-EVENT"];
    const WIDE_COLUMNS: &'static [&'static str] = &["RESENT", "REASON"];

    fn cells(sink: Option<&Self>, now: Timestamp) -> (Vec<String>, Vec<String>) {
        let destination = sink.map_or("Unreadable", |sink| sink.spec.destination.kind());
        let status = sink.and_then(|sink| sink.status.clone()).unwrap_or_default();
        let (ready, reason) = ready_cells(&status.conditions);
        let cells = vec![
            destination.to_owned(),
            ready,
            number(status.sent),
            number(status.waiting),
            since(status.last_event_time, now),
        ];
        (cells, vec![number(status.resent), reason])
    }
}

/// The text of `rproc sink describe`. `events`: absent if the user may not read them.
pub fn describe(sink: &ProcessSink, events: Option<&[Event]>, now: Timestamp) -> String {
    let mut page = Page::default();
    let spec = &sink.spec;
    page.metadata(&sink.metadata, now);
    page.field("Account", Some(&spec.service_account_name));
    page.field("Suspended", spec.is_suspended().then_some("yes: no events are sent"));
    let has_stand_by = BridgeSpec::replicas(spec.bridge.as_ref()) > 1;
    page.field("Stand-by", has_stand_by.then_some("a second pod of the bridge"));
    page.field("Processes", Some(processes(spec.selector.as_ref())));
    page.field("Output", Some(output(spec.output.as_ref())));
    destination(&mut page, &spec.destination);
    let status = sink.status.clone().unwrap_or_default();
    page.title("Counts");
    page.inner("Sent", status.sent);
    page.inner("Sent again", status.resent);
    page.inner("Waiting", status.waiting.map(|count| format!("{count} processes")));
    page.inner("Last event", status.last_event_time.map(|then| moment(then, now)));
    conditions(&mut page, &status.conditions, None, now);
    describe_events(&mut page, events, now);
    page.0
}

/// A selector as kubectl writes it; `all`, if it selects all.
fn processes(selector: Option<&LabelSelector>) -> String {
    let labels = selector
        .iter()
        .flat_map(|selector| selector.match_labels.iter().flatten());
    let labels = labels.map(|(name, value)| format!("{name}={value}"));
    let expressions = selector
        .iter()
        .flat_map(|selector| selector.match_expressions.iter().flatten());
    let expressions =
        expressions.map(
            |rule| match (rule.operator.as_str(), rule.values.as_deref().unwrap_or_default()) {
                ("Exists", _) => rule.key.clone(),
                ("DoesNotExist", _) => format!("!{}", rule.key),
                ("NotIn", values) => format!("{} notin ({})", rule.key, values.join(",")),
                (_, values) => format!("{} in ({})", rule.key, values.join(",")),
            },
        );
    let rules: Vec<String> = labels.chain(expressions).collect();
    if rules.is_empty() {
        "all".to_owned()
    } else {
        rules.join(",")
    }
}

fn output(output: Option<&SinkOutput>) -> String {
    let Some(output) = output else {
        return "not sent".to_owned();
    };
    let names = [
        (OutputStream::Stdout, "standard output"),
        (OutputStream::Stderr, "standard error"),
    ];
    let streams: Vec<_> = names
        .into_iter()
        .filter(|(stream, _)| output.has(*stream))
        .map(|(_, name)| name)
        .collect();
    let form = match output.format {
        OutputFormat::Chunks => "in blocks",
        OutputFormat::Lines => "by lines",
    };
    format!("{} {form}", streams.join(" and "))
}

fn destination(page: &mut Page, destination: &DestinationSpec) {
    page.title(&format!("Destination {}", destination.kind()));
    if let Some(http) = &destination.http {
        page.inner("URL", Some(&http.url));
        page.inner("Secret", http.credentials_secret_name.as_deref());
        trust(page, http.tls.as_ref());
    }
    if let Some(nats) = &destination.nats {
        page.inner("Servers", Some(nats.servers.join(", ")));
        page.inner("Subject", Some(&nats.subject));
        page.inner("Secret", nats.credentials_secret_name.as_deref());
        trust(page, nats.tls.as_ref());
    }
    if let Some(rabbitmq) = &destination.rabbitmq {
        page.inner("Address", Some(&rabbitmq.address));
        page.inner("Virtual host", rabbitmq.virtual_host.as_deref());
        page.inner("Exchange", rabbitmq.exchange.as_deref());
        page.inner("Routing key", Some(&rabbitmq.routing_key));
        page.inner("Secret", rabbitmq.credentials_secret_name.as_deref());
        trust(page, rabbitmq.tls.as_ref());
    }
    if let Some(pubsub) = &destination.pubsub {
        page.inner("Project", Some(&pubsub.project));
        page.inner("Topic", Some(&pubsub.topic));
        page.inner("Endpoint", pubsub.endpoint.as_deref());
        page.inner("Secret", pubsub.credentials_secret_name.as_deref());
    }
}

#[cfg(test)]
mod tests {
    use kube::core::DynamicObject;
    use serde_json::{Value, json};

    use super::super::bridged::{Columns, tests::assert_examples};
    use super::*;
    use crate::render::Table;

    fn sink(name: &str, destination: &Value, more: &Value, status: &Value) -> Value {
        let mut sink = json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessSink",
            "metadata": {"name": name, "namespace": "shop", "uid": "u-1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"serviceAccountName": "events", "destination": destination},
            "status": status,
        });
        sink["spec"]
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        sink
    }

    fn nats() -> Value {
        let tls = json!({"caSecretName": "corp-ca", "clientCertificateSecretName": "cert"});
        json!({"nats": {"servers": ["tls://a:4222"], "subject": "processes", "credentialsSecretName": "login", "tls": tls}})
    }

    fn more() -> Value {
        let rules = json!([{"key": "tier", "operator": "NotIn", "values": ["test", "dev"]}, {"key": "x", "operator": "Exists"}]);
        json!({"selector": {"matchLabels": {"team": "blue"}, "matchExpressions": rules}, "output": {"as": "Lines"}})
    }

    fn behind() -> Value {
        json!({
            "sent": 1200, "resent": 3, "waiting": 7, "lastEventTime": "2026-01-01T00:02:05Z",
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "Unreachable", "lastTransitionTime": "2026-01-01T00:02:00Z",
                 "message": "no connection to tls://a:4222: connection refused\u{1b}[2J"},
            ],
        })
    }

    #[test]
    fn a_table_of_sinks() {
        let objects: Vec<DynamicObject> = serde_json::from_value(json!([
            sink("events", &nats(), &more(), &behind()),
            sink("hook", &json!({"http": {"url": "https://events.example"}}), &json!({}), &Value::Null),
            {"metadata": {"name": "odd"}, "spec": {"destination": 7}},
        ]))
        .unwrap();
        let now = "2026-01-01T00:02:10Z".parse().unwrap();
        let columns = Columns {
            namespace: true,
            wide: true,
        };
        let mut rows = vec![columns.header::<ProcessSink>()];
        rows.extend(objects.iter().map(|object| columns.row::<ProcessSink>(object, now)));
        let mut table = Table::default();
        table.fit(&rows);
        insta::assert_snapshot!(table.lines(&rows));
    }

    #[test]
    fn the_details_of_a_sink() {
        let now = "2026-01-01T00:02:10Z".parse().unwrap();
        let behind: ProcessSink = serde_json::from_value(sink("events", &nats(), &more(), &behind())).unwrap();
        let text = describe(&behind, Some(&[]), now);
        assert!(!text.contains('\u{1b}'), "{text}");
        insta::assert_snapshot!(text);
        for destination in [
            json!({"http": {"url": "https://keys"}}),
            json!({"rabbitmq": {"address": "keys", "routingKey": "q"}}),
            json!({"pubsub": {"project": "keys", "topic": "events"}}),
        ] {
            let new: ProcessSink = serde_json::from_value(sink("new", &destination, &json!({}), &Value::Null)).unwrap();
            let text = describe(&new, None, now);
            assert!(text.contains("keys") && text.contains("Processes:    all"), "{text}");
            assert!(text.contains("Output:       not sent"), "{text}");
        }
    }

    #[test]
    fn one_stream_is_named() {
        let only = |stream| SinkOutput {
            format: OutputFormat::Chunks,
            streams: Some(vec![stream]),
        };
        assert_eq!(output(Some(&only(OutputStream::Stderr))), "standard error in blocks");
        assert_eq!(output(Some(&only(OutputStream::Stdout))), "standard output in blocks");
    }

    #[test]
    fn the_examples_are_sinks_without_unknown_fields() {
        for text in [
            include_str!("../../../examples/sinks/http.yaml"),
            include_str!("../../../examples/sinks/nats.yaml"),
            include_str!("../../../examples/sinks/rabbitmq.yaml"),
            include_str!("../../../examples/sinks/pubsub.yaml"),
        ] {
            let sink: ProcessSink = assert_examples(text, "jobs", "remoteprocess-sink");
            assert_ne!(sink.spec.destination.kind(), "none");
        }
    }
}
