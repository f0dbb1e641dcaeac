//! Dead letters go back to the source and run again, each once: the engine and a real nats-server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/engine.rs"]
mod engine;
#[path = "nats/server.rs"]
mod server;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{Context, stream};
use cluster::{Cluster, PROCESSES, TRIGGERS, trigger};
use engine::{Bridge, write_secret};
use serde_json::{Value, json};
use server::Server;

/// Whether programs fail.
static BROKEN: AtomicBool = AtomicBool::new(true);

fn exit_code(_: &str) -> i32 {
    i32::from(BROKEN.load(Ordering::SeqCst))
}

/// Streams for messages and dead letters, whose server remembers ids for so long.
async fn create_streams(context: &Context, memory: Duration) {
    for (name, subjects) in [("ORDERS", vec!["orders.>"]), ("DEAD", vec!["dead"])] {
        let config = stream::Config {
            name: name.to_owned(),
            subjects: subjects.into_iter().map(str::to_owned).collect(),
            duplicate_window: memory,
            ..stream::Config::default()
        };
        context.create_stream(config).await.unwrap();
    }
}

async fn store(context: &Context, subject: &str, headers: &[(&str, &str)], payload: &str) {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    let stored = context.publish_with_headers(subject.to_owned(), map, payload.to_owned().into());
    stored.await.unwrap().await.unwrap();
}

/// Asks as `rproc trigger replay` does.
fn ask(cluster: &Cluster, nonce: &str, limit: u32) {
    let now = jiff::Timestamp::now().to_string();
    let request = json!({"nonce": nonce, "time": now, "limit": limit}).to_string();
    cluster.edit(TRIGGERS, "orders", |trigger| {
        trigger["metadata"]["annotations"]["remoteprocess.dev/replay"] = json!(request);
    });
}

/// Asks, and waits for the answer.
async fn replay(cluster: &Cluster, nonce: &str, limit: u32) -> Value {
    ask(cluster, nonce, limit);
    cluster
        .until("the answer", |cluster| cluster.status()["replay"]["nonce"] == nonce)
        .await;
    cluster.status()["replay"].clone()
}

fn said(answer: &Value) -> (u64, Option<u64>, &str) {
    let message = answer["message"].as_str().unwrap_or_default();
    (answer["replayed"].as_u64().unwrap(), answer["left"].as_u64(), message)
}

async fn until_count(cluster: &Cluster, count: &str, number: u64) {
    let what = format!("{count}: {number}");
    cluster.until(&what, |cluster| cluster.status()[count] == number).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::too_many_lines, reason = "one server, one story")]
