//! The engine and a real nats-server: messages, results, dead letters, while both are killed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/engine.rs"]
mod engine;
#[path = "nats/server.rs"]
mod server;
#[path = "nats/standby.rs"]
mod standby;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use cluster::{Cluster, PROCESSES, TRIGGERS, refusal, trigger};
use engine::{Bridge, write_secret};
use futures::StreamExt as _;
use http::Method;
use serde_json::{Value, json};
use server::Server;
use tempfile::TempDir;

const PROGRAM_TIME: Duration = Duration::from_millis(5);

/// A server with the streams ORDERS and RESULTS (`results`, `dead`), and a trigger for the first.
struct Setup {
    server: Server,
    cluster: Cluster,
    secrets: TempDir,
}

impl Setup {
    /// `None`, with a sentence, if this machine has no nats-server.
    async fn start(source: Value, policy: Value) -> Option<Self> {
        let server = Server::start(&[])?;
        let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
        let context = server.context().await;
        for (name, subjects) in [
            ("ORDERS", vec!["orders.>"]),
            ("RESULTS", vec!["results", "dead", "answers.>"]),
        ] {
            let config = stream::Config {
                name: name.to_owned(),
                subjects: subjects.into_iter().map(str::to_owned).collect(),
                // The server's own memory of ids must not hide that a message was sent twice.
                duplicate_window: Duration::from_millis(100),
                ..stream::Config::default()
            };
            context.create_stream(config).await.unwrap();
        }
        let mut nats = json!({"servers": [server.url()], "stream": "ORDERS"});
        nats.as_object_mut()
            .unwrap()
            .extend(source.as_object().unwrap().clone());
        cluster.put(TRIGGERS, trigger(json!({"nats": nats}), policy));
        Some(Self {
            server,
            cluster,
            secrets,
        })
    }

    fn bridge(&self) -> Bridge {
        Bridge::start(&self.cluster, self.secrets.path())
    }

    fn run_processes(&self) {
        tokio::spawn(self.cluster.clone().run_processes(PROGRAM_TIME, exit_code));
    }
}

/// Programs whose payload says `fail` fail.
fn exit_code(payload: &str) -> i32 {
    i32::from(payload.contains("fail"))
}

async fn publish(context: &jetstream::Context, id: &str, headers: &[(&str, &str)], payload: &str) {
    let mut map = async_nats::HeaderMap::new();
    map.insert("Nats-Msg-Id", id);
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    let published = context
        .publish_with_headers("orders.new", map, payload.to_owned().into())
        .await;
    published.unwrap().await.unwrap();
}

/// Everything that a stream keeps under a subject: payload and headers.
async fn kept(context: &jetstream::Context, subject: &str) -> Vec<(Value, async_nats::HeaderMap)> {
    let stream = context.get_stream("RESULTS").await.unwrap();
    let config = jetstream::consumer::pull::Config {
        filter_subject: subject.to_owned(),
        ..jetstream::consumer::pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut messages = consumer.fetch().max_messages(5000).messages().await.unwrap();
    let mut found = Vec::new();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let payload = serde_json::from_slice(&message.payload);
        let payload = payload.unwrap_or_else(|_| json!(String::from_utf8_lossy(&message.payload)));
        found.push((payload, message.headers.clone().unwrap_or_default()));
    }
    found
}

