use std::sync::{Arc, Mutex};

use http::Method;
use remoteprocess_api::names;
use serde_json::{Value, json};

use super::*;
use crate::fake_api::{self, Call, refusal};

fn process() -> RemoteProcess {
    serde_saphyr::from_str(
        "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
         metadata: {name: hello, namespace: team, uid: u, resourceVersion: '7', managedFields: [{manager: x}]}\n\
         spec: {image: busybox, command: [id]}\nstatus: {phase: Pending, output: {stdoutBytes: 3}}\n",
    )
    .unwrap()
}

async fn written(answer: (u16, Value)) -> (kube::Result<Written>, Call) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    let client = fake_api::client(move |call: Call| {
        seen.lock().unwrap().push(call);
        answer.clone()
    });
    let mut next = process().status.unwrap();
    next.message = Some("new".into());
    let outcome = write(&client, names::CONTROLLER_MANAGER, &process(), next).await;
    let mut calls = calls.lock().unwrap().clone();
    assert_eq!(calls.len(), 1);
    (outcome, calls.remove(0))
}

#[tokio::test]
async fn a_write_replaces_the_status_of_the_version_that_was_read() {
    let (outcome, call) = written((200, serde_json::to_value(process()).unwrap())).await;
    assert!(matches!(outcome, Ok(Written::Done(_))), "{outcome:?}");
    assert_eq!(
        (call.method, call.path.as_str()),
        (
            Method::PUT,
            "/apis/remoteprocess.dev/v1alpha1/namespaces/team/remoteprocesses/hello/status"
        )
    );
    assert!(
        call.query.contains("fieldManager=remoteprocess-controller"),
        "{}",
        call.query
    );
    assert_eq!(
        call.body["metadata"],
        json!({"name": "hello", "namespace": "team", "uid": "u", "resourceVersion": "7"})
    );
    assert_eq!(
        call.body["status"],
        json!({"phase": "Pending", "message": "new", "output": {"stdoutBytes": 3}}),
        "what the other part has written stays"
    );
}

#[tokio::test]
async fn a_refusal_is_told_apart_from_no_answer() {
    let (outcome, _) = written(refusal(409, "Conflict")).await;
    assert!(matches!(outcome, Ok(Written::Conflict(_))), "{outcome:?}");
    let (outcome, _) = written(refusal(404, "NotFound")).await;
    assert!(matches!(outcome, Ok(Written::Gone)), "{outcome:?}");
    assert!(written(refusal(500, "InternalError")).await.0.is_err());
}
