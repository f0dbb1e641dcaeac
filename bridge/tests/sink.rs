//! The engine of a sink: a real nats-server, and a server of HTTP, while both are killed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/engine.rs"]
mod engine;
#[path = "sink/receiver.rs"]
mod receiver;
#[path = "nats/server.rs"]
mod server;
#[path = "sink/stalled.rs"]
mod stalled;
#[path = "sink/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::{Cluster, Cut, Line, PROCESSES, refusal};
use futures::StreamExt as _;
use http::Method;
use receiver::Receiver;
use serde_json::{Value, json};
use server::Server;
use tokio::time::{sleep, timeout};
use world::{
    LOST, Outputs, SINKS, begin_process, condition, fail_process, is_all_sent, lose_node, run_process, sink, start,
    start_candidate, status, until,
};

/// Time between two changes of a process.
const PAUSE: Duration = Duration::from_millis(60);
/// When the events of a short process are sent at the latest, on a machine with much to do.
const SOON: Duration = Duration::from_secs(30);

/// A server with a stream for the subject `events`.
async fn nats() -> Option<Server> {
    let server = Server::start(&[])?;
    let config = stream::Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["events".to_owned()],
        // The server's own memory of ids must not hide that an event was sent twice.
        duplicate_window: Duration::from_millis(100),
        ..stream::Config::default()
    };
    server.context().await.create_stream(config).await.unwrap();
    Some(server)
}

/// Everything that the stream keeps.
async fn kept(context: &jetstream::Context) -> Vec<Vec<u8>> {
    let stream = context.get_stream("EVENTS").await.unwrap();
    let number = stream.cached_info().state.messages;
    let config = jetstream::consumer::pull::Config::default();
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut found = Vec::new();
    while u64::try_from(found.len()).unwrap() < number {
        let mut messages = consumer.fetch().max_messages(500).messages().await.unwrap();
        while let Some(message) = messages.next().await {
            let message = message.unwrap();
            message.ack().await.unwrap();
            found.push(message.payload.to_vec());
        }
    }
    found
}

/// The events of each process in the order in which they came first. Fails if an id has two contents.
fn firsts(events: &[Vec<u8>]) -> BTreeMap<String, Vec<Value>> {
    let mut known: BTreeMap<(String, String), &Vec<u8>> = BTreeMap::new();
    let mut firsts: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for bytes in events {
        let event: Value = serde_json::from_slice(bytes).unwrap();
        let text = |field: &str| event[field].as_str().unwrap().to_owned();
        match known.insert((text("source"), text("id")), bytes) {
            Some(former) => assert_eq!(former, bytes, "the same id, the same bytes"),
            None => firsts.entry(text("subject")).or_default().push(event),
        }
    }
    firsts
}

/// The ids of transitions, and `output` for each run of events of output.
fn in_short(events: &[Value]) -> Vec<String> {
    let mut short: Vec<String> = Vec::new();
    for event in events {
        let kind = event["type"].as_str().unwrap();
        let id = event["id"].as_str().unwrap();
        let is_output = kind.contains("output");
        let next = if is_output {
            "output".to_owned()
        } else {
            id.split_once('.').unwrap().1.to_owned()
        };
        if !is_output || short.last().is_none_or(|last| *last != next) {
            short.push(next);
        }
    }
    short
}

/// The output of one stream of an attempt, put together; what is lost, as zeros.
fn together(events: &[Value], attempt: u32, stream: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for event in events {
        let data = &event["data"];
        if data["attempt"] != attempt || data["stream"] != stream {
            continue;
        }
        let at = |field: &str| usize::try_from(data[field].as_u64().unwrap()).unwrap();
        if event["type"] == "dev.remoteprocess.process.output-lost.v1" {
            assert_eq!(
                (at("from"), at("to"), &data["reason"]),
                (LOST.0, LOST.1, &json!("SpoolFull"))
            );
            bytes.resize(at("to"), 0);
            continue;
        }
        let part = match data["text"].as_str() {
            Some(text) => text.as_bytes().to_vec(),
            None => STANDARD.decode(data["dataBase64"].as_str().unwrap()).unwrap(),
        };
        assert_eq!(
            (at("offset"), at("length")),
            (bytes.len(), part.len()),
            "in order, without a hole"
        );
        bytes.extend(part);
    }
    bytes
}