fn of(event: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&event["data"]["messageId"]), text(&event["id"]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_is_one_process_and_one_result_whatever_is_killed() {
    let source = json!({"resultSubject": "results"});
    let Some(mut setup) = Setup::start(source, json!({"maxRunning": 20})).await else {
        return;
    };
    setup.run_processes();
    setup.cluster.lose_every(37);
    let ids: Vec<String> = (0..200).map(|number| format!("m{number}")).collect();
    let context = setup.server.context().await;
    for (number, id) in ids.iter().enumerate() {
        publish(&context, id, &[], id).await;
        if number % 20 == 19 {
            // The server forgets ids after 100 ms.
            tokio::time::sleep(Duration::from_millis(120)).await;
            publish(&context, id, &[], id).await;
        }
    }
    let mut bridge = setup.bridge();
    for round in 0..12_u64 {
        // Not chance, but at other moments of the work each time.
        tokio::time::sleep(Duration::from_millis(20 + round * 37 % 150)).await;
        if round % 4 == 3 {
            setup.server.kill();
            setup.server.begin();
        } else {
            bridge.kill().await;
            bridge = setup.bridge();
        }
    }
    let marked = |process: &Value| process["metadata"]["annotations"]["remoteprocess.dev/result-sent"].is_string();
    setup
        .cluster
        .until("all results", |cluster| {
            let processes = cluster.all(PROCESSES);
            processes.len() == ids.len() && processes.iter().all(marked)
        })
        .await;
    let all: BTreeSet<String> = ids.iter().cloned().collect();
    let journal = setup.cluster.journal();
    assert_eq!(journal.len(), ids.len(), "each program ran once");
    assert!(
        journal.iter().all(|(id, payload)| id == payload),
        "with its own message"
    );
    assert_eq!(setup.cluster.created().into_iter().collect::<BTreeSet<_>>(), all);
    assert_eq!(setup.cluster.created().len(), ids.len());
    let mut results: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (event, headers) in kept(&setup.server.context().await, "results").await {
        let (message, id) = of(&event);
        assert_eq!(
            headers.get("Nats-Msg-Id").map(|id| id.as_str().to_owned()),
            Some(id.clone())
        );
        results.entry(message).or_default().insert(id);
    }
    assert_eq!(results.keys().cloned().collect::<BTreeSet<_>>(), all);
    assert!(
        results.values().all(|ids| ids.len() == 1),
        "a result that is sent again keeps its id"
    );
    assert!(setup.cluster.most_running() <= 20);
    // All are acknowledged: nothing comes again.
    setup.server.until_settled("ORDERS").await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_waits_in_the_broker_in_its_order() {
    let Some(setup) = Setup::start(json!({}), json!({"maxRunning": 5})).await else {
        return;
    };
    let context = setup.server.context().await;
    let ids: Vec<String> = (0..100).map(|number| format!("m{number}")).collect();
    for id in &ids {
        publish(&context, id, &[], id).await;
    }
    let bridge = setup.bridge();
    setup
        .cluster
        .until("the limit", |cluster| {
            cluster.condition("Ready").starts_with("True Limited") && cluster.status()["running"] == 5
        })
        .await;
    setup
        .cluster
        .until("the lag", |cluster| cluster.status()["lag"] == 95)
        .await;
    setup.run_processes();
    setup
        .cluster
        .until("all", |cluster| cluster.journal().len() == ids.len())
        .await;
    assert_eq!(setup.cluster.created(), ids);
    assert_eq!(setup.cluster.most_running(), 5);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::too_many_lines, reason = "one server, one story")]
async fn results_go_to_the_address_of_the_message_and_failures_to_the_dead_letters() {
    let source = json!({"resultSubject": "results", "deadLetterSubject": "dead"});
    let Some(setup) = Setup::start(source, json!({})).await else {
        return;
    };
    setup.run_processes();
    let context = setup.server.context().await;
    publish(&context, "ok", &[], "0").await;
    publish(&context, "own", &[("Reply-To", "answers.own")], "0").await;
    publish(&context, "evil", &[("Reply-To", "$JS.API.STREAM.DELETE.ORDERS")], "0").await;
    publish(&context, "loop", &[("Reply-To", "orders.new")], "0").await;
    publish(
        &context,
        "bad",
        &[("x-kind", "odd"), ("Nats-Expected-Stream", "ORDERS")],
        "fail",
    )
    .await;
    publish(
        &context,
        "poison",
        &[("content-type", "application/cloudevents+json")],
        "nonsense",
    )
    .await;
    let large = "x".repeat(600 * 1024);
    publish(&context, "large", &[], &large).await;
    let bridge = setup.bridge();
    setup
        .cluster
        .until("counts", |cluster| {
            let status = cluster.status();
            (&status["succeeded"], &status["failed"], &status["deadLettered"]) == (&json!(4), &json!(1), &json!(3))
        })
        .await;
    let results = kept(&context, "results").await;
    let ids: BTreeSet<String> = results.iter().map(|(event, _)| of(event).0).collect();
    assert_eq!(ids, ["ok", "evil", "bad"].map(str::to_owned).into());
    assert_eq!(of(&kept(&context, "answers.own").await[0].0).0, "own");
    let orders = context.get_stream("ORDERS").await.unwrap();
    assert_eq!(
        orders.cached_info().state.messages,
        7,
        "neither deleted nor in a circle"
    );
    let dead = kept(&context, "dead").await;
    let reasons: Vec<String> = dead
        .iter()
        .map(|(_, headers)| headers.get("rproc-dead-letter-reason").unwrap().as_str().to_owned())
        .collect();
    assert_eq!(dead.len(), 3, "{reasons:?}");
    let failed = dead.iter().find(|(payload, _)| payload == "fail").unwrap();
    assert_eq!(failed.1.get("x-kind").unwrap().as_str(), "odd");
    assert!(
        reasons.iter().any(|reason| reason.contains("NonZeroExit: exit code 1")),
        "{reasons:?}"
    );
    assert!(
        reasons.iter().any(|reason| reason.contains("not a CloudEvent")),
        "{reasons:?}"
    );
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("614400 bytes; at most 524288")),
        "{reasons:?}"
    );
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_can_stay_until_its_process_has_ended() {
    let Some(setup) = Setup::start(json!({}), json!({"acknowledge": "Finished"})).await else {
        return;
    };
    let context = setup.server.context().await;
    publish(&context, "ok", &[], "0").await;
    publish(&context, "bad", &[], "fail").await;
    let bridge = setup.bridge();
    setup
        .cluster
        .until("both", |cluster| cluster.created().len() == 2)
        .await;
    setup
        .cluster
        .until("their messages", |cluster| cluster.all(cluster::CONFIG_MAPS).len() == 2)
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(setup.server.unsettled("ORDERS").await, 2);
    bridge.kill().await;
    let bridge = setup.bridge();
    setup.run_processes();
    setup
        .cluster
        .until("ends", |cluster| {
            (&cluster.status()["succeeded"], &cluster.status()["failed"]) == (&json!(1), &json!(1))
        })
        .await;
    assert_eq!(setup.cluster.journal().len(), 2);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::too_many_lines, reason = "one server, one story")]
