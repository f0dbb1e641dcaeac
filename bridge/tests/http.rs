//! The engine behind a webhook: real requests, an API server in memory.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/engine.rs"]
mod engine;
#[path = "http/standby.rs"]
mod standby;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::{Cluster, PROCESSES, TRIGGERS, refusal, trigger};
use engine::{Bridge, write_secret};
use futures::future::join_all;
use http::Method;
use remoteprocess_bridge::source::{Secrets, Settings, open};
use ring::hmac;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const TOKEN: &str = "a-token-of-some-length";
const KEY: &str = "a-signing-key-of-some-length";

/// A trigger with a webhook, its bridge, and what runs its processes.
struct Webhook {
    cluster: Cluster,
    bridge: Bridge,
    _secrets: TempDir,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {} {}", self.status, self.body))
    }
}

impl Webhook {
    async fn start(policy: Value, processes: Option<Duration>) -> Self {
        let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
        write_secret(secrets.path(), "credentials", &[("token", TOKEN), ("signingKey", KEY)]);
        cluster.put(TRIGGERS, trigger(json!({"http": {"secretName": "s"}}), policy));
        if let Some(duration) = processes {
            tokio::spawn(
                cluster
                    .clone()
                    .run_processes(duration, |payload| payload.parse().unwrap_or(0)),
            );
        }
        let bridge = Bridge::start(&cluster, secrets.path());
        let webhook = Self {
            cluster,
            bridge,
            _secrets: secrets,
        };
        webhook.listens().await;
        webhook
    }

