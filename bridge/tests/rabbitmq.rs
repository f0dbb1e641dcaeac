//! The source for RabbitMQ against a real server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "rabbitmq/server.rs"]
mod server;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::Timestamp;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, ExchangeKind};
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::sink::DestinationSpec;
use remoteprocess_bridge::message::Message;
use remoteprocess_bridge::outcome::CloudEvent;
use remoteprocess_bridge::sink::destination;
use remoteprocess_bridge::source::{DEAD_LETTER_REASON, Delivery, Secrets, Settings, Source, SourceError, open};
use remoteprocess_ports::free_port;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use server::Server;

/// Enough for an answer of a busy machine.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_rabbitmq_is_a_source() {
    remoteprocess_tls::install_crypto_provider();
    let Some(mut server) = Server::start() else { return };
    let (_connection, channel) = server.admin().await;
    messages_come_one_at_a_time(&server, &channel).await;
    a_wait_that_is_given_up_loses_nothing(&server, &channel).await;
    what_is_put_back_comes_again_in_time_and_holds_nothing_up(&server, &channel).await;
    not_everything_is_put_aside(&server, &channel).await;
    dead_letters_have_their_reason(&server, &channel).await;
    dead_letters_are_taken_back(&server, &channel).await;
    priorities_hide_no_dead_letter(&server, &channel).await;
    without_an_exchange_the_queue_has_its_own(&server, &channel).await;
    results_are_confirmed(&server, &channel).await;
    requesters_get_their_answer(&server, &channel).await;
    events_of_a_sink_are_confirmed(&server, &channel).await;
    refusals_have_the_words_of_the_server(&server, &channel).await;
    certificates_decide(&server, &channel).await;
    a_server_that_says_nothing_is_given_up().await;
    a_sink_notices_a_server_that_dies(&mut server).await;
    a_server_that_dies_delivers_again(&mut server).await;
}

fn settings(folder: &Path) -> Settings {
    Settings {
        secrets: Secrets::under(folder),
        ..Settings::default()
    }
}

fn trigger(source: Value) -> ProcessTrigger {
    serde_json::from_value(json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessTrigger",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"serviceAccountName": "a", "source": {"rabbitmq": source},
                 "template": {"spec": {"image": "i", "command": ["x"]}}},
    }))
    .unwrap()
}

async fn opened(server: &Server, source: Value) -> Result<Box<dyn Source>, SourceError> {
    open(&trigger(source), &settings(server.folder.path())).await
}

async fn source(server: &Server, queue: &str) -> Box<dyn Source> {
    let address = format!("127.0.0.1:{}", server.port);
    let source = json!({"address": address, "queue": queue, "deadLetterExchange": "dead"});
    opened(server, source).await.unwrap()
}

/// A new quorum queue; rejected messages go to `rejected`.
async fn queue(channel: &Channel, name: &str) {
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    let mut set = |name: &str, value: &str| {
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    };
    set("x-queue-type", "quorum");
    set("x-dead-letter-exchange", "");
    set("x-dead-letter-routing-key", "rejected");
    channel.queue_declare(name.into(), durable, arguments).await.unwrap();
}

/// A new queue that is gone after a restart.
async fn plain_queue(channel: &Channel, name: &str) {
    let options = QueueDeclareOptions::default();
    channel
        .queue_declare(name.into(), options, FieldTable::default())
        .await
        .unwrap();
}

async fn publish(channel: &Channel, queue: &str, body: &str, properties: BasicProperties) {
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish(
        "".into(),
        queue.into(),
        options,
        body.as_bytes(),
        properties.with_delivery_mode(2),
    );
    sent.await.unwrap().await.unwrap();
}

async fn depth(channel: &Channel, queue: &str) -> u32 {
    let look = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(queue.into(), look, FieldTable::default())
        .await
        .unwrap()
        .message_count()
}