async fn dead_letters_run_again_each_once() {
    let Some(server) = Server::start(&[]) else { return };
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    let context = server.context().await;
    // With the memory of ids that streams have by default.
    create_streams(&context, Duration::from_secs(120)).await;
    let nats = json!({"servers": [server.url()], "stream": "ORDERS"});
    cluster.put(TRIGGERS, trigger(json!({"nats": nats}), json!({})));
    tokio::spawn(cluster.clone().run_processes(Duration::from_millis(5), exit_code));
    let bridge = Bridge::start(&cluster, secrets.path());
    let answer = replay(&cluster, "0", 10).await;
    assert!(
        said(&answer).2.contains("set spec.source.nats.deadLetterSubject"),
        "{answer}"
    );
    cluster.edit(TRIGGERS, "orders", |trigger| {
        trigger["spec"]["source"]["nats"]["deadLetterSubject"] = json!("dead");
    });
    // It comes after the change, so the bridge has connected again.
    assert_eq!(said(&replay(&cluster, "0b", 0).await), (0, Some(0), ""));

    for number in 0..4 {
        let (id, subject) = (format!("m{number}"), format!("orders.{number}"));
        store(&context, &subject, &[("Nats-Msg-Id", &id), ("x-kind", "odd")], &id).await;
    }
    let structured = [("content-type", "application/cloudevents+json")];
    store(&context, "orders.bad", &structured, "nonsense").await;
    store(
        &context,
        "dead",
        &[("rproc-dead-letter-trigger", "shop/others")],
        "of another trigger",
    )
    .await;
    until_count(&cluster, "deadLettered", 5).await;
    assert_eq!(said(&replay(&cluster, "1", 0).await), (0, Some(6), ""), "only counted");

    // They fail again, and are dead letters again.
    assert_eq!(
        said(&replay(&cluster, "2", 100).await).0,
        5,
        "not again what fails again"
    );
    until_count(&cluster, "failed", 8).await;
    until_count(&cluster, "deadLettered", 10).await;
    assert_eq!(
        said(&replay(&cluster, "3", 0).await).1,
        Some(6),
        "none is lost: the server has stored all"
    );

    // As if the bridge had died after the source had confirmed a message, and before its dead letter was removed.
    let dead = context.get_stream("DEAD").await.unwrap();
    let mut last = dead.cached_info().state.last_sequence;
    let again = loop {
        let letter = dead.get_raw_message(last).await.unwrap();
        if letter.headers.get("rproc-replay-of").is_some() {
            break letter;
        }
        last -= 1;
    };
    let mut headers = again.headers.clone();
    headers.insert("Nats-Msg-Id", "once more");
    let stored = context
        .publish_with_headers("dead", headers, again.payload)
        .await
        .unwrap();
    stored.await.unwrap();

    BROKEN.store(false, Ordering::SeqCst);
    let answer = replay(&cluster, "4", 100).await;
    assert_eq!(
        said(&answer).0,
        6,
        "four, one of them twice, and the poison once: {answer}"
    );
    until_count(&cluster, "succeeded", 4).await;
    until_count(&cluster, "deadLettered", 11).await;
    server.until_settled("ORDERS").await;
    assert_eq!(
        said(&replay(&cluster, "5", 0).await).1,
        Some(2),
        "the poison, and that of the other trigger"
    );

    let processes = cluster.all(PROCESSES);
    assert_eq!(
        (processes.len(), cluster.journal().len()),
        (12, 12),
        "four, three times"
    );
    assert_eq!(cluster.status()["duplicates"], 1);
    let of = |process: &Value, annotation: &str| {
        let value = &process["metadata"]["annotations"][format!("remoteprocess.dev/{annotation}")];
        value.as_str().map(str::to_owned)
    };
    for process in &processes {
        let id = of(process, "message-id").unwrap();
        let variables = process["spec"]["env"].as_array().unwrap();
        let variable = variables
            .iter()
            .find(|variable| variable["name"] == "RPROC_MESSAGE_ID")
            .unwrap();
        assert_eq!(variable["value"], id, "the program sees the same message");
        if let Some(uid) = of(process, "replay-of") {
            let former = processes.iter().find(|other| other["metadata"]["uid"] == uid).unwrap();
            assert_eq!(
                (of(former, "message-id").unwrap(), &former["status"]["phase"]),
                (id, &json!("Failed"))
            );
        }
    }
    let orders = context.get_stream("ORDERS").await.unwrap();
    let replayed = orders.get_last_raw_message_by_subject("orders.3").await.unwrap();
    assert_eq!(replayed.headers.get("x-kind").unwrap().as_str(), "odd");
    assert_eq!(replayed.headers.get("rproc-dead-letter-reason"), None);
    assert_eq!(
        orders.cached_info().state.messages,
        5 + 5 + 6,
        "to the subjects that they came from"
    );

    // A request is answered once, also by the next bridge.
    bridge.stop().await;
    let bridge = Bridge::start(&cluster, secrets.path());
    cluster
        .until("the source", |cluster| {
            cluster.condition("Connected").starts_with("True")
        })
        .await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(cluster.status()["replay"]["nonce"], "5");
    bridge.stop().await;
}

/// Whether the other programs fail.
static ALL_BROKEN: AtomicBool = AtomicBool::new(true);

