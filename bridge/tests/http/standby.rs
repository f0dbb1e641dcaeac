//! The stand-by of a webhook, and a bridge that may not have the Lease.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{KEY, TOKEN, request};
use crate::cluster::{Cluster, LEASES, Line, TRIGGERS, refusal, trigger};
use crate::engine::{Bridge, write_secret};

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
    assert!(!bridge.is_ready());
    cluster.no_rule();
    cluster
        .until("the cure", |cluster| {
            cluster.condition("Ready").starts_with("True Taking")
        })
        .await;
    bridge.stop().await;
}