/// All transitions of each process in order, and its whole output.
fn check(events: &[Vec<u8>], outputs: &Outputs, number: usize) {
    use sha2::{Digest, Sha256};
    let firsts = firsts(events);
    assert_eq!(firsts.len(), number);
    for (name, events) in &firsts {
        let mut expected = vec!["created"];
        let of_attempt = |attempt: u32| match attempt {
            1 => ["1.starting", "1.started", "output", "1.ended"],
            _ => ["2.starting", "2.started", "output", "2.ended"],
        };
        let attempts = if outputs.expected(name, 2, 0).is_empty() { 1 } else { 2 };
        (1..=attempts).for_each(|attempt| expected.extend(of_attempt(attempt)));
        expected.push("finished");
        assert_eq!(in_short(events), expected, "{name}");
        let last = &events.last().unwrap()["data"];
        for attempt in 1..=attempts {
            for (index, stream) in ["stdout", "stderr"].into_iter().enumerate() {
                let bytes = together(events, attempt, stream);
                assert!(
                    bytes == outputs.expected(name, attempt, index),
                    "{name} {attempt} {stream}"
                );
                let is_whole = !events
                    .iter()
                    .any(|event| event["type"].as_str().unwrap().contains("lost"));
                if attempt == attempts && is_whole {
                    assert_eq!(
                        last[stream]["sha256"],
                        hex::encode(Sha256::digest(&bytes)),
                        "{name}: the seal"
                    );
                }
            }
        }
    }
}

/// 20 processes, and 200 with `RPROC_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_transition_and_each_byte_arrives_whatever_is_killed() {
    let Some(mut server) = nats().await else { return };
    let is_long = std::env::var("RPROC_LONG").is_ok_and(|value| value == "1");
    let number = if is_long { 200 } else { 20 };
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let nats = json!({"nats": {"servers": [server.url()], "subject": "events"}});
    cluster.put(SINKS, sink(&nats, &json!({"output": {"as": "Chunks"}})));
    cluster.lose_every(37);
    let mut engine = start(&cluster, &outputs, secrets.path());
    let (mut runs, mut kills) = (tokio::task::JoinSet::new(), 0_u64);
    for process in 0..number {
        runs.spawn(run_process(cluster.clone(), outputs.clone(), process, PAUSE));
        sleep(PAUSE / 2).await;
        if process % (number / 10).max(1) == 1 {
            kills += 1;
            // Not chance, but at other moments of the work each time.
            sleep(Duration::from_millis(kills * 37 % 90)).await;
            engine.kill().await;
            if kills % 3 == 0 {
                server.kill();
                server.begin();
            }
            engine = start(&cluster, &outputs, secrets.path());
        }
    }
    assert!(kills >= 10, "{kills}");
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
    until(&cluster, "all events", || is_all_sent(&cluster, number)).await;
    engine.stop().await;
    let events = kept(&server.context().await).await;
    let distinct: usize = firsts(&events).values().map(Vec::len).sum();
    println!(
        "{number} processes, {} events, {} of them again, {kills} kills",
        events.len(),
        events.len() - distinct
    );
    check(&events, &outputs, number);
}