    async fn listens(&self) {
        let begin = Instant::now();
        while TcpStream::connect(self.bridge.webhook).await.is_err() {
            assert!(begin.elapsed() < Duration::from_secs(10), "nobody listens");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A request with the token.
    async fn send(&self, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let bearer = format!("Bearer {TOKEN}");
        let headers: Vec<_> = [("authorization", bearer.as_str())]
            .iter()
            .chain(headers)
            .copied()
            .collect();
        request(self.bridge.webhook, "POST", target, &headers, body).await
    }

    /// As `send`, again and again while messages are not taken.
    async fn deliver(&self, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        loop {
            let answer = self.send(target, headers, body).await;
            if ![429, 503].contains(&answer.status) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn request(at: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut head = format!(
        "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    raw(at, &[head.as_bytes(), b"\r\n", body].concat()).await
}

async fn raw(at: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(at).await.unwrap();
    // The server may answer, and close, before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_default();
    Answer {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

fn signed(id: &str, seconds_ago: i64, body: &[u8]) -> Vec<(&'static str, String)> {
    let time = jiff::Timestamp::now().as_second() - seconds_ago;
    let content = [format!("{id}.{time}.").as_bytes(), body].concat();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes()), &content);
    vec![
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", time.to_string()),
        ("webhook-signature", format!("v1,{}", STANDARD.encode(tag))),
    ]
}

fn borrowed<'a>(headers: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[tokio::test]
async fn a_request_becomes_a_process_and_a_sender_may_wait_for_its_result() {
    let webhook = Webhook::start(json!({}), Some(Duration::from_millis(200))).await;
    let first = webhook.deliver("/?wait=10", &[("idempotency-key", "k1")], b"0").await;
    assert_eq!(first.status, 200, "{}", first.body);
    let event = first.json();
    assert_eq!(event["type"], "dev.remoteprocess.process.finished.v1");
    assert_eq!(
        (&event["data"]["outcome"], &event["data"]["messageId"]),
        (&json!("Succeeded"), &json!("k1"))
    );
    let again = webhook.send("/?wait=10", &[("idempotency-key", "k1")], b"0").await;
    assert_eq!(
        (again.status, again.json()["id"].clone()),
        (200, event["id"].clone()),
        "the same result"
    );
    let accepted = webhook.send("/", &[("idempotency-key", "k1")], b"0").await;
    assert_eq!((accepted.status, &accepted.json()["name"]), (202, &event["subject"]));
    let failed = webhook.send("/?wait=10", &[("idempotency-key", "k2")], b"3").await;
    assert_eq!((failed.status, &failed.json()["data"]["exitCode"]), (200, &json!(3)));
    assert_eq!(webhook.cluster.journal().len(), 2);
    webhook
        .cluster
        .until("counts", |cluster| {
            let status = cluster.status();
            (
                &status["received"],
                &status["started"],
                &status["duplicates"],
                &status["succeeded"],
                &status["failed"],
            ) == (&json!(4), &json!(2), &json!(2), &json!(1), &json!(1))
        })
        .await;
    assert_eq!(
        webhook.cluster.condition("Ready"),
        "True Taking: messages become processes"
    );
    webhook.bridge.stop().await;
}

#[tokio::test]
async fn who_has_no_secret_starts_nothing() {
    let webhook = Webhook::start(json!({}), None).await;
    let at = webhook.bridge.webhook;
    let mut wrong = signed("w1", 0, b"body");
    wrong[2].1 = wrong[2].1.replace("v1,", "v1,A");
    let other = signed("w1", 0, b"other body");
    let old = signed("w1", 301, b"body");
    let future = signed("w1", -302, b"body");
    let attempts: Vec<Vec<(&str, &str)>> = vec![
        vec![],
        vec![("authorization", "Bearer wrong")],
        borrowed(&wrong),
        borrowed(&other),
        borrowed(&old),
        borrowed(&future),
    ];
    for headers in &attempts {
        let answer = request(at, "POST", "/", headers, b"body").await;
        assert_eq!(answer.status, 401, "{headers:?} {}", answer.body);
    }
    for (method, target, status) in [("GET", "/", 405), ("POST", "/x", 404), ("POST", "/metrics", 404)] {
        assert_eq!(request(at, method, target, &[], b"").await.status, status);
    }
    webhook
        .cluster
        .until("refusals", |cluster| cluster.status()["refused"] == attempts.len() + 3)
        .await;
    assert!(webhook.cluster.all(PROCESSES).is_empty());
}

#[tokio::test]
async fn a_signed_request_that_is_repeated_starts_nothing_new() {
    let webhook = Webhook::start(json!({}), None).await;
    let headers = signed("w1", 0, b"body");
    let at = webhook.bridge.webhook;
    webhook
        .cluster
        .until("readiness", |cluster| cluster.condition("Ready").starts_with("True"))
        .await;
    let first = request(at, "POST", "/", &borrowed(&headers), b"body").await;
    assert_eq!(first.status, 202, "{}", first.body);
    let event = [
        ("ce-specversion", "1.0"),
        ("ce-id", "other"),
        ("ce-source", "s"),
        ("ce-type", "t"),
    ];
    for more in [&[][..], &event[..], &[("idempotency-key", "other")][..]] {
        let headers: Vec<_> = borrowed(&headers).into_iter().chain(more.iter().copied()).collect();
        let again = request(at, "POST", "/", &headers, b"body").await;
        assert_eq!((again.status, again.json()), (202, first.json()));
    }
    assert_eq!(webhook.cluster.all(PROCESSES).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_requests_with_one_key_are_one_process() {
    let webhook = Webhook::start(json!({}), Some(Duration::from_millis(500))).await;
    let name = webhook.deliver("/", &[("idempotency-key", "k")], b"0").await.json()["name"].clone();
    for _ in 0..20 {
        let requests = (0..100).map(|_| webhook.deliver("/", &[("idempotency-key", "k")], b"0"));
        for answer in join_all(requests).await {
            assert_eq!((answer.status, &answer.json()["name"]), (202, &name));
        }
    }
    assert_eq!(webhook.cluster.all(PROCESSES).len(), 1);
    assert_eq!(webhook.cluster.journal(), [("k".to_owned(), "0".to_owned())]);
}

#[tokio::test]
async fn no_more_run_than_may() {
    let webhook = Webhook::start(json!({"maxRunning": 3}), None).await;
    for id in ["a", "b", "c"] {
        let answer = webhook.deliver("/", &[("idempotency-key", id)], b"0").await;
        assert_eq!(answer.status, 202, "{}", answer.body);
    }
    let limited = webhook.send("/", &[("idempotency-key", "d")], b"0").await;
    assert_eq!(limited.status, 429, "{}", limited.body);
    assert!(limited.head.contains("retry-after: 1"), "{}", limited.head);
    webhook
        .cluster
        .until("the reason", |cluster| {
            cluster.condition("Ready").starts_with("True Limited")
        })
        .await;
    tokio::spawn(webhook.cluster.clone().run_processes(Duration::from_millis(20), |_| 0));
    let requests = (0..60).map(|id| {
        let (id, webhook) = (format!("n{id}"), &webhook);
        async move { webhook.deliver("/", &[("idempotency-key", &id)], b"0").await.status }
    });
    assert!(join_all(requests).await.iter().all(|status| *status == 202));
    assert_eq!(webhook.cluster.created().len(), 63);
    assert!(
        webhook.cluster.most_running() <= 3,
        "{}",
        webhook.cluster.most_running()
    );
}

#[tokio::test]
async fn what_is_too_large_or_too_slow_is_refused() {
    let webhook = Webhook::start(json!({}), None).await;
    let at = webhook.bridge.webhook;
    let large = vec![b'x'; 512 * 1024 + 1];
    assert_eq!(webhook.send("/", &[], &large).await.status, 413);
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let chunk = [format!("{:x}\r\n", large.len()).as_bytes(), &large, b"\r\n0\r\n\r\n"].concat();
    let answer = raw(at, &[chunked.as_bytes(), &chunk].concat()).await;
    assert!([413, 0].contains(&answer.status), "{}", answer.status);
    let long = "x".repeat(64 * 1024);
    let answer = webhook.send("/", &[("x-long", &long)], b"0").await;
    assert!([431, 0].contains(&answer.status), "{}", answer.status);
    let many: Vec<(String, String)> = (0..200).map(|number| (format!("h{number}"), "x".to_owned())).collect();
    let many: Vec<_> = many
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert!([431, 400, 0].contains(&webhook.send("/", &many, b"0").await.status));

    let begin = Instant::now();
    let mut slow = TcpStream::connect(at).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\nx");
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1024];
    let read = slow.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(begin.elapsed() < Duration::from_secs(8));
    assert!(webhook.cluster.all(PROCESSES).is_empty());
}

#[tokio::test]
async fn idle_connections_keep_no_sender_out() {
    let webhook = Webhook::start(json!({}), None).await;
    let mut idle = Vec::new();
    for _ in 0..600 {
        idle.push(TcpStream::connect(webhook.bridge.webhook).await.unwrap());
    }
    let answer = webhook.deliver("/", &[("idempotency-key", "k")], b"0").await;
    assert_eq!(answer.status, 202, "{}", answer.body);
}

#[tokio::test]
async fn what_can_never_become_a_process_is_refused_and_the_next_one_is_taken() {
    let webhook = Webhook::start(json!({}), None).await;
    let event = [("content-type", "application/cloudevents+json")];
    let poison = webhook.deliver("/", &event, b"nonsense").await;
    assert_eq!(poison.status, 422, "{}", poison.body);
    assert!(poison.body.contains("not a CloudEvent"), "{}", poison.body);
    webhook.cluster.rule(|method, path, _| {
        (method == Method::POST && path.ends_with(PROCESSES)).then(|| refusal(422, "spec.image is wrong"))
    });
    let invalid = webhook.send("/", &[("idempotency-key", "k")], b"0").await;
    assert_eq!(invalid.status, 422, "{}", invalid.body);
    assert!(invalid.body.contains("spec.image is wrong"), "{}", invalid.body);
    webhook
        .cluster
        .until("the reason", |cluster| {
            cluster.condition("Ready").starts_with("False InvalidTemplate")
        })
        .await;
    webhook.cluster.no_rule();
    assert_eq!(
        webhook.deliver("/", &[("idempotency-key", "k")], b"0").await.status,
        202
    );
    webhook
        .cluster
        .until("recovery", |cluster| cluster.condition("Ready").starts_with("True"))
        .await;
    assert_eq!(webhook.cluster.created(), ["k"]);
}

#[tokio::test]
async fn without_the_right_nothing_is_taken_and_the_status_says_what_helps() {
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    write_secret(secrets.path(), "credentials", &[("token", TOKEN)]);
    cluster.put(TRIGGERS, trigger(json!({"http": {"secretName": "s"}}), json!({})));
    cluster.rule(|_, path, _| {
        let denied = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {},
                            "status": {"allowed": false}});
        path.ends_with("selfsubjectaccessreviews").then_some((201, denied))
    });
    let bridge = Bridge::start(&cluster, secrets.path());
    cluster
        .until("the reason", |cluster| {
            cluster.condition("Ready").starts_with("False Forbidden")
        })
        .await;
    let condition = cluster.condition("Ready");
    let remedy = "kubectl create rolebinding orders-trigger --namespace=shop --clusterrole=remoteprocess-trigger \
                  --serviceaccount=shop:orders";
    assert!(condition.contains(remedy), "{condition}");
    let webhook = Webhook {
        cluster,
        bridge,
        _secrets: secrets,
    };
    webhook.listens().await;
    assert_eq!(webhook.send("/", &[], b"0").await.status, 503);
    assert!(webhook.cluster.all(PROCESSES).is_empty());
    webhook.cluster.no_rule();
    let begin = Instant::now();
    assert_eq!(
        webhook.deliver("/", &[("idempotency-key", "k")], b"0").await.status,
        202
    );
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn suspended_means_later() {
    let webhook = Webhook::start(json!({}), None).await;
    assert_eq!(
        webhook.deliver("/", &[("idempotency-key", "a")], b"0").await.status,
        202
    );
    webhook
        .cluster
        .edit(TRIGGERS, "orders", |trigger| trigger["spec"]["suspend"] = json!(true));
    webhook
        .cluster
        .until("the reason", |cluster| {
            cluster.condition("Ready").starts_with("False Suspended")
        })
        .await;
    assert_eq!(webhook.send("/", &[("idempotency-key", "b")], b"0").await.status, 503);
    webhook
        .cluster
        .edit(TRIGGERS, "orders", |trigger| trigger["spec"]["suspend"] = json!(false));
    assert_eq!(
        webhook.deliver("/", &[("idempotency-key", "b")], b"0").await.status,
        202
    );
}

#[tokio::test]
async fn a_secret_that_can_be_guessed_is_no_secret() {
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    write_secret(secrets.path(), "credentials", &[("token", "short")]);
    cluster.put(TRIGGERS, trigger(json!({"http": {"secretName": "s"}}), json!({})));
    let bridge = Bridge::start(&cluster, secrets.path());
    cluster
        .until("the reason", |cluster| {
            cluster.condition("Connected").starts_with("False InvalidSecret")
        })
        .await;
    assert!(TcpStream::connect(bridge.webhook).await.is_err(), "nobody listens");
    write_secret(secrets.path(), "credentials", &[("token", TOKEN)]);
    cluster
        .until("recovery", |cluster| {
            cluster.condition("Connected").starts_with("True Connected")
        })
        .await;
}

#[tokio::test]
async fn a_test_message_becomes_a_process_once() {
    let webhook = Webhook::start(json!({}), None).await;
    let now = jiff::Timestamp::now();
    let test = json!({"nonce": "1", "time": now.to_string(), "id": "test-1", "data": STANDARD.encode("hello")});
    webhook.cluster.edit(TRIGGERS, "orders", |trigger| {
        trigger["metadata"]["annotations"]["remoteprocess.dev/test-message"] = json!(test.to_string());
    });
    webhook
        .cluster
        .until("the process", |cluster| cluster.created() == ["test-1"])
        .await;
    webhook.bridge.stop().await;
    let bridge = Bridge::start(&webhook.cluster, webhook._secrets.path());
    webhook
        .cluster
        .until("a duplicate", |cluster| cluster.status()["duplicates"] == 1)
        .await;
    assert_eq!(webhook.cluster.created().len(), 1);
    webhook.cluster.remove(TRIGGERS, "orders");
    bridge.ended().await;
}

#[tokio::test]
async fn processes_are_forgotten_when_their_time_is_over() {
    let webhook = Webhook::start(json!({"rememberSeconds": 60}), Some(Duration::from_millis(20))).await;
    let answer = webhook.deliver("/?wait=10", &[("idempotency-key", "k")], b"0").await;
    let name = answer.json()["subject"].as_str().unwrap().to_owned();
    webhook
        .cluster
        .until("the mark", |cluster| {
            let process = cluster.state_of(PROCESSES, &name);
            process
                .is_some_and(|process| process["metadata"]["annotations"]["remoteprocess.dev/result-sent"].is_string())
        })
        .await;
    let edit = |ended: i64, sent: i64| {
        let ago = |seconds| (jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds)).to_string();
        webhook.cluster.edit(PROCESSES, &name, |process| {
            process["status"]["finishedAt"] = json!(ago(ended));
            process["metadata"]["annotations"]["remoteprocess.dev/result-sent"] = json!(ago(sent));
        });
    };
    for (ended, sent) in [(600, 600), (700, 600)] {
        edit(ended, sent);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(
            webhook.cluster.state_of(PROCESSES, &name).is_some(),
            "a signature is good for ten minutes, and a message can come until its result was sent"
        );
    }
    edit(700, 700);
    webhook
        .cluster
        .until("the deletion", |cluster| cluster.state_of(PROCESSES, &name).is_none())
        .await;
}

/// A process whose message was not stored, as if the bridge had died in between.
async fn orphan(webhook: &Webhook) -> String {
    webhook
        .cluster
        .rule(|method, path, _| (method == Method::POST && path.ends_with("configmaps")).then(|| refusal(503, "away")));
    webhook
        .cluster
        .until("readiness", |cluster| cluster.condition("Ready").starts_with("True"))
        .await;
    let answer = webhook.send("/", &[("idempotency-key", "k")], b"0").await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    webhook.cluster.no_rule();
    let processes = webhook.cluster.all(PROCESSES);
    assert_eq!(
        (processes.len(), webhook.cluster.all(cluster::CONFIG_MAPS).len()),
        (1, 0)
    );
    processes[0]["metadata"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_process_without_its_message_holds_no_place() {
    let webhook = Webhook::start(json!({"maxRunning": 1}), None).await;
    let name = orphan(&webhook).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(
        webhook.cluster.state_of(PROCESSES, &name).is_some(),
        "its sender may try again"
    );
    webhook.cluster.edit(PROCESSES, &name, |process| {
        let past = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(61);
        process["metadata"]["creationTimestamp"] = json!(past.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    });
    webhook
        .cluster
        .until("the deletion", |cluster| cluster.state_of(PROCESSES, &name).is_none())
        .await;
    let next = webhook.deliver("/", &[("idempotency-key", "next")], b"0").await;
    assert_eq!(next.status, 202, "{}", next.body);
    // This one has its message, and waits for as long as it must.
    let name = next.json()["name"].as_str().unwrap().to_owned();
    webhook.cluster.edit(PROCESSES, &name, |process| {
        process["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    let Webhook {
        cluster,
        bridge,
        _secrets,
    } = webhook;
    bridge.stop().await;
    let bridge = Bridge::start(&cluster, _secrets.path());
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(cluster.state_of(PROCESSES, &name).is_some());
    bridge.stop().await;
}

#[tokio::test]
async fn a_message_whose_process_failed_without_it_is_refused() {
    let webhook = Webhook::start(json!({}), None).await;
    let name = orphan(&webhook).await;
    webhook.cluster.edit(PROCESSES, &name, |process| {
        process["status"] = json!({"phase": "Failed", "reason": "DeadlineExceeded", "message": "it did not start in time",
                                   "finishedAt": jiff::Timestamp::now().to_string()});
    });
    let again = webhook.deliver("/", &[("idempotency-key", "k")], b"0").await;
    assert_eq!(again.status, 422, "{}", again.body);
    assert!(again.body.contains("it did not have its message"), "{}", again.body);
}

#[tokio::test]
async fn what_was_created_before_a_restart_counts() {
    let webhook = Webhook::start(json!({"maxPerMinute": 2}), Some(Duration::from_millis(5))).await;
    for id in ["a", "b"] {
        let answer = webhook.deliver("/", &[("idempotency-key", id)], b"0").await;
        assert_eq!(answer.status, 202, "{}", answer.body);
    }
    let Webhook {
        cluster,
        bridge,
        _secrets,
    } = webhook;
    bridge.kill().await;
    let bridge = Bridge::start(&cluster, _secrets.path());
    let webhook = Webhook {
        cluster,
        bridge,
        _secrets,
    };
    webhook.listens().await;
    webhook
        .cluster
        .until("the limit", |cluster| {
            cluster.condition("Ready").starts_with("True Limited")
        })
        .await;
    assert_eq!(webhook.send("/", &[("idempotency-key", "c")], b"0").await.status, 429);
    assert_eq!(webhook.cluster.created(), ["a", "b"]);
}

/// Bodies that wait for the engine are in memory as well.
#[tokio::test]
async fn memory_is_bounded_until_the_engine_has_decided() {
    remoteprocess_tls::install_crypto_provider();
    let secrets = tempfile::tempdir().unwrap();
    write_secret(secrets.path(), "credentials", &[("token", TOKEN)]);
    let port = remoteprocess_ports::free_address();
    let settings = Settings {
        secrets: Secrets::under(secrets.path()),
        webhook: port,
    };
    let trigger = serde_json::from_value(trigger(json!({"http": {"secretName": "s"}}), json!({}))).unwrap();
    let mut source = open(&trigger, &settings).await.unwrap();
    let bearer = format!("Bearer {TOKEN}");
    let body = vec![b'x'; 512 * 1024];
    let headers = [("authorization", bearer.as_str())];
    let requests = (0..40).map(|_| request(port, "POST", "/", &headers, &body));
    let taken = async {
        // All that wait longer are refused after five seconds.
        tokio::time::sleep(Duration::from_secs(7)).await;
        let mut taken = 0;
        while let Ok(delivery) = tokio::time::timeout(Duration::from_secs(1), source.next()).await {
            delivery.unwrap().receipt.acknowledge("p").await.unwrap();
            taken += 1;
        }
        taken
    };
    let (answers, taken) = tokio::join!(join_all(requests), taken);
    let number = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((number(202), number(503), taken), (31, 9, 31), "of 16 MiB");
    let next = tokio::join!(request(port, "POST", "/", &headers, &body), async {
        source.next().await.unwrap().receipt.acknowledge("p").await.unwrap();
    });
    assert_eq!(next.0.status, 202, "there is room again");
}
