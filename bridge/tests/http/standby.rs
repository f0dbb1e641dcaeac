//! The stand-by of a webhook, and a bridge that may not have the Lease.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;

use super::{KEY, TOKEN, request};
use crate::cluster::{Cluster, Cut, LEASES, Line, TRIGGERS, refusal, trigger};
use crate::engine::{Bridge, TIMING, write_secret};

/// A webhook without a bridge.
fn webhook() -> (Cluster, tempfile::TempDir) {
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    write_secret(secrets.path(), "credentials", &[("token", TOKEN), ("signingKey", KEY)]);
    cluster.put(TRIGGERS, trigger(json!({"http": {"secretName": "s"}}), json!({})));
    (cluster, secrets)
}

fn listens(bridge: &Bridge) -> bool {
    TcpStream::connect(bridge.webhook).is_ok()
}

/// Waits until the bridge, which is not ready, says this. Then nothing is refused any more, and it works.
async fn is_told_until_cured(cluster: &Cluster, bridge: Bridge, expected: &str) {
    cluster
        .until("the condition", |cluster| cluster.condition("Ready") == expected)
        .await;
    assert!(!bridge.is_ready());
    cluster.no_rule();
    cluster
        .until("the cure", |cluster| {
            cluster.condition("Ready").starts_with("True Taking")
        })
        .await;
    bridge.stop().await;
}