/// Two bridges of one sink: the one that works loses its way to the Lease, loses its way to the API server, is killed, and
/// ends in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_bridges_one_sends_whatever_happens_to_it() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    let http = json!({"http": {"url": receiver.url()}});
    cluster.put(SINKS, sink(&http, &json!({"output": {"as": "Chunks"}})));
    let holds = async |identity: &str| {
        until(&cluster, identity, || cluster.holder().as_deref() == Some(identity)).await;
        sleep(PAUSE * 10).await;
    };
    let (line_a, line_b) = (Line::of("a"), Line::of("b"));
    let start = |line: &Line| start_candidate(&cluster, &outputs, secrets.path(), line);
    let a = start(&line_a);
    holds("a").await;
    let b = start(&line_b);
    let mut runs = tokio::task::JoinSet::new();
    let (all, output) = (cluster.clone(), outputs.clone());
    let number = 24;
    let creating = tokio::spawn(async move {
        for process in 0..number {
            runs.spawn(run_process(all.clone(), output.clone(), process, PAUSE * 4));
            sleep(PAUSE * 4).await;
        }
        runs.join_all().await;
    });
    sleep(PAUSE * 10).await;
    line_a.cut(Cut::Lease);
    holds("b").await;
    line_a.cut(Cut::Nothing);
    line_b.cut(Cut::Everything);
    holds("a").await;
    line_b.cut(Cut::Nothing);
    a.kill().await;
    holds("b").await;
    let a = start(&line_a);
    sleep(PAUSE * 5).await;
    b.stop().await;
    holds("a").await;
    creating.await.unwrap();
    until(&cluster, "all events", || is_all_sent(&cluster, number)).await;
    a.stop().await;
    let events: Vec<Vec<u8>> = receiver.taken().into_iter().map(|(_, body)| body).collect();
    check(&events, &outputs, number);
    assert_eq!(
        cluster.strays(),
        Vec::<String>::new(),
        "only the holder changes anything"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_gets_each_event_until_it_takes_it() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    std::fs::create_dir(secrets.path().join("credentials")).unwrap();
    std::fs::write(secrets.path().join("credentials/token"), "a token of a sink\n").unwrap();
    let http = json!({"http": {"url": receiver.url(), "credentialsSecretName": "s"}});
    cluster.put(
        SINKS,
        sink(
            &http,
            &json!({"output": {"as": "Lines"}, "selector": {"matchLabels": {"app": "job"}}}),
        ),
    );
    cluster.put(
        PROCESSES,
        json!({"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "other"},
               "spec": {"image": "i", "command": ["x"]}}),
    );
    receiver.answer(503);
    let engine = start(&cluster, &outputs, secrets.path());
    run_process(cluster.clone(), outputs.clone(), 3, Duration::from_millis(5)).await;
    until(&cluster, "the refusal", || {
        condition(&cluster, "Connected").contains("False Unreachable: the destination answers 503")
            && condition(&cluster, "Ready").contains("False Unreachable")
            && status(&cluster)["waiting"] == 1
    })
    .await;
    receiver.answer(302);
    until(&cluster, "the redirect", || {
        condition(&cluster, "Ready").contains("redirects are not followed")
    })
    .await;
    receiver.answer(204);
    until(&cluster, "all events", || is_all_sent_of(&cluster, "p3")).await;
    until(&cluster, "the condition", || {
        condition(&cluster, "Ready").starts_with("True Sending") && status(&cluster)["waiting"] == 0
    })
    .await;
    assert!(status(&cluster)["resent"].as_u64().unwrap() > 0, "{}", status(&cluster));
    let requests = receiver.taken();
    assert!(requests.iter().all(|(headers, _)| {
        headers["content-type"] == "application/cloudevents+json"
            && headers["authorization"] == "Bearer a token of a sink"
    }));
    let events: Vec<Vec<u8>> = requests.into_iter().map(|(_, body)| body).collect();
    check(&events, &outputs, 1);
    let all = firsts(&events);
    let lines = all["p3"]
        .iter()
        .filter(|event| event["type"] == "dev.remoteprocess.process.output.v1");
    let texts: Vec<&str> = lines.filter_map(|event| event["data"]["text"].as_str()).collect();
    assert!(
        texts.len() > 10
            && texts
                .iter()
                .all(|text| text.find('\n').is_none_or(|at| at + 1 == text.len()))
    );
    cluster.remove(SINKS, "events");
    engine.ended().await;
}

