//! The I/O of the recorder, against an API server that conflicts, is unavailable, or has lost the object.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use remoteprocess_proto::v1::Exit;
use remoteprocess_proto::v1::exit::{Outcome, Source};

use serde_json::Value;

use super::*;
use crate::fake_api::{Call, client, refusal};
use crate::relay::attempt::AttemptKey;

pub(super) fn subject() -> Subject {
    Subject {
        namespace: "default".to_owned(),
        name: "hello".to_owned(),
        pod_uid: "pod-1".to_owned(),
        key: AttemptKey {
            uid: "uid-1".to_owned(),
            attempt: 1,
        },
    }
}

fn claim() -> Claim {
    Claim {
        uid: "uid-1".to_owned(),
        attempt: 1,
        pod_uid: "pod-1".to_owned(),
        launched: false,
    }
}

fn manifest() -> Manifest {
    let exit = Exit {
        outcome: Outcome::Code.into(),
        source: Source::Entrypoint.into(),
        ..Exit::default()
    };
    Manifest {
        exit: Some(exit),
        ..Manifest::default()
    }
}

fn object(version: usize, attempt: &Value) -> Value {
    json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {"name": "hello", "namespace": "default", "uid": "uid-1", "resourceVersion": version.to_string()},
        "spec": {"image": "busybox", "command": ["true"]},
        "status": {"phase": "Starting", "attempt": 1, "attempts": [attempt]},
    })
}

fn attempt() -> Value {
    json!({"number": 1, "podName": "hello-1", "podUid": "pod-1", "node": "node-1"})
}

/// A recorder, and the calls that it made.
fn recorder(
    mut answer: impl FnMut(usize, &Call) -> (u16, Value) + Send + 'static,
) -> (Recorder, Arc<Mutex<Vec<Call>>>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    let count = AtomicUsize::new(0);
    let client = client(move |call| {
        let answered = answer(count.fetch_add(1, Ordering::Relaxed), &call);
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        answered
    });
    (Recorder::new(client, "operator-0".to_owned()), calls)
}

fn writes(calls: &Mutex<Vec<Call>>) -> Vec<Value> {
    let calls = calls.lock().unwrap();
    calls
        .iter()
        .filter(|call| call.method == http::Method::PUT)
        .map(|call| call.body.clone())
        .collect()
}

#[tokio::test]
async fn a_grant_from_the_watch_is_one_request() {
    let (recorder, calls) = recorder(|_, _| (200, object(8, &attempt())));
    let known = serde_json::from_value(object(7, &attempt())).unwrap();
    recorder.grant(&known, &claim()).await.unwrap();
    assert_eq!(calls.lock().unwrap().len(), 1);
    assert_eq!(writes(&calls)[0]["metadata"]["resourceVersion"], "7");
}