async fn what_is_wrong_is_said_and_cured() {
    let Some(mut setup) = Setup::start(json!({"stream": "NONE"}), json!({})).await else {
        return;
    };
    let bridge = setup.bridge();
    setup
        .cluster
        .until("no stream", |cluster| {
            cluster
                .condition("Connected")
                .starts_with("False NotFound: stream NONE")
        })
        .await;
    assert!(
        setup.cluster.condition("Ready").starts_with("False NotFound"),
        "{}",
        setup.cluster.condition("Ready")
    );
    setup.cluster.edit(TRIGGERS, "orders", |trigger| {
        trigger["spec"]["source"]["nats"]["stream"] = json!("ORDERS")
    });
    setup
        .cluster
        .until("cure", |cluster| {
            cluster.condition("Connected").starts_with("True Connected")
        })
        .await;

    setup.server.kill();
    setup
        .cluster
        .until("no server", |cluster| {
            cluster.condition("Connected").starts_with("False Unreachable")
        })
        .await;
    setup.server.begin();
    let begin = Instant::now();
    setup
        .cluster
        .until("cure", |cluster| {
            cluster.condition("Connected").starts_with("True Connected")
        })
        .await;
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());

    let context = setup.server.context().await;
    setup.cluster.rule(|method, path, _| {
        (method == Method::POST && path.ends_with(PROCESSES)).then(|| refusal(403, "exceeded quota: q"))
    });
    publish(&context, "m", &[], "0").await;
    setup
        .cluster
        .until("quota", |cluster| {
            cluster
                .condition("Ready")
                .starts_with("False Forbidden: exceeded quota")
        })
        .await;
    setup.cluster.no_rule();
    let begin = Instant::now();
    setup.cluster.until("cure", |cluster| cluster.created() == ["m"]).await;
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let events = setup.cluster.all("events");
    let said = |kind: &str, reason: &str| {
        events
            .iter()
            .any(|event| event["type"] == kind && event["reason"] == reason)
    };
    assert!(
        said("Normal", "Connected") && said("Warning", "Unreachable"),
        "{events:#?}"
    );
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::too_many_lines, reason = "one server, one story")]
async fn results_and_dead_letters_can_share_the_stream_but_do_not_come_back() {
    let source = json!({"resultSubject": "orders.results", "deadLetterSubject": "orders.dead"});
    let Some(mut setup) = Setup::start(source, json!({})).await else {
        return;
    };
    setup.run_processes();
    let context = setup.server.context().await;
    let mut config = context.get_stream("ORDERS").await.unwrap().cached_info().config.clone();
    // As by default: the server knows the id of the message when its dead letter comes.
    config.duplicate_window = Duration::from_secs(120);
    context.update_stream(config).await.unwrap();
    let bridge = setup.bridge();
    let connected = |cluster: &Cluster, state: &str| cluster.condition("Connected").starts_with(state);
    let cluster = setup.cluster.clone();
    let until = async |state: &str| cluster.until(state, |cluster| connected(cluster, state)).await;
    until("False InvalidSource").await;
    setup.cluster.edit(TRIGGERS, "orders", |trigger| {
        trigger["spec"]["source"]["nats"]["subject"] = json!("orders.new")
    });
    until("True Connected").await;
    let event = json!({"specversion": "1.0", "id": "7", "source": "shop", "type": "order", "datacontenttype": "a\r\nb",
                       "data": "fail"});
    let structured = [("content-type", "application/cloudevents+json")];
    publish(&context, "bad", &structured, &event.to_string()).await;
    setup
        .cluster
        .until("the dead letter", |cluster| cluster.status()["deadLettered"] == 1)
        .await;
    let stream = context.get_stream("ORDERS").await.unwrap();
    let dead = stream.get_last_raw_message_by_subject("orders.dead").await.unwrap();
    let header = |name: &str| dead.headers.get(name).map(|value| value.as_str().to_owned());
    let uid = setup.cluster.all(PROCESSES)[0]["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    let id = format!("dead-letter ORDERS bad {uid}");
    assert_eq!(
        header("Nats-Msg-Id"),
        Some(id),
        "another one, if the message fails again"
    );
    assert_eq!(header("rproc-replay-of"), Some(uid));
    assert_eq!(header("rproc-dead-letter-trigger").as_deref(), Some("shop/orders"));
    assert_eq!(header("rproc-dead-letter-message-id").as_deref(), Some("bad"));
    assert!(stream.get_last_raw_message_by_subject("orders.results").await.is_ok());
    assert_eq!(setup.cluster.created().len(), 1);

    // A lost server is noticed as well while no message is wanted.
    setup
        .cluster
        .edit(TRIGGERS, "orders", |trigger| trigger["spec"]["suspend"] = json!(true));
    setup
        .cluster
        .until("pause", |cluster| {
            cluster.condition("Ready").starts_with("False Suspended")
        })
        .await;
    setup.server.kill();
    setup
        .cluster
        .until("no server", |cluster| connected(cluster, "False Unreachable"))
        .await;
    setup.server.begin();
    setup
        .cluster
        .until("cure", |cluster| connected(cluster, "True Connected"))
        .await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_is_not_sent_again() {
    let source = json!({"resultSubject": "results", "deadLetterSubject": "dead"});
    let Some(setup) = Setup::start(source, json!({})).await else {
        return;
    };
    setup.run_processes();
    setup.cluster.rule(|method, path, _| {
        let is_mark = method == Method::PATCH && path.contains("/remoteprocesses/");
        is_mark.then(|| refusal(503, "the API server is away"))
    });
    let context = setup.server.context().await;
    publish(&context, "bad", &[], "fail").await;
    let bridge = setup.bridge();
    setup
        .cluster
        .until("the problem", |cluster| {
            cluster.condition("Ready").contains("the API server is away")
        })
        .await;
    // Some tries more.
    tokio::time::sleep(Duration::from_secs(3)).await;
    setup.cluster.no_rule();
    setup
        .cluster
        .until("the mark", |cluster| cluster.status()["deadLettered"] == 1)
        .await;
    assert_eq!(kept(&context, "results").await.len(), 1);
    assert_eq!(kept(&context, "dead").await.len(), 1);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_whose_answer_is_lost_does_not_keep_the_message() {
    let Some(setup) = Setup::start(json!({}), json!({"acknowledge": "Finished"})).await else {
        return;
    };
    setup.run_processes();
    let cluster = setup.cluster.clone();
    setup.cluster.rule(move |method, path, body| {
        let is_mark = method == Method::PATCH && path.contains("/remoteprocesses/");
        is_mark.then(|| {
            // It was carried out all the same.
            let (name, sent) = (path.rsplit('/').next().unwrap_or_default().to_owned(), body.clone());
            let cluster = cluster.clone();
            tokio::spawn(async move {
                cluster.edit(PROCESSES, &name, |process| {
                    let mark = "remoteprocess.dev/result-sent";
                    process["metadata"]["annotations"][mark] = sent["metadata"]["annotations"][mark].clone();
                });
            });
            refusal(503, "the answer is lost")
        })
    });
    publish(&setup.server.context().await, "m", &[], "0").await;
    let bridge = setup.bridge();
    setup
        .cluster
        .until("the end", |cluster| cluster.status()["succeeded"] == 1)
        .await;
    setup.server.until_settled("ORDERS").await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_nobody_takes_is_a_condition() {
    let Some(setup) = Setup::start(json!({"deadLetterSubject": "nowhere"}), json!({})).await else {
        return;
    };
    let context = setup.server.context().await;
    let structured = [("content-type", "application/cloudevents+json")];
    publish(&context, "poison", &structured, "nonsense").await;
    let bridge = setup.bridge();
    setup
        .cluster
        .until("the problem", |cluster| {
            let condition = cluster.condition("Ready");
            condition.starts_with("False NotFound: a message cannot become a process")
                && condition.contains("not a CloudEvent")
                && condition.contains("nowhere")
        })
        .await;
    let config = stream::Config {
        name: "NOWHERE".to_owned(),
        subjects: vec!["nowhere".to_owned()],
        ..stream::Config::default()
    };
    context.create_stream(config).await.unwrap();
    setup
        .cluster
        .until("cure", |cluster| cluster.condition("Ready").starts_with("True Taking"))
        .await;
    setup
        .cluster
        .until("the dead letter", |cluster| cluster.status()["deadLettered"] == 1)
        .await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_login_is_said_and_cured() {
    let Some(server) = Server::start(&["--user", "orders", "--pass", "secret"]) else {
        return;
    };
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    write_secret(
        secrets.path(),
        "credentials",
        &[("username", "orders"), ("password", "wrong")],
    );
    let nats = json!({"servers": [server.url()], "stream": "ORDERS", "credentialsSecretName": "s"});
    cluster.put(TRIGGERS, trigger(json!({"nats": nats}), json!({})));
    let bridge = Bridge::start(&cluster, secrets.path());
    cluster
        .until("refusal", |cluster| {
            cluster.condition("Connected").starts_with("False Unauthorized")
        })
        .await;
    write_secret(secrets.path(), "credentials", &[("password", "secret\n")]);
    let begin = Instant::now();
    cluster
        .until("cure", |cluster| {
            cluster.condition("Connected").starts_with("False NotFound")
        })
        .await;
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    bridge.stop().await;
}
