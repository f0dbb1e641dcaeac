//! The source for Google Pub/Sub against the emulator of the Cloud SDK.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_bridge::message::Message;
use remoteprocess_bridge::outcome::CloudEvent;
use remoteprocess_bridge::sink::destination;
use remoteprocess_bridge::source::{
    DEAD_LETTER_REASON, Delivery, Secrets, Settings, Source, SourceError, open, tls_config,
};
use remoteprocess_ports::free_port;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// Where the Debian package `google-cloud-cli-pubsub-emulator` has it.
const EMULATOR: &str = "/usr/lib/google-cloud-sdk/platform/pubsub-emulator/bin/cloud-pubsub-emulator";
/// Enough for an answer of a busy machine.
const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_of_pubsub_is_a_source() {
    remoteprocess_tls::install_crypto_provider();
    let Some(mut emulator) = Emulator::start().await else {
        return;
    };
    for topic in ["orders", "results", "dead", "answers"] {
        emulator.create(&format!("topics/{topic}"), json!({})).await;
        let topic_path = format!("projects/p1/topics/{topic}");
        let body = json!({"topic": topic_path, "ackDeadlineSeconds": 10});
        emulator.create(&format!("subscriptions/{topic}"), body).await;
    }
    messages_come_one_at_a_time(&emulator).await;
    a_wait_that_is_given_up_loses_nothing(&emulator).await;
    what_is_put_back_comes_again(&emulator).await;
    what_is_kept_is_not_delivered_again(&emulator).await;
    results_and_dead_letters_are_published(&emulator).await;
    events_of_a_sink_are_published(&emulator).await;
    dead_letters_are_taken_back(&emulator).await;
    refusals_have_the_words_of_the_service(&emulator).await;
    a_service_that_dies_is_reported(&mut emulator).await;
}

/// A service that has subscriptions, and does not answer in time whether there are dead letters.
async fn slow_service() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_slowly(stream));
        }
    });
    port
}