#[tokio::test]
async fn a_grant_on_an_old_object_is_decided_again_on_the_new_one() {
    let (recorder, calls) = recorder(|_, call| match call.method {
        http::Method::GET => {
            let taken =
                json!({"number": 1, "podName": "hello-1", "podUid": "pod-2", "grantedAt": "2026-01-01T00:00:00Z"});
            (200, object(9, &taken))
        }
        _ => refusal(409, "Conflict"),
    });
    let known = serde_json::from_value(object(7, &attempt())).unwrap();
    let refused = recorder.grant(&known, &claim()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
    assert_eq!(writes(&calls).len(), 1);
}

#[tokio::test]
async fn an_attempt_that_the_watch_does_not_know_yet_is_read() {
    let (recorder, _) = recorder(|_, _| (200, object(9, &attempt())));
    let mut known: RemoteProcess = serde_json::from_value(object(7, &attempt())).unwrap();
    known.status = None;
    recorder.grant(&known, &claim()).await.unwrap();
}

#[tokio::test]
async fn a_refusal_of_the_api_server_is_no_grant() {
    let (recorder, _) = recorder(|_, _| refusal(500, "InternalError"));
    let known = serde_json::from_value(object(7, &attempt())).unwrap();
    assert!(matches!(
        recorder.grant(&known, &claim()).await,
        Err(Error::Api(Some(_)))
    ));
}

#[tokio::test]
async fn the_pod_is_asked_where_the_status_does_not_name_it() {
    let pod = |uid: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hello-1", "uid": uid, "ownerReferences": [
            {"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "name": "hello", "uid": "uid-1"}]},
            "spec": {"nodeName": "node-1", "containers": []}})
    };
    for (uid, is_granted) in [("pod-1", true), ("pod-2", false)] {
        let answer = pod(uid);
        let (recorder, calls) = recorder(move |_, call| {
            if call.path.contains("/pods/") {
                return (200, answer.clone());
            }
            (200, object(7, &json!({"number": 1, "podName": "hello-1"})))
        });
        let known = serde_json::from_value(object(7, &json!({"number": 1, "podName": "hello-1"}))).unwrap();
        assert_eq!(recorder.grant(&known, &claim()).await.is_ok(), is_granted, "{uid}");
        let nodes: Vec<_> = writes(&calls)
            .iter()
            .map(|write| write["status"]["attempts"][0]["node"].clone())
            .collect();
        assert_eq!(
            nodes,
            [json!("node-1")][..usize::from(is_granted)],
            "the grant names the node"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_is_written_however_long_the_api_server_is_away_and_conflicts() {
    let (recorder, calls) = recorder(|count, call| match (count, &call.method) {
        (0..40, _) => refusal(503, "ServiceUnavailable"),
        (40..50, &http::Method::PUT) => refusal(409, "Conflict"),
        (version, _) => (200, object(version, &attempt())),
    });
    recorder.ended(&subject(), &manifest(), b"").await;
    let writes = writes(&calls);
    let written = writes.last().unwrap();
    assert_eq!(written["status"]["attempts"][0]["exit"]["code"], 0);
    let read = calls.lock().unwrap().len() - 2;
    assert_eq!(
        written["metadata"]["resourceVersion"],
        read.to_string(),
        "built from the newest object"
    );
}

#[tokio::test]
async fn a_namesake_is_left_alone() {
    let (recorder, calls) = recorder(|_, _| {
        let mut other = object(1, &attempt());
        other["metadata"]["uid"] = json!("uid-2");
        (200, other)
    });
    recorder.ended(&subject(), &manifest(), b"").await;
    assert!(writes(&calls).is_empty());
    let known = serde_json::from_value(object(7, &json!({"number": 2}))).unwrap();
    assert!(matches!(recorder.grant(&known, &claim()).await, Err(Error::Gone)));
}

#[tokio::test]
async fn a_deleted_object_ends_the_writing() {
    let (recorder, calls) = recorder(|_, _| refusal(404, "NotFound"));
    recorder.ended(&subject(), &manifest(), b"").await;
    recorder.learned(&subject(), Fact::Paused(None)).await;
    assert_eq!(calls.lock().unwrap().len(), 2);
}

/// Such a refusal was once called an API server that does not answer, and repeated every two seconds.
#[tokio::test(start_paused = true)]
async fn a_refused_status_is_named_and_written_once_the_cause_is_gone() {
    let tries = AtomicUsize::new(0);
    let (recorder, calls) = recorder(move |_, call| match call.method {
        http::Method::GET => (200, object(9, &attempt())),
        http::Method::PUT if tries.fetch_add(1, Ordering::Relaxed) < 4 => refusal(403, "no-status-on-fridays"),
        _ => (200, object(9, &attempt())),
    });
    let begun = tokio::time::Instant::now();
    recorder.ended(&subject(), &manifest(), b"").await;
    assert_eq!(writes(&calls).len(), 5);
    assert!(
        begun.elapsed() >= Duration::from_secs(5 + 10 + 20 + 40),
        "{:?}",
        begun.elapsed()
    );
    let calls = calls.lock().unwrap();
    let events: Vec<_> = calls.iter().filter(|call| call.method == http::Method::POST).collect();
    assert!(!events.is_empty());
    let names: std::collections::HashSet<_> = events
        .iter()
        .map(|call| call.body["metadata"]["name"].to_string())
        .collect();
    assert_eq!(names.len(), 1, "one Event, however often it is refused");
    assert_eq!(events[0].body["reason"], "StatusRefused");
    let note = events[0].body["note"].as_str().unwrap();
    assert!(
        note.contains("end of attempt 1") && note.contains("no-status-on-fridays"),
        "{note}"
    );
}