fn other_exit_code(_: &str) -> i32 {
    i32::from(ALL_BROKEN.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_cut_off_again_and_again_runs_each_once() {
    const MESSAGES: u64 = 60;
    let Some(server) = Server::start(&[]) else { return };
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    let context = server.context().await;
    // The server's own memory of ids must not hide that a message was sent twice.
    create_streams(&context, Duration::from_millis(100)).await;
    let nats = json!({"servers": [server.url()], "stream": "ORDERS", "deadLetterSubject": "dead"});
    cluster.put(TRIGGERS, trigger(json!({"nats": nats}), json!({"maxRunning": 50})));
    tokio::spawn(cluster.clone().run_processes(Duration::from_millis(5), other_exit_code));
    for number in 0..MESSAGES {
        store(&context, "orders.new", &[], &format!("m{number}")).await;
    }
    let mut bridge = Bridge::start(&cluster, secrets.path());
    until_count(&cluster, "failed", MESSAGES).await;
    ALL_BROKEN.store(false, Ordering::SeqCst);
    for round in 0..12 {
        ask(&cluster, &format!("cut-{round}"), 1000);
        // Not chance, but at other moments of the work each time.
        tokio::time::sleep(Duration::from_millis(30 + round * 7 % 40)).await;
        bridge.kill().await;
        bridge = Bridge::start(&cluster, secrets.path());
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    let answer = replay(&cluster, "whole", 1000).await;
    assert_eq!(said(&answer).1, Some(0), "{answer}");
    let ended = |process: &Value| process["status"]["phase"] == "Succeeded";
    cluster
        .until("the ends", |cluster| {
            let succeeded = cluster.all(PROCESSES).iter().filter(|process| ended(process)).count();
            u64::try_from(succeeded).unwrap() == MESSAGES
        })
        .await;
    server.until_settled("ORDERS").await;
    let mut runs = std::collections::BTreeMap::new();
    for (_, payload) in cluster.journal() {
        *runs.entry(payload).or_insert(0) += 1;
    }
    assert_eq!(u64::try_from(runs.len()).unwrap(), MESSAGES);
    assert!(
        runs.values().all(|runs| *runs == 2),
        "each failed once, and ran again once: {runs:?}"
    );
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_cut_off_does_not_begin_again() {
    const LETTERS: u64 = 400;
    const LIMIT: u32 = 200;
    let Some(server) = Server::start(&[]) else { return };
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    let context = server.context().await;
    create_streams(&context, Duration::from_millis(100)).await;
    let nats = json!({"servers": [server.url()], "stream": "ORDERS", "deadLetterSubject": "dead"});
    let mut suspended = trigger(json!({"nats": nats}), json!({}));
    suspended["spec"]["suspend"] = json!(true);
    cluster.put(TRIGGERS, suspended);
    for number in 0..LETTERS {
        let headers = [
            ("rproc-dead-letter-trigger", "shop/orders"),
            ("rproc-subject", "orders.1"),
        ];
        store(&context, "dead", &headers, &format!("m{number}")).await;
    }
    let bridge = Bridge::start(&cluster, secrets.path());
    ask(&cluster, "1", LIMIT);
    let progress = |cluster: &Cluster| cluster.status()["replaying"]["replayed"].as_u64();
    cluster
        .until("progress", |cluster| progress(cluster).is_some_and(|number| number > 0))
        .await;
    bridge.kill().await;
    assert!(progress(&cluster).unwrap() < LIMIT.into(), "it is cut off");
    let bridge = Bridge::start(&cluster, secrets.path());
    cluster
        .until("the answer", |cluster| cluster.status()["replay"]["nonce"] == "1")
        .await;
    cluster.until("its end", |cluster| progress(cluster).is_none()).await;
    let (replayed, left, _) = said(&cluster.status()["replay"]);
    let mut orders = context.get_stream("ORDERS").await.unwrap();
    let sent = orders.info().await.unwrap().state.messages;
    assert_eq!(replayed, u64::from(LIMIT));
    // The letter in hand at the end was perhaps sent, and not yet removed: it is sent again with the same id.
    let again = sent - (LETTERS - left.expect("a number"));
    assert!(again <= 1, "{again} letters were sent again");
    // What was sent in the moment before the end is not known.
    assert!((200..300).contains(&sent), "{sent}");
    bridge.stop().await;
}

#[tokio::test]
async fn a_webhook_has_nothing_to_take_back() {
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    write_secret(secrets.path(), "credentials", &[("token", "a-token-of-some-length")]);
    cluster.put(TRIGGERS, trigger(json!({"http": {"secretName": "s"}}), json!({})));
    let bridge = Bridge::start(&cluster, secrets.path());
    let answer = replay(&cluster, "1", 10).await;
    assert!(said(&answer).2.contains("a webhook keeps no dead letters"), "{answer}");
    bridge.stop().await;
}

/// Whether the programs of the last test fail.
static LAST_BROKEN: AtomicBool = AtomicBool::new(true);

fn last_exit_code(_: &str) -> i32 {
    i32::from(LAST_BROKEN.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_the_broker_has_moved_runs_again_also_after_a_replay() {
    let Some(server) = Server::start(&[]) else { return };
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    let context = server.context().await;
    create_streams(&context, Duration::from_millis(100)).await;
    let nats = json!({"servers": [server.url()], "stream": "ORDERS", "deadLetterSubject": "dead"});
    cluster.put(TRIGGERS, trigger(json!({"nats": nats}), json!({})));
    tokio::spawn(cluster.clone().run_processes(Duration::from_millis(5), last_exit_code));
    let bridge = Bridge::start(&cluster, secrets.path());
    store(&context, "orders.1", &[("Nats-Msg-Id", "m1")], "m1").await;
    until_count(&cluster, "deadLettered", 1).await;
    let dead = context.get_stream("DEAD").await.unwrap();
    // A broker moves a message with the headers that it had, and without the name of a trigger.
    dead.purge().await.unwrap();
    let id = ("rproc-dead-letter-message-id", "m1");
    store(&context, "dead", &[id, ("rproc-subject", "orders.1")], "m1").await;
    assert_eq!(said(&replay(&cluster, "1", 10).await).0, 1);
    until_count(&cluster, "deadLettered", 2).await;
    let first = cluster
        .all(PROCESSES)
        .into_iter()
        .find(|process| process["metadata"]["annotations"]["remoteprocess.dev/replay-of"].is_null());
    let uid = first.unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    dead.purge().await.unwrap();
    let moved = [id, ("rproc-subject", "orders.1"), ("rproc-replay-of", &uid)];
    store(&context, "dead", &moved, "m1").await;
    LAST_BROKEN.store(false, Ordering::SeqCst);
    assert_eq!(said(&replay(&cluster, "2", 10).await).0, 1);
    until_count(&cluster, "succeeded", 1).await;
    assert_eq!(cluster.all(PROCESSES).len(), 3);
    bridge.stop().await;
}