fn is_all_sent_of(cluster: &Cluster, name: &str) -> bool {
    let cursor =
        cluster.state_of(PROCESSES, name).unwrap()["metadata"]["annotations"]["sink.remoteprocess.dev/events"].clone();
    cursor
        .as_str()
        .is_some_and(|cursor| cursor.contains(&format!("\"m\":[{},1]", u32::MAX)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_sent_later_and_what_is_gone_has_its_last_events() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    let http = json!({"http": {"url": receiver.url()}});
    cluster.put(SINKS, sink(&http, &json!({"suspend": true})));
    let engine = start(&cluster, &outputs, secrets.path());
    run_process(cluster.clone(), outputs.clone(), 1, Duration::ZERO).await;
    until(&cluster, "suspended", || {
        condition(&cluster, "Ready").starts_with("False Suspended")
    })
    .await;
    assert!(receiver.taken().is_empty());
    cluster.edit(SINKS, "events", |sink| {
        sink["spec"]["suspend"] = json!(false);
        sink["metadata"]["generation"] = json!(2);
    });
    until(&cluster, "all events", || is_all_sent(&cluster, 1)).await;
    until(&cluster, "the generation", || {
        status(&cluster)["observedGeneration"] == 2
    })
    .await;
    // All was sent: its deletion is no event.
    cluster.remove(PROCESSES, "p1");
    receiver.answer(500);
    run_process(cluster.clone(), outputs.clone(), 2, Duration::from_millis(5)).await;
    cluster.remove(PROCESSES, "p2");
    until(&cluster, "the refusal", || {
        condition(&cluster, "Ready").starts_with("False Unreachable")
    })
    .await;
    receiver.answer(200);
    let ids = || {
        let events: Vec<Vec<u8>> = receiver.taken().into_iter().map(|(_, body)| body).collect();
        firsts(&events)
            .get("p2")
            .map(|events| in_short(events))
            .unwrap_or_default()
    };
    until(&cluster, "the last event", || {
        ids().last().is_some_and(|last| last == "deleted")
    })
    .await;
    assert_eq!(
        ids(),
        ["created", "1.starting", "1.started", "1.ended", "finished", "deleted"]
    );
    let kinds: BTreeSet<String> = receiver
        .taken()
        .iter()
        .map(|(_, body)| serde_json::from_slice::<Value>(body).unwrap())
        .filter(|event| event["subject"] == "p1")
        .map(|event| event["type"].as_str().unwrap().to_owned())
        .collect();
    assert!(!kinds.contains("dev.remoteprocess.process.deleted.v1"), "{kinds:?}");
    engine.stop().await;
}

/// The states of a thousand are kept; the others are read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_processes_than_are_kept_are_sent_once_and_in_order() {
    const NUMBER: usize = 1100;
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    cluster.put(SINKS, sink(&json!({"http": {"url": receiver.url()}}), &json!({})));
    for number in 0..NUMBER {
        fail_process(&cluster, number);
    }
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = reads.clone();
    cluster.rule(move |method, path, _| {
        let is_one = path.contains("/remoteprocesses/");
        counted.fetch_add(usize::from(*method == Method::GET && is_one), Ordering::Relaxed);
        None
    });
    let engine = start(&cluster, &outputs, secrets.path());
    until(&cluster, "all events", || is_all_sent(&cluster, NUMBER)).await;
    engine.stop().await;
    let events: Vec<Vec<u8>> = receiver.taken().into_iter().map(|(_, body)| body).collect();
    assert_eq!(events.len(), 2 * NUMBER);
    let all = firsts(&events);
    assert_eq!(all.len(), NUMBER);
    assert!(all.values().all(|events| in_short(events) == ["created", "finished"]));
    let reads = reads.load(Ordering::Relaxed);
    assert!((1..NUMBER).contains(&reads), "{reads}");
}

/// There are 32 workers at most, and each waits for the output of a program that continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_continue_do_not_keep_others_waiting() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    cluster.put(
        SINKS,
        sink(
            &json!({"http": {"url": receiver.url()}}),
            &json!({"output": {"as": "Lines"}}),
        ),
    );
    let names: Vec<String> = (0..70).map(|number| begin_process(&cluster, number)).collect();
    let engine = start(&cluster, &outputs, secrets.path());
    for line in ["one\n", "two\n"] {
        names.iter().for_each(|name| outputs.say(name, line));
        until(&cluster, line, || {
            let taken = receiver.taken();
            let events = taken
                .iter()
                .map(|(_, body)| serde_json::from_slice::<Value>(body).unwrap());
            let lines = events.filter(|event| event["data"]["text"] == line);
            lines
                .map(|event| event["subject"].to_string())
                .collect::<BTreeSet<_>>()
                .len()
                == names.len()
        })
        .await;
    }
    until(&cluster, "nothing to send", || status(&cluster)["waiting"] == 0).await;
    engine.stop().await;
}

/// Whether the events of a short process come in time while there are 40 that continue, and write this.
async fn a_short_one_is_sent(in_time: Duration, write: impl Fn(&Outputs, &str)) {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    cluster.put(
        SINKS,
        sink(
            &json!({"http": {"url": receiver.url()}}),
            &json!({"output": {"as": "Chunks"}}),
        ),
    );
    for number in 100..140 {
        write(&outputs, &begin_process(&cluster, number));
    }
    let engine = start(&cluster, &outputs, secrets.path());
    sleep(Duration::from_millis(500)).await;
    run_process(cluster.clone(), outputs.clone(), 1, Duration::from_millis(5)).await;
    let sent = until(&cluster, "the short one", || is_all_sent_of(&cluster, "p1"));
    assert!(timeout(in_time, sent).await.is_ok(), "not in time");
    engine.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_never_stop_writing_do_not_keep_others_waiting() {
    a_short_one_is_sent(SOON, |outputs, name| outputs.chatter(name, Duration::ZERO)).await;
}

/// They are never idle, and their first block is full only after hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_write_little_do_not_keep_others_waiting() {
    let pause = Duration::from_millis(200);
    a_short_one_is_sent(SOON, |outputs, name| outputs.chatter(name, pause)).await;
}