/// One request.
async fn answer_slowly(mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
    let head = String::from_utf8_lossy(&head).into_owned();
    if head.contains("dead:pull") {
        return std::future::pending().await;
    }
    let topic = if head.contains("/dead") { "dead" } else { "orders" };
    let body = match head.contains(":pull") {
        true => json!({}),
        false => json!({"topic": format!("projects/p1/topics/{topic}")}),
    };
    let body = body.to_string();
    let length = body.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn dead_letters_that_do_not_come_in_time_are_not_none() {
    remoteprocess_tls::install_crypto_provider();
    let source = json!({
        "project": "p1", "subscription": "orders", "endpoint": format!("http://127.0.0.1:{}", slow_service().await),
        "deadLetterTopic": "dead", "deadLetterSubscription": "dead",
    });
    let source = open(&trigger(source, json!({})), &Settings::default()).await.unwrap();
    let mut letters = source.publisher().dead_letters("shop/orders").await.unwrap();
    let error = letters.next().await.unwrap_err();
    assert_eq!(error.reason, BridgeReason::Unreachable);
    assert!(
        error.message.ends_with("no dead letter of this trigger in time"),
        "{error}"
    );
}

struct Emulator {
    process: Child,
    port: u16,
    client: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Emulator {
    async fn start() -> Option<Self> {
        let program = env::var("RPROC_PUBSUB_EMULATOR").unwrap_or_else(|_| EMULATOR.to_owned());
        if !Path::new(&program).exists() {
            eprintln!("left out: there is no Pub/Sub emulator; RPROC_PUBSUB_EMULATOR can name one");
            return None;
        }
        let port = free_port();
        let folder = tempfile::tempdir().unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let tls = tls_config(None, &Secrets::default()).await.unwrap();
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_backend_preconfigured((*tls).clone());
        let client = client.build().unwrap();
        let process = Command::new(&program)
            .args(["--host=127.0.0.1", &format!("--port={port}")])
            .env("JAVA_OPTS", "-Xmx256m -XX:TieredStopAtLevel=1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        let mut emulator = Self {
            process,
            port,
            client,
            _folder: folder,
        };
        let begin = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let has_ended = emulator.process.try_wait().unwrap().is_some();
            assert!(
                !has_ended && begin.elapsed() < Duration::from_secs(90),
                "the emulator does not start"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(emulator)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v1/projects/p1/{path}", self.port)
    }

    async fn create(&self, path: &str, body: Value) {
        // The port is open before the emulator answers.
        let begin = Instant::now();
        loop {
            let request = self
                .client
                .put(self.url(path))
                .header("content-type", "application/json");
            match request.body(body.to_string()).send().await {
                Ok(answer) if answer.status().is_success() => return,
                other => assert!(begin.elapsed() < SOON, "{path}: {other:?}"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = self
            .client
            .post(self.url(path))
            .header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.unwrap();
        let status = answer.status();
        let body = answer.bytes().await.unwrap();
        assert!(status.is_success(), "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    async fn publish(&self, topic: &str, body: &str, attributes: Value) {
        let message = json!({"data": STANDARD.encode(body), "attributes": attributes});
        self.post(&format!("topics/{topic}:publish"), json!({"messages": [message]}))
            .await;
    }

    /// The next message of a subscription of the test itself.
    async fn pulled(&self, subscription: &str) -> Value {
        let begin = Instant::now();
        loop {
            let path = format!("subscriptions/{subscription}:pull");
            let answer = self
                .post(&path, json!({"maxMessages": 1, "returnImmediately": true}))
                .await;
            if let Some(message) = answer.pointer("/receivedMessages/0") {
                let body = json!({"ackIds": [message["ackId"]]});
                self.post(&format!("subscriptions/{subscription}:acknowledge"), body)
                    .await;
                return message["message"].clone();
            }
            assert!(begin.elapsed() < SOON, "{subscription}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn kill(&mut self) {
        // It may have ended.
        let _ = kill_process_group(Pid::from_child(&self.process), Signal::KILL);
        self.process.wait().unwrap();
    }

    async fn opened(&self, subscription: &str, policy: Value) -> Result<Box<dyn Source>, SourceError> {
        let source = json!({
            "project": "p1", "subscription": subscription, "endpoint": format!("http://127.0.0.1:{}", self.port),
            "resultTopic": "results", "deadLetterTopic": "dead",
        });
        open(&trigger(source, policy), &Settings::default()).await
    }

    async fn source(&self) -> Box<dyn Source> {
        self.opened("orders", json!({})).await.unwrap()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.kill();
    }
}

fn trigger(source: Value, policy: Value) -> ProcessTrigger {
    serde_json::from_value(json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessTrigger",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"serviceAccountName": "a", "source": {"pubsub": source}, "policy": policy,
                 "template": {"spec": {"image": "i", "command": ["x"]}}},
    }))
    .unwrap()
}

async fn next(source: &mut Box<dyn Source>) -> Delivery {
    timeout(SOON, source.next()).await.unwrap().unwrap()
}

fn body(delivery: &Delivery) -> &str {
    std::str::from_utf8(&delivery.message.payload).unwrap()
}

async fn messages_come_one_at_a_time(emulator: &Emulator) {
    emulator
        .publish(
            "orders",
            "first",
            json!({"X": "y", "content-type": "text/plain", "reply-to": "answers"}),
        )
        .await;
    let mut source = emulator.source().await;
    let first = next(&mut source).await;
    assert_eq!(body(&first), "first");
    assert!(
        first.message.id.as_ref().is_some_and(|id| !id.is_empty()),
        "the id of the service"
    );
    assert_eq!(
        (first.message.header("x"), first.message.reply_to.as_deref()),
        (Some("y"), Some("answers"))
    );
    emulator
        .publish("orders", "second", json!({"message-id": "order-2"}))
        .await;
    emulator.publish("orders", "third", json!({})).await;
    first.receipt.acknowledge("p").await.unwrap();
    let second = next(&mut source).await;
    // The others are free for another consumer: nothing is taken that nobody asked for.
    let third = emulator.pulled("orders").await;
    assert!(third["data"] == STANDARD.encode("third") || third["data"] == STANDARD.encode("second"));
    assert!(["second", "third"].contains(&body(&second)));
    if body(&second) == "second" {
        assert_eq!(second.message.id.as_deref(), Some("order-2"));
    }
    second.receipt.acknowledge("p").await.unwrap();
    assert_eq!(source.lag().await, None);
}

async fn a_wait_that_is_given_up_loses_nothing(emulator: &Emulator) {
    let mut source = emulator.source().await;
    let mut seen = Vec::new();
    for number in 0..10_u64 {
        let impatient = timeout(Duration::from_millis(7 * (number % 4)), source.next()).await;
        emulator.publish("orders", &number.to_string(), json!({})).await;
        if let Ok(delivery) = impatient {
            let delivery = delivery.unwrap();
            seen.push(body(&delivery).to_owned());
            delivery.receipt.acknowledge("p").await.unwrap();
        }
    }
    while seen.len() < 10 {
        let delivery = next(&mut source).await;
        seen.push(body(&delivery).to_owned());
        delivery.receipt.acknowledge("p").await.unwrap();
    }
    seen.sort();
    let expected: Vec<_> = (0..10).map(|number| number.to_string()).collect();
    assert_eq!(seen, expected, "each once");
}

async fn what_is_put_back_comes_again(emulator: &Emulator) {
    let mut source = emulator.source().await;
    emulator.publish("orders", "back", json!({})).await;
    let delivery = next(&mut source).await;
    let begin = Instant::now();
    delivery
        .receipt
        .put_back(Duration::from_millis(1500), "for a test")
        .await
        .unwrap();
    let again = next(&mut source).await;
    assert_eq!(body(&again), "back");
    assert!(begin.elapsed() >= Duration::from_millis(1400), "{:?}", begin.elapsed());
    let begin = Instant::now();
    again.receipt.reject("for a test").await.unwrap();
    let rejected = next(&mut source).await;
    assert!(
        begin.elapsed() > Duration::from_secs(5),
        "no busy loop: {:?}",
        begin.elapsed()
    );
    rejected.receipt.acknowledge("p").await.unwrap();
}

/// The subscription's own deadline is ten seconds.
async fn what_is_kept_is_not_delivered_again(emulator: &Emulator) {
    let mut source = emulator
        .opened("orders", json!({"acknowledge": "Finished"}))
        .await
        .unwrap();
    emulator.publish("orders", "kept", json!({})).await;
    let mut kept = next(&mut source).await;
    let again = timeout(Duration::from_secs(13), source.next()).await;
    assert!(again.is_err(), "it was leased for longer");
    kept.receipt.extend().await.unwrap();
    kept.receipt.acknowledge("p").await.unwrap();
}

fn result() -> CloudEvent {
    CloudEvent {
        id: "u-1".to_owned(),
        kind: "t",
        source: "/s".to_owned(),
        subject: "p".to_owned(),
        time: Some(Timestamp::now()),
        data: json!({"exitCode": 0}),
    }
}

async fn results_and_dead_letters_are_published(emulator: &Emulator) {
    let mut source = emulator.source().await;
    let publisher = source.publisher();
    assert_eq!(publisher.default_reply().as_deref(), Some("results"));
    let result = result();
    for topic in ["results", "answers"] {
        publisher.reply(topic, &result).await.unwrap();
        let event = emulator.pulled(topic).await;
        assert_eq!(event["data"], STANDARD.encode(result.to_json()));
        assert_eq!(
            event["attributes"],
            json!({"content-type": "application/cloudevents+json", "message-id": "u-1"})
        );
    }
    for nobody in ["", "../x", "a/b", "answers:publish", "?"] {
        assert_eq!(publisher.reply(nobody, &result).await, Ok(()), "{nobody}");
    }
    let nowhere = publisher.reply("nowhere", &result).await.unwrap_err();
    assert_eq!(nowhere.reason, BridgeReason::NotFound, "{nowhere}");
    let late = CloudEvent {
        time: Some(Timestamp::UNIX_EPOCH),
        ..result.clone()
    };
    assert_eq!(publisher.reply("nowhere", &late).await, Ok(()), "in the end");
    let mut message = Message {
        payload: "bad".into(),
        id: Some("17".into()),
        ..Message::default()
    };
    message.insert("x", "y");
    assert_eq!(publisher.dead_letter(&message, "it is bad").await, Ok(true));
    let letter = emulator.pulled("dead").await;
    assert_eq!(letter["data"], STANDARD.encode("bad"));
    assert_eq!(
        letter["attributes"],
        json!({"x": "y", "message-id": "17", DEAD_LETTER_REASON: "it is bad"})
    );
    // A test of a person: the subscription says which topic is its own.
    publisher.send(&message).await.unwrap();
    let sent = next(&mut source).await;
    assert_eq!((body(&sent), sent.message.id.as_deref()), ("bad", Some("17")));
    sent.receipt.acknowledge("p").await.unwrap();
}

async fn replaying_from(emulator: &Emulator, subscription: &str) -> Box<dyn Source> {
    let source = json!({
        "project": "p1", "subscription": "orders", "endpoint": format!("http://127.0.0.1:{}", emulator.port),
        "deadLetterTopic": "dead", "deadLetterSubscription": subscription,
    });
    open(&trigger(source, json!({})), &Settings::default()).await.unwrap()
}

async fn replays_say_what_they_need(emulator: &Emulator) {
    let unknown = emulator.source().await.publisher().dead_letters("a/b").await;
    let error = unknown.err().unwrap();
    assert_eq!(error.reason, BridgeReason::InvalidSource);
    assert!(
        error.message.contains("spec.source.pubsub.deadLetterSubscription"),
        "{error}"
    );
    for (name, reason) in [
        ("orders", BridgeReason::InvalidSource),
        ("nothing", BridgeReason::NotFound),
    ] {
        let source = replaying_from(emulator, name).await;
        let refused = source.publisher().dead_letters("a/b").await;
        assert_eq!(refused.err().unwrap().reason, reason, "{name}");
    }
}

async fn dead_letters_are_taken_back(emulator: &Emulator) {
    replays_say_what_they_need(emulator).await;
    let mut source = replaying_from(emulator, "dead").await;
    let publisher = source.publisher();
    for (id, trigger) in [("other", "shop/others"), ("m1", "shop/orders"), ("m2", "shop/orders")] {
        let mut message = Message {
            id: Some(id.to_owned()),
            payload: id.to_owned().into(),
            ..Message::default()
        };
        message.insert("x-kind", "odd");
        let letter = message.into_dead_letter(trigger, Some("uid-1"));
        assert_eq!(publisher.dead_letter(&letter, "it failed").await, Ok(true));
    }
    let mut letters = publisher.dead_letters("shop/orders").await.unwrap();
    let mut ids = Vec::new();
    while let Some(letter) = letters.next().await.unwrap() {
        let message = letter.into_replay();
        ids.extend(message.id.clone());
        publisher.send(&message).await.unwrap();
        letters.remove().await.unwrap();
        // It fails again at once: that is for the next replay.
        let letter = message.into_dead_letter("shop/orders", Some("uid-2"));
        assert_eq!(publisher.dead_letter(&letter, "it failed again").await, Ok(true));
    }
    ids.sort();
    assert_eq!(ids, ["m1", "m2"], "that of the other trigger is left alone");
    assert_eq!(letters.left().await, None, "and given back");
    for _ in 0..2 {
        let back = next(&mut source).await;
        assert_eq!(
            (back.message.header("x-kind"), back.message.replay_of()),
            (Some("odd"), Some("uid-1"))
        );
        assert_eq!(back.message.header(DEAD_LETTER_REASON), None);
        back.receipt.acknowledge("p").await.unwrap();
    }
    let mut left = Vec::new();
    for _ in 0..3 {
        let letter = emulator.pulled("dead").await;
        left.push(letter["attributes"]["message-id"].as_str().unwrap().to_owned());
    }
    left.sort();
    assert_eq!(left, ["m1", "m2", "other"]);
}

async fn events_of_a_sink_are_published(emulator: &Emulator) {
    let to = |topic: &str| {
        let endpoint = format!("http://127.0.0.1:{}", emulator.port);
        serde_json::from_value(json!({"pubsub": {"project": "p1", "topic": topic, "endpoint": endpoint}})).unwrap()
    };
    let secrets = Secrets::default();
    let destination = destination::open(&to("answers"), "shop/events", &secrets)
        .await
        .unwrap();
    let event = result();
    destination.send(&event, "uid-1").await.unwrap();
    let message = emulator.pulled("answers").await;
    let expected = json!({"content-type": "application/cloudevents+json", "message-id": "u-1"});
    assert_eq!(
        (&message["attributes"], &message["orderingKey"]),
        (&expected, &json!("uid-1"))
    );
    let data = STANDARD.decode(message["data"].as_str().unwrap()).unwrap();
    assert_eq!(data, event.to_json());
    let nowhere = destination::open(&to("nowhere"), "shop/events", &secrets)
        .await
        .unwrap();
    let refused = nowhere.send(&result(), "uid-1").await.unwrap_err();
    assert_eq!(refused.reason, BridgeReason::NotFound, "{refused}");
}

async fn refusals_have_the_words_of_the_service(emulator: &Emulator) {
    let missing = emulator.opened("none", json!({})).await.err().unwrap();
    assert_eq!(missing.reason, BridgeReason::NotFound);
    assert!(
        missing.message.contains("none") && missing.message.contains("does not exist"),
        "{missing}"
    );
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        secrets: Secrets::under(folder.path()),
        ..Settings::default()
    };
    let source = json!({"project": "p1", "subscription": "orders", "credentialsSecretName": "c"});
    let absent = open(&trigger(source, json!({})), &settings).await.err().unwrap();
    assert_eq!(absent.reason, BridgeReason::InvalidSecret);
    assert!(absent.message.contains("no key key.json"), "{absent}");
}

async fn a_service_that_dies_is_reported(emulator: &mut Emulator) {
    let mut source = emulator.source().await;
    emulator.publish("orders", "kept", json!({})).await;
    let kept = next(&mut source).await;
    let waiting = tokio::spawn(async move { timeout(SOON, source.next()).await.unwrap().err() });
    sleep(Duration::from_millis(300)).await;
    emulator.kill();
    let error = waiting.await.unwrap().unwrap();
    assert_eq!(error.reason, BridgeReason::Unreachable, "{error}");
    assert!(kept.receipt.acknowledge("p").await.is_err());
    let again = emulator.opened("orders", json!({})).await.err().unwrap();
    assert_eq!(again.reason, BridgeReason::Unreachable, "{again}");
}