/// Waits until so many messages are ready in the queue: acknowledgements have no answer.
async fn until_depth(channel: &Channel, queue: &str, wanted: u32) {
    let settled = async {
        while depth(channel, queue).await != wanted {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let last = timeout(SOON, settled).await;
    assert!(
        last.is_ok(),
        "{queue}: {} instead of {wanted}",
        depth(channel, queue).await
    );
}

async fn next(source: &mut Box<dyn Source>) -> Delivery {
    timeout(SOON, source.next()).await.unwrap().unwrap()
}

fn body(delivery: &Delivery) -> &str {
    std::str::from_utf8(&delivery.message.payload).unwrap()
}

async fn fetched(channel: &Channel, queue: &str) -> lapin::message::Delivery {
    until_ready(channel, queue).await;
    let got = channel
        .basic_get(queue.into(), BasicGetOptions { no_ack: true })
        .await
        .unwrap();
    got.unwrap().delivery
}

async fn until_ready(channel: &Channel, queue: &str) {
    let ready = async {
        while depth(channel, queue).await == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, ready).await.unwrap();
}

async fn messages_come_one_at_a_time(server: &Server, channel: &Channel) {
    queue(channel, "one").await;
    let mut source = source(server, "one").await;
    let mut headers = FieldTable::default();
    headers.insert("cloudEvents:id".into(), AMQPValue::LongString("e1".into()));
    let properties = BasicProperties::default()
        .with_message_id("m1".into())
        .with_content_type("text/plain".into())
        .with_reply_to("answers".into())
        .with_correlation_id("c1".into())
        .with_headers(headers);
    publish(channel, "one", "first", properties).await;
    for number in 0..4 {
        publish(channel, "one", &format!("{number}"), BasicProperties::default()).await;
    }
    let first = next(&mut source).await;
    assert_eq!((body(&first), first.message.id.as_deref()), ("first", Some("m1")));
    assert_eq!(first.message.header("cloudevents:id"), Some("e1"));
    assert_eq!(first.message.content_type.as_deref(), Some("text/plain"));
    assert_eq!(
        first.message.reply_to.as_deref(),
        Some(r#"{"replyTo":"answers","correlationId":"c1"}"#)
    );
    until_depth(channel, "one", 4).await;
    assert_eq!(source.lag().await, Some(4), "the rest waits in the broker");
    first.receipt.acknowledge("p").await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(depth(channel, "one").await, 4, "nothing is taken that nobody asked for");
    let mut kept = Vec::new();
    for number in 0..4 {
        let mut delivery = next(&mut source).await;
        assert_eq!(body(&delivery), number.to_string(), "in order");
        delivery.receipt.extend().await.unwrap();
        kept.push(delivery);
    }
    for delivery in kept {
        delivery.receipt.acknowledge("p").await.unwrap();
    }
    drop(source);
    sleep(Duration::from_millis(300)).await;
    until_depth(channel, "one", 0).await;
}

async fn a_wait_that_is_given_up_loses_nothing(server: &Server, channel: &Channel) {
    queue(channel, "cancel").await;
    let mut source = source(server, "cancel").await;
    let mut seen = Vec::new();
    for number in 0..20_u64 {
        let impatient = timeout(Duration::from_micros(500 * (number % 7)), source.next()).await;
        publish(channel, "cancel", &number.to_string(), BasicProperties::default()).await;
        if let Ok(delivery) = impatient {
            let delivery = delivery.unwrap();
            seen.push(body(&delivery).to_owned());
            delivery.receipt.acknowledge("p").await.unwrap();
        }
    }
    while seen.len() < 20 {
        let delivery = next(&mut source).await;
        seen.push(body(&delivery).to_owned());
        delivery.receipt.acknowledge("p").await.unwrap();
    }
    let expected: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(seen, expected, "each once, in order");
}

async fn what_is_put_back_comes_again_in_time_and_holds_nothing_up(server: &Server, channel: &Channel) {
    queue(channel, "back").await;
    let mut source = source(server, "back").await;
    publish(channel, "back", "a", BasicProperties::default()).await;
    publish(channel, "back", "b", BasicProperties::default()).await;
    let a = next(&mut source).await;
    let begin = Instant::now();
    a.receipt
        .put_back(Duration::from_millis(700), "for a test")
        .await
        .unwrap();
    let b = next(&mut source).await;
    assert_eq!(body(&b), "b", "it does not wait for a");
    let again = next(&mut source).await;
    assert_eq!(body(&again), "a");
    assert!(begin.elapsed() >= Duration::from_millis(700), "{:?}", begin.elapsed());
    // While the source waits for a message, too.
    again.receipt.acknowledge("p").await.unwrap();
    let Delivery { receipt, .. } = b;
    let (came, ()) = tokio::join!(next(&mut source), async {
        sleep(Duration::from_millis(200)).await;
        receipt.put_back(Duration::ZERO, "for a test").await.unwrap();
    });
    assert_eq!(body(&came), "b");
    let mut kept = came;
    kept.receipt.extend().await.unwrap();
    kept.receipt
        .put_back(Duration::from_secs(60), "after a while, by the broker")
        .await
        .unwrap();
    assert_eq!(body(&next(&mut source).await), "b");
    drop(source);
    until_depth(channel, "back", 1).await;
}

/// They stay in the memory of the bridge.
async fn not_everything_is_put_aside(server: &Server, channel: &Channel) {
    queue(channel, "aside").await;
    for number in 0..20 {
        publish(channel, "aside", &number.to_string(), BasicProperties::default()).await;
    }
    let mut source = source(server, "aside").await;
    for number in 0..16 {
        let taken = next(&mut source).await;
        assert_eq!(body(&taken), number.to_string());
        taken
            .receipt
            .put_back(Duration::from_secs(60), "for a test")
            .await
            .unwrap();
    }
    let more = timeout(Duration::from_millis(300), source.next()).await;
    assert!(more.is_err(), "enough wait here");
    assert_eq!(depth(channel, "aside").await, 4);
    drop(source);
    until_depth(channel, "aside", 20).await;
}

async fn dead_letters_have_their_reason(server: &Server, channel: &Channel) {
    queue(channel, "poison").await;
    plain_queue(channel, "rejected").await;
    plain_queue(channel, "letters").await;
    let mut source = source(server, "poison").await;
    publish(
        channel,
        "poison",
        "bad",
        BasicProperties::default().with_message_id("m7".into()),
    )
    .await;
    let publisher = source.publisher();
    let bad = next(&mut source).await;
    let missing = publisher
        .dead_letter(&bad.message, "no exchange yet")
        .await
        .unwrap_err();
    assert_eq!(missing.reason, BridgeReason::NotFound, "{missing}");
    assert!(missing.message.contains("no exchange 'dead'"), "{missing}");
    channel
        .exchange_declare(
            "dead".into(),
            ExchangeKind::Direct,
            ExchangeDeclareOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    let unroutable = publisher.dead_letter(&bad.message, "no queue yet").await.unwrap_err();
    assert!(unroutable.message.contains("NO_ROUTE"), "{unroutable}");
    let bind = QueueBindOptions::default();
    channel
        .queue_bind(
            "letters".into(),
            "dead".into(),
            "poison".into(),
            bind,
            FieldTable::default(),
        )
        .await
        .unwrap();
    assert_eq!(publisher.dead_letter(&bad.message, "it is bad").await, Ok(true));
    let letter = fetched(channel, "letters").await;
    assert_eq!(
        (
            &letter.data[..],
            letter.properties.message_id().as_ref().unwrap().as_str()
        ),
        (&b"bad"[..], "m7")
    );
    let headers = letter.properties.headers().as_ref().unwrap().inner();
    assert_eq!(
        headers.get(DEAD_LETTER_REASON),
        Some(&AMQPValue::LongString("it is bad".into()))
    );
    bad.receipt.acknowledge("p").await.unwrap();
}

fn replaying_from(server: &Server, queue: &str) -> Value {
    let address = format!("127.0.0.1:{}", server.port);
    json!({"address": address, "queue": "again", "deadLetterExchange": "dead", "deadLetterQueue": queue})
}

async fn replays_say_what_they_need(server: &Server) {
    let unknown = source(server, "again").await.publisher().dead_letters("a/b").await;
    let error = unknown.err().unwrap();
    assert_eq!(error.reason, BridgeReason::InvalidSource);
    assert!(
        error.message.contains("set spec.source.rabbitmq.deadLetterQueue"),
        "{error}"
    );
    for (queue, reason) in [("again", BridgeReason::InvalidSource), ("none", BridgeReason::NotFound)] {
        let source = opened(server, replaying_from(server, queue)).await.unwrap();
        let refused = source.publisher().dead_letters("a/b").await;
        assert_eq!(refused.err().unwrap().reason, reason, "{queue}");
    }
}

/// A letter of another trigger, which another user has sent with a copy to another queue, and which the broker has moved.
async fn add_a_letter_with_a_copy(channel: &Channel) {
    plain_queue(channel, "copies").await;
    let mut copies = FieldTable::default();
    copies.insert(
        "CC".into(),
        AMQPValue::FieldArray(vec![AMQPValue::LongString("copies".into())].into()),
    );
    copies.insert(
        "rproc-dead-letter-trigger".into(),
        AMQPValue::LongString("shop/others".into()),
    );
    let properties = BasicProperties::default().with_message_id("copied".into());
    let properties = properties.with_headers(copies).with_user_id("guest".into());
    publish(channel, "again-dead", "copied", properties).await;
    until_depth(channel, "copies", 1).await;
}

async fn dead_letters_are_taken_back(server: &Server, channel: &Channel) {
    queue(channel, "again").await;
    plain_queue(channel, "again-dead").await;
    let bound = channel.queue_bind(
        "again-dead".into(),
        "dead".into(),
        "again".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.unwrap();
    replays_say_what_they_need(server).await;

    let mut source = opened(server, replaying_from(server, "again-dead")).await.unwrap();
    let publisher = source.publisher();
    for (id, trigger) in [("other", "shop/others"), ("m1", "shop/orders"), ("m2", "shop/orders")] {
        let mut message = Message {
            id: Some(id.to_owned()),
            payload: id.to_owned().into(),
            reply_to: Some(r#"{"replyTo":"answers","correlationId":"c1"}"#.to_owned()),
            ..Message::default()
        };
        message.insert("x-kind", "odd");
        let letter = message.into_dead_letter(trigger, Some("uid-1"));
        assert_eq!(publisher.dead_letter(&letter, "it failed").await, Ok(true));
    }
    add_a_letter_with_a_copy(channel).await;
    // One that is not sent again stays.
    let mut letters = publisher.dead_letters("shop/orders").await.unwrap();
    let taken = letters.next().await.unwrap().unwrap();
    assert_eq!(
        taken.id.as_deref(),
        Some("m1"),
        "that of the other trigger is left alone"
    );
    drop(letters);
    until_depth(channel, "again-dead", 4).await;

    let mut letters = publisher.dead_letters("shop/orders").await.unwrap();
    let mut ids = Vec::new();
    while let Some(letter) = letters.next().await.unwrap() {
        let message = letter.into_replay();
        ids.extend(message.id.clone());
        publisher.send(&message).await.unwrap();
        letters.remove().await.unwrap();
    }
    ids.sort();
    assert_eq!(ids, ["m1", "m2"]);
    assert_eq!(letters.left().await, Some(2));
    assert_eq!(depth(channel, "copies").await, 1, "the copy is not sent again");
    let back = next(&mut source).await;
    assert_eq!(
        (back.message.header("x-kind"), back.message.replay_of()),
        (Some("odd"), Some("uid-1"))
    );
    assert_eq!(back.message.header(DEAD_LETTER_REASON), None);
    assert!(back.message.reply_to.as_ref().is_some_and(|to| to.contains("answers")));
    back.receipt.acknowledge("p").await.unwrap();
    next(&mut source).await.receipt.acknowledge("p").await.unwrap();
}

/// Whether it has no header, apart from what a quorum queue adds.
fn is_bare(message: &Message) -> bool {
    message.headers.keys().all(|name| name == "x-delivery-count")
}

/// In a queue with priorities, and in one that lets the lower ones pass now and then.
async fn priorities_hide_no_dead_letter(server: &Server, channel: &Channel) {
    for (name, kind) in [("urgent-dead", "classic"), ("fair-dead", "quorum")] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        if kind == "classic" {
            arguments.insert("x-max-priority".into(), AMQPValue::LongInt(9));
        }
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        channel.queue_declare(name.into(), durable, arguments).await.unwrap();
        let put = async |body: &str, trigger: &str, priority: u8| {
            let mut headers = FieldTable::default();
            headers.insert(
                "rproc-dead-letter-trigger".into(),
                AMQPValue::LongString(trigger.into()),
            );
            let properties = BasicProperties::default().with_headers(headers).with_priority(priority);
            publish(channel, name, body, properties).await;
        };
        for number in 0..3 {
            put(&format!("other {number}"), "shop/others", 9).await;
            put(&format!("urgent {number}"), "shop/orders", 9).await;
        }
        put("other", "shop/others", 0).await;
        for number in 3..6 {
            put(&format!("urgent {number}"), "shop/orders", 9).await;
        }
        put("calm", "shop/orders", 0).await;
        until_depth(channel, name, 11).await;

        let source = opened(server, replaying_from(server, name)).await.unwrap();
        let mut letters = source.publisher().dead_letters("shop/orders").await.unwrap();
        let mut found = Vec::new();
        while let Some(letter) = letters.next().await.unwrap() {
            let message = letter.into_replay();
            assert!(is_bare(&message), "{:?}", message.headers);
            found.push(String::from_utf8(message.payload.to_vec()).unwrap());
            letters.remove().await.unwrap();
        }
        found.sort();
        let expected = [
            "calm", "urgent 0", "urgent 1", "urgent 2", "urgent 3", "urgent 4", "urgent 5",
        ];
        assert_eq!(found, expected, "{kind}");
        assert_eq!(letters.left().await, Some(4), "{kind}");
        drop(letters);

        // Those that were moved are there for their own trigger.
        let mut letters = source.publisher().dead_letters("shop/others").await.unwrap();
        let mut number = 0;
        while let Some(letter) = letters.next().await.unwrap() {
            assert!(is_bare(&letter.into_replay()));
            letters.remove().await.unwrap();
            number += 1;
        }
        assert_eq!((number, letters.left().await), (4, Some(0)), "{kind}");
    }
}

async fn without_an_exchange_the_queue_has_its_own(server: &Server, channel: &Channel) {
    let address = format!("127.0.0.1:{}", server.port);
    let mut without = opened(server, json!({"address": address, "queue": "poison"}))
        .await
        .unwrap();
    assert_eq!(
        without.publisher().dead_letter(&Default::default(), "r").await,
        Ok(false)
    );
    publish(channel, "poison", "bad", BasicProperties::default()).await;
    let bad = next(&mut without).await;
    bad.receipt.reject("it is bad").await.unwrap();
    assert_eq!(&fetched(channel, "rejected").await.data[..], b"bad");
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

async fn results_are_confirmed(server: &Server, channel: &Channel) {
    queue(channel, "asked").await;
    channel
        .queue_declare("answers".into(), QueueDeclareOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let source = source(server, "asked").await;
    let result = result();
    let publisher = source.publisher();
    assert_eq!(publisher.default_reply(), None);
    publisher
        .reply(r#"{"replyTo":"answers","correlationId":"c1"}"#, &result)
        .await
        .unwrap();
    let answer = fetched(channel, "answers").await;
    assert_eq!(answer.data, result.to_json());
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string).unwrap_or_default();
    let properties = &answer.properties;
    assert_eq!(
        (text(properties.correlation_id()), text(properties.message_id())),
        ("c1".into(), "u-1".into())
    );
    assert_eq!(text(properties.content_type()), "application/cloudevents+json");
    let nowhere = publisher.reply(r#"{"replyTo":"nowhere"}"#, &result).await.unwrap_err();
    assert_eq!(nowhere.reason, BridgeReason::NotFound);
    assert!(
        nowhere.message.contains("NO_ROUTE") && nowhere.message.contains("\"nowhere\""),
        "{nowhere}"
    );
    let late = CloudEvent {
        time: Some(Timestamp::UNIX_EPOCH),
        ..result.clone()
    };
    assert_eq!(
        publisher.reply(r#"{"replyTo":"nowhere"}"#, &late).await,
        Ok(()),
        "in the end"
    );
    assert_eq!(
        publisher.reply(r#"{"replyTo":"asked"}"#, &result).await,
        Ok(()),
        "no loop"
    );
    assert_eq!(depth(channel, "asked").await, 0);
    for nobody in [
        "",
        "nonsense",
        r#"{"replyTo":"amq.rabbitmq.reply-to.g2dkABByZXBseUAx.gone=="}"#,
    ] {
        assert_eq!(publisher.reply(nobody, &result).await, Ok(()), "{nobody}");
    }
}

/// The destination of a sink: events with this routing key to the default exchange.
fn events_to(server: &Server, key: &str) -> DestinationSpec {
    let address = format!("127.0.0.1:{}", server.port);
    serde_json::from_value(json!({"rabbitmq": {"address": address, "routingKey": key}})).unwrap()
}

async fn events_of_a_sink_are_confirmed(server: &Server, channel: &Channel) {
    let secrets = Secrets::under(server.folder.path());
    let nowhere = destination::open(&events_to(server, "no-such-queue"), "shop/events", &secrets).await;
    let refused = nowhere.unwrap().send(&result(), "u").await.unwrap_err();
    assert_eq!(refused.reason, BridgeReason::NotFound, "{refused}");
    queue(channel, "events").await;
    let destination = destination::open(&events_to(server, "events"), "shop/events", &secrets).await;
    let destination = destination.unwrap();
    destination.send(&result(), "u").await.unwrap();
    let options = BasicGetOptions { no_ack: true };
    let found = channel.basic_get("events".into(), options).await.unwrap().unwrap();
    let event: Value = serde_json::from_slice(&found.data).unwrap();
    assert_eq!(event["id"], "u-1");
    let properties = &found.properties;
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "u-1");
    assert_eq!(
        properties.content_type().as_ref().unwrap().as_str(),
        "application/cloudevents+json"
    );
    assert_eq!((*properties.delivery_mode(), properties.reply_to()), (Some(2), &None));
    let missing = json!({"rabbitmq": {"address": format!("127.0.0.1:{}", server.port), "exchange": "none",
                                      "routingKey": "events"}});
    let missing = destination::open(&serde_json::from_value(missing).unwrap(), "shop/events", &secrets).await;
    let refused = missing.unwrap().send(&result(), "u").await.unwrap_err();
    assert_eq!(refused.reason, BridgeReason::NotFound, "{refused}");
    assert!(refused.message.contains("no exchange 'none'"), "{refused}");
}

async fn a_sink_notices_a_server_that_dies(server: &mut Server) {
    let secrets = Secrets::under(server.folder.path());
    let destination = destination::open(&events_to(server, "events"), "shop/events", &secrets).await;
    let destination = destination.unwrap();
    server.kill();
    let lost = timeout(SOON, destination.lost()).await.unwrap();
    assert_eq!(lost.reason, BridgeReason::Unreachable, "{lost}");
    assert!(destination.send(&result(), "u").await.is_err());
    server.begin();
}

async fn requesters_get_their_answer(server: &Server, channel: &Channel) {
    let mut source = source(server, "asked").await;
    let publisher = source.publisher();
    let result = result();
    // A requester that waits.
    let direct = "amq.rabbitmq.reply-to";
    let options = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let mut requester = channel
        .basic_consume(direct.into(), "".into(), options, FieldTable::default())
        .await
        .unwrap();
    publish(
        channel,
        "asked",
        "ask",
        BasicProperties::default().with_reply_to(direct.into()),
    )
    .await;
    let request = next(&mut source).await;
    publisher
        .reply(request.message.reply_to.as_deref().unwrap(), &result)
        .await
        .unwrap();
    let answer = timeout(SOON, requester.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.data, result.to_json());
    request.receipt.acknowledge("p").await.unwrap();
    // A test of a person.
    publisher.send(&request.message).await.unwrap();
    assert_eq!(body(&next(&mut source).await), "ask");
}

fn refusal(opened: Result<Box<dyn Source>, SourceError>) -> SourceError {
    opened.err().unwrap()
}

async fn refusals_have_the_words_of_the_server(server: &Server, channel: &Channel) {
    queue(channel, "q").await;
    let address = format!("127.0.0.1:{}", server.port);
    let missing = refusal(opened(server, json!({"address": address, "queue": "none"})).await);
    assert_eq!(missing.reason, BridgeReason::NotFound);
    assert!(missing.message.contains("no queue 'none' in vhost '/'"), "{missing}");
    let vhost = refusal(opened(server, json!({"address": address, "queue": "q", "virtualHost": "none"})).await);
    assert_eq!(vhost.reason, BridgeReason::NotFound, "{vhost}");
    let closed = refusal(
        opened(
            server,
            json!({"address": address, "queue": "q", "virtualHost": "closed"}),
        )
        .await,
    );
    assert_eq!(closed.reason, BridgeReason::Unauthorized, "{closed}");
    let named = json!({"address": address, "queue": "q", "credentialsSecretName": "c"});
    let absent = refusal(opened(server, named.clone()).await);
    assert_eq!(absent.reason, BridgeReason::InvalidSecret);
    assert!(absent.message.contains("no key username"), "{absent}");
    let credentials = server.folder.path().join("credentials");
    fs::create_dir_all(&credentials).unwrap();
    for (user, password) in [("guest", "wrong"), ("limited", "limited")] {
        fs::write(credentials.join("username"), user).unwrap();
        fs::write(credentials.join("password"), password).unwrap();
        // A user who may log in learns of the missing right with the first message.
        let error = match opened(server, named.clone()).await {
            Err(refused) => refused,
            Ok(mut source) => source.next().await.err().unwrap(),
        };
        assert_eq!(error.reason, BridgeReason::Unauthorized, "{user}: {error}");
        assert!(
            error.message.contains("ACCESS_REFUSED") && !error.message.contains("wrong"),
            "{error}"
        );
    }
    let port = free_port();
    let nobody = refusal(opened(server, json!({"address": format!("127.0.0.1:{port}"), "queue": "q"})).await);
    assert_eq!(nobody.reason, BridgeReason::Unreachable, "{nobody}");
    let address = refusal(opened(server, json!({"address": "amqp://x", "queue": "q"})).await);
    assert!(address.message.contains("HOST:PORT"), "{address}");
}

async fn certificates_decide(server: &Server, channel: &Channel) {
    queue(channel, "secure").await;
    publish(channel, "secure", "hi", BasicProperties::default()).await;
    let tls = |tls: Value| json!({"address": format!("localhost:{}", server.tls_port), "queue": "secure", "tls": tls});
    let both = tls(json!({"caSecretName": "ca", "clientCertificateSecretName": "c"}));
    // Without credentials, a certificate is the login; this server has no plugin for that.
    let external = refusal(opened(server, both).await);
    assert_eq!(external.reason, BridgeReason::Unauthorized, "{external}");
    assert!(external.message.contains("EXTERNAL"), "{external}");
    fs::write(server.folder.path().join("credentials/username"), "guest").unwrap();
    fs::write(server.folder.path().join("credentials/password"), "guest\n").unwrap();
    let mut both = tls(json!({"caSecretName": "ca", "clientCertificateSecretName": "c"}));
    both["credentialsSecretName"] = json!("c");
    let mut source = opened(server, both.clone()).await.unwrap();
    assert_eq!(body(&next(&mut source).await), "hi");
    drop(source);
    let public = refusal(opened(server, tls(json!({}))).await);
    assert_eq!(public.reason, BridgeReason::Untrusted, "{public}");
    let other = settings(&server.folder.path().join("other"));
    let untrusted = refusal(open(&trigger(tls(json!({"caSecretName": "ca"}))), &other).await);
    assert_eq!(untrusted.reason, BridgeReason::Untrusted, "{untrusted}");
    let mut no_certificate = tls(json!({"caSecretName": "ca"}));
    no_certificate["credentialsSecretName"] = json!("c");
    let refused = refusal(opened(server, no_certificate).await);
    assert_eq!(
        refused.reason,
        BridgeReason::Unauthorized,
        "the server asks for a certificate: {refused}"
    );
    let mut wrong_name = both;
    wrong_name["address"] = json!(format!("127.0.0.1:{}", server.tls_port));
    let wrong_name = refusal(opened(server, wrong_name).await);
    assert_eq!(wrong_name.reason, BridgeReason::Untrusted, "{wrong_name}");
}

/// It accepts connections, and never says a word.
async fn a_server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let source = json!({"address": address, "queue": "q"});
    let begin = Instant::now();
    let error = refusal(open(&trigger(source), &Settings::default()).await);
    assert_eq!(error.reason, BridgeReason::Unreachable, "{error}");
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let (mut connection, _) = listener.accept().unwrap();
    connection.set_read_timeout(Some(SOON)).unwrap();
    let mut received = Vec::new();
    // The connection is closed as well: otherwise each try would leave one behind.
    std::io::Read::read_to_end(&mut connection, &mut received).unwrap();
    assert!(received.starts_with(b"AMQP"));
}

async fn a_server_that_dies_delivers_again(server: &mut Server) {
    let (connection, channel) = server.admin().await;
    // Not a quorum queue: RabbitMQ 3.10 forgets one that is younger than some minutes if it is killed.
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare("durable".into(), durable, FieldTable::default())
        .await
        .unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    publish(&channel, "durable", "kept", BasicProperties::default()).await;
    drop((connection, channel));
    let mut source = source(server, "durable").await;
    let result = result();
    let publisher = source.publisher();
    let mut kept = next(&mut source).await;
    let waiting = tokio::spawn(async move {
        let ended = timeout(SOON, source.next()).await.unwrap();
        ended.err().map(|error| error.reason)
    });
    sleep(Duration::from_millis(200)).await;
    server.kill();
    assert_eq!(waiting.await.unwrap(), Some(BridgeReason::Unreachable));
    assert!(kept.receipt.extend().await.is_err());
    assert!(
        kept.receipt.acknowledge("p").await.is_err(),
        "an acknowledgement that cannot arrive is no success"
    );
    let lost = publisher.reply(r#"{"replyTo":"answers"}"#, &result).await.unwrap_err();
    assert_eq!(lost.reason, BridgeReason::Unreachable);
    server.begin();
    // The queue may not be there for a moment; the engine opens the source again as well.
    let begin = Instant::now();
    let address = format!("127.0.0.1:{}", server.port);
    let delivery = loop {
        let opened = opened(server, json!({"address": address, "queue": "durable"})).await;
        let failed = match opened {
            Ok(mut source) => match source.next().await {
                // It lives as long as the test: its end puts the message back.
                Ok(delivery) => break (delivery, source),
                Err(error) => error,
            },
            Err(error) => error,
        };
        assert!(begin.elapsed() < 2 * SOON, "{failed}");
        sleep(Duration::from_millis(200)).await;
    };
    let (delivery, _source) = delivery;
    assert_eq!(body(&delivery), "kept");
    delivery.receipt.acknowledge("p").await.unwrap();
}