/// Their workers stay for up to 10 seconds, but not if a transition waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_write_nothing_do_not_keep_others_waiting() {
    a_short_one_is_sent(Duration::from_secs(8), |_, _| ()).await;
}

/// Each worker waits longer for the first byte than others like to wait for its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_of_many_comes_from_a_slow_archive() {
    let outputs = Outputs::slow(Duration::from_millis(1500));
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    cluster.put(
        SINKS,
        sink(
            &json!({"http": {"url": receiver.url()}}),
            &json!({"output": {"as": "Lines"}}),
        ),
    );
    let names: Vec<String> = (0..70).map(|number| begin_process(&cluster, number)).collect();
    names.iter().for_each(|name| outputs.say(name, "a line\n"));
    let engine = start(&cluster, &outputs, secrets.path());
    until(&cluster, "all lines", || {
        let taken = receiver.taken();
        let events = taken
            .iter()
            .map(|(_, body)| serde_json::from_slice::<Value>(body).unwrap());
        let lines = events.filter(|event| event["data"]["text"] == "a line\n");
        let of: BTreeSet<String> = lines.map(|event| event["subject"].to_string()).collect();
        of.len() == names.len()
    })
    .await;
    engine.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_never_stops_does_not_hide_a_change() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    cluster.put(
        SINKS,
        sink(
            &json!({"http": {"url": receiver.url()}}),
            &json!({"output": {"as": "Chunks"}}),
        ),
    );
    outputs.chatter(&begin_process(&cluster, 100), Duration::ZERO);
    let engine = start(&cluster, &outputs, secrets.path());
    until(&cluster, "output", || receiver.taken().len() > 5).await;
    cluster.edit(PROCESSES, "p100", |process| {
        process["status"]["phase"] = json!("Stopping")
    });
    until(&cluster, "the stop", || {
        let taken = receiver.taken();
        taken
            .iter()
            .any(|(_, body)| String::from_utf8_lossy(body).contains("u100.1.stopping"))
    })
    .await;
    engine.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_refused_do_not_keep_others_waiting() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    receiver.refuse("\"subject\":\"p1", 413);
    cluster.put(SINKS, sink(&json!({"http": {"url": receiver.url()}}), &json!({})));
    for number in 100..140 {
        begin_process(&cluster, number);
    }
    let engine = start(&cluster, &outputs, secrets.path());
    until(&cluster, "the refusal", || {
        condition(&cluster, "Ready").contains("False InvalidDestination: ")
    })
    .await;
    run_process(cluster.clone(), outputs.clone(), 2, Duration::from_millis(5)).await;
    until(&cluster, "the other one", || is_all_sent_of(&cluster, "p2")).await;
    let connected = condition(&cluster, "Connected");
    assert!(connected.starts_with("True"), "the destination is there: {connected}");
    assert!(
        condition(&cluster, "Ready").contains("answers 413"),
        "{}",
        condition(&cluster, "Ready")
    );
    receiver.refuse_none();
    until(&cluster, "the cure", || {
        condition(&cluster, "Ready").starts_with("True Sending")
    })
    .await;
    engine.stop().await;
}

/// The answer 500 does not tell whether it is the event, or the destination.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_at_which_the_destination_fails_do_not_keep_others_waiting() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    receiver.refuse("\"subject\":\"p1", 500);
    cluster.put(SINKS, sink(&json!({"http": {"url": receiver.url()}}), &json!({})));
    for number in 100..140 {
        begin_process(&cluster, number);
    }
    let engine = start(&cluster, &outputs, secrets.path());
    until(&cluster, "the failure", || {
        condition(&cluster, "Ready").contains("False Unreachable: the destination answers 500")
    })
    .await;
    run_process(cluster.clone(), outputs.clone(), 2, Duration::from_millis(5)).await;
    until(&cluster, "the other one", || is_all_sent_of(&cluster, "p2")).await;
    engine.kill().await;
}