/// Sends a message until it is taken or refused, for at most 10 s. Returns the status.
async fn deliver(bridge: &Bridge, id: &str) -> u16 {
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", id)];
    let begin = Instant::now();
    loop {
        if listens(bridge) {
            let status = request(bridge.webhook, "POST", "/", &headers, b"0").await.status;
            if status != 503 {
                return status;
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "not taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_bridge_that_works_is_ready_for_requests() {
    let (cluster, secrets) = webhook();
    let start = |identity: &str| Bridge::start_candidate(&cluster, secrets.path(), &Line::of(identity));
    let a = start("a");
    cluster.until("the first", |_| a.is_ready()).await;
    let b = start("b");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!b.is_ready(), "the Service must not send requests to it");
    assert_eq!((deliver(&a, "1").await, listens(&b)), (202, false));
    a.stop().await;
    cluster.until("the second", |_| b.is_ready()).await;
    assert_eq!(deliver(&b, "1").await, 202, "it finds the process of the first");
    assert_eq!(cluster.created(), ["1"]);
    let owner = cluster.state_of(LEASES, "orders-trigger").unwrap()["metadata"]["ownerReferences"][0].clone();
    assert_eq!(
        owner["uid"],
        cluster.all(TRIGGERS)[0]["metadata"]["uid"],
        "the Lease goes with the trigger"
    );
    // It is not ready any more when it has lost the lease, and works again later.
    cluster.edit(LEASES, "orders-trigger", |lease| {
        lease["spec"]["holderIdentity"] = json!("c");
    });
    cluster.until("the loss", |_| !b.is_ready() && !listens(&b)).await;
    cluster.until("another term", |_| b.is_ready()).await;
    assert_eq!(deliver(&b, "2").await, 202);
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_to_the_lease_is_told() {
    let (cluster, secrets) = webhook();
    cluster.edit(TRIGGERS, "orders", |trigger| trigger["status"] = json!({"started": 7}));
    cluster.rule(|_, path, _| path.contains("/leases").then(|| refusal(403, "leases is forbidden")));
    let bridge = Bridge::start_candidate(&cluster, secrets.path(), &Line::of("a"));
    let expected = "False Forbidden: leases is forbidden; allow it: kubectl create rolebinding orders-trigger \
                    --namespace=shop --clusterrole=remoteprocess-trigger --serviceaccount=shop:orders";
    cluster
        .until("the condition", |cluster| cluster.condition("Ready") == expected)
        .await;
    assert_eq!(cluster.status()["started"], 7, "the rest of the status stays");
    is_told_until_cured(&cluster, bridge, expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_cannot_be_written_is_told() {
    let (cluster, secrets) = webhook();
    let no = "admission webhook \"leases.example.com\" failed";
    cluster.rule(move |method, path, _| {
        let is_write = path.contains("/leases") && *method != Method::GET;
        is_write.then(|| refusal(500, no))
    });
    let bridge = Bridge::start_candidate(&cluster, secrets.path(), &Line::of("a"));
    let expected =
        format!("False Refused: the Lease orders-trigger in namespace shop cannot be taken or renewed: {no}");
    is_told_until_cured(&cluster, bridge, &expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_another_program_is_told_and_left_alone() {
    let (cluster, secrets) = webhook();
    let theirs = json!({"holderIdentity": "node-1_7a5e", "leaseDurationSeconds": 1});
    cluster.put(LEASES, json!({"metadata": {"name": "orders-trigger"}, "spec": theirs}));
    let bridge = Bridge::start_candidate(&cluster, secrets.path(), &Line::of("a"));
    let expected = "False Refused: the Lease orders-trigger in namespace shop was made by another program, its holder is \
                    node-1_7a5e, and is not taken over; delete it if nothing else needs it";
    cluster
        .until("the condition", |cluster| cluster.condition("Ready") == expected)
        .await;
    assert_eq!(cluster.state_of(LEASES, "orders-trigger").unwrap()["spec"], theirs);
    cluster.remove(LEASES, "orders-trigger");
    let begin = Instant::now();
    cluster.until("the first term", |_| bridge.is_ready()).await;
    assert!(
        begin.elapsed() < TIMING.lease_duration,
        "it is the first one that ever works"
    );
    bridge.stop().await;
}

/// It may be the only one that cannot: what the one that works has told stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stand_by_that_cannot_read_the_lease_is_not_ready() {
    let (cluster, secrets) = (Cluster::new(), tempfile::tempdir().unwrap());
    let source = json!({"nats": {"servers": ["nats://127.0.0.1:1"], "stream": "S"}});
    cluster.put(TRIGGERS, trigger(source, json!({})));
    let owner = json!([{"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessTrigger", "name": "orders",
                        "uid": cluster.all(TRIGGERS)[0]["metadata"]["uid"]}]);
    let spec = json!({"holderIdentity": "other", "leaseDurationSeconds": 60});
    let metadata = json!({"name": "orders-trigger", "ownerReferences": owner});
    cluster.put(LEASES, json!({"metadata": metadata, "spec": spec}));
    let bridge = Bridge::start_candidate(&cluster, secrets.path(), &Line::of("a"));
    cluster.until("the stand-by", |_| bridge.is_ready()).await;
    cluster.rule(|_, path, _| path.contains("/leases").then(|| refusal(500, "no")));
    cluster.until("the failure", |_| !bridge.is_ready()).await;
    cluster.no_rule();
    cluster.until("the cure", |_| bridge.is_ready()).await;
    assert_eq!(cluster.condition("Ready"), "");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_bridge_that_finds_no_lease_waits_for_one_that_does_not_know() {
    let (cluster, secrets) = webhook();
    let line = Line::of("a");
    let a = Bridge::start_candidate(&cluster, secrets.path(), &line);
    cluster.until("the first", |_| a.is_ready()).await;
    line.cut(Cut::Lease);
    cluster.remove(LEASES, "orders-trigger");
    let b = Bridge::start_candidate(&cluster, secrets.path(), &Line::of("b"));
    cluster
        .until("another Lease", |cluster| cluster.holder().as_deref() == Some("b"))
        .await;
    cluster
        .until("the second", |_| {
            let both = (listens(&b), listens(&a));
            assert_ne!(both, (true, true), "two at once");
            both.0
        })
        .await;
    line.cut(Cut::Nothing);
    a.stop().await;
    b.stop().await;
}