/// One that continues: its worker does not end when output can be read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_problem_is_over_when_output_comes_again() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    cluster.put(
        SINKS,
        sink(
            &json!({"http": {"url": receiver.url()}}),
            &json!({"output": {"as": "Chunks"}}),
        ),
    );
    outputs.fail(true);
    outputs.chatter(&begin_process(&cluster, 100), Duration::from_millis(200));
    let engine = start(&cluster, &outputs, secrets.path());
    until(&cluster, "the problem", || {
        condition(&cluster, "Ready").starts_with("False OutputUnavailable")
    })
    .await;
    outputs.fail(false);
    until(&cluster, "its end", || {
        condition(&cluster, "Ready").starts_with("True Sending")
    })
    .await;
    engine.kill().await;
}

/// The bridge was away for longer than it waits for a seal, and the agent of a lost node comes back after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_that_was_away_waits_for_what_still_comes() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    let output = json!({"output": {"as": "Lines"}});
    cluster.put(SINKS, sink(&json!({"http": {"url": receiver.url()}}), &output));
    let name = lose_node(&cluster, &outputs, 1, false);
    let engine = start(&cluster, &outputs, secrets.path());
    until(&cluster, "it is read", || receiver.taken().len() >= 5).await;
    lose_node(&cluster, &outputs, 1, true);
    until(&cluster, "all events", || is_all_sent_of(&cluster, &name)).await;
    let events: Vec<Vec<u8>> = receiver.taken().into_iter().map(|(_, body)| body).collect();
    let events = firsts(&events)[&name].clone();
    assert_eq!(together(&events, 1, "stdout"), b"one\ntwo\nfi");
    let last = events.last().unwrap();
    assert_eq!(
        (&last["data"]["outcome"], &last["data"]["sealed"]),
        (&json!("Failed"), &json!(true))
    );
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_cannot_be_read_is_told() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    cluster.put(
        SINKS,
        sink(
            &json!({"http": {"url": receiver.url()}}),
            &json!({"output": {"as": "Chunks"}}),
        ),
    );
    outputs.fail(true);
    let engine = start(&cluster, &outputs, secrets.path());
    run_process(cluster.clone(), outputs.clone(), 3, Duration::from_millis(5)).await;
    until(&cluster, "the condition", || {
        condition(&cluster, "Ready").contains("False OutputUnavailable: you may not read output; allow it: kubectl")
    })
    .await;
    outputs.fail(false);
    until(&cluster, "all events", || is_all_sent_of(&cluster, "p3")).await;
    let events: Vec<Vec<u8>> = receiver.taken().into_iter().map(|(_, body)| body).collect();
    check(&events, &outputs, 1);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_is_told_with_what_helps() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    cluster.put(SINKS, sink(&json!({"http": {"url": receiver.url()}}), &json!({})));
    cluster.rule(|method, path, _| {
        let is_cursor = *method == Method::PATCH && path.contains(PROCESSES);
        is_cursor.then(|| refusal(403, "Forbidden: cannot patch"))
    });
    let engine = start(&cluster, &outputs, secrets.path());
    run_process(cluster.clone(), outputs.clone(), 1, Duration::ZERO).await;
    until(&cluster, "the condition", || {
        condition(&cluster, "Ready").contains("False Forbidden")
            && condition(&cluster, "Ready").contains("kubectl create rolebinding events-sink --namespace=shop")
    })
    .await;
    cluster.no_rule();
    until(&cluster, "the cure", || {
        is_all_sent(&cluster, 1) && condition(&cluster, "Ready").starts_with("True Sending")
    })
    .await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_without_a_stream_and_a_server_that_is_away_are_told() {
    let Some(mut server) = nats().await else { return };
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let to = |subject: &str| json!({"nats": {"servers": [server.url()], "subject": subject}});
    cluster.put(SINKS, sink(&to("nowhere"), &json!({})));
    let engine = start(&cluster, &outputs, secrets.path());
    until(&cluster, "the connection", || {
        condition(&cluster, "Connected").starts_with("True")
    })
    .await;
    run_process(cluster.clone(), outputs.clone(), 1, Duration::ZERO).await;
    until(&cluster, "the stream that is missing", || {
        condition(&cluster, "Connected").starts_with("False NotFound")
    })
    .await;
    let right = to("events");
    cluster.edit(SINKS, "events", |sink| sink["spec"]["destination"] = right);
    until(&cluster, "all events", || is_all_sent(&cluster, 1)).await;
    server.kill();
    until(&cluster, "the outage", || {
        condition(&cluster, "Ready").starts_with("False Unreachable")
    })
    .await;
    run_process(cluster.clone(), outputs.clone(), 2, Duration::ZERO).await;
    server.begin();
    until(&cluster, "the rest", || is_all_sent(&cluster, 2)).await;
    engine.stop().await;
}
