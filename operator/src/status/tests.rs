use std::sync::{Arc, Mutex};

use kube::core::Status;
use serde_json::{Value, json};

use super::*;
use crate::fake_api::{self, Call};

const FULL: &str = r#"
phase: Running
reason: Running
attempt: 1
conditions:
- {type: Started, status: "True", reason: Running, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}
- {type: OutputSealed, status: "True", reason: Archived, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}
output: {stdoutBytes: 3, tail: abc}
attempts:
- number: 1
  podName: hello-1
  podUid: p
  node: n
  relay: r
  grantedAt: "2026-01-01T00:00:00Z"
  startedAt: "2026-01-01T00:00:01Z"
  finishedAt: "2026-01-01T00:00:02Z"
  exit: {code: 0, source: Entrypoint}
  usage: {cpuSeconds: 1.5, peakMemoryBytes: 3}
  output: {sealed: true}
"#;

fn process() -> RemoteProcess {
    let mut process: RemoteProcess = serde_saphyr::from_str(
        "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
         metadata: {name: hello, namespace: team, uid: u, resourceVersion: '7'}\n\
         spec: {image: busybox, command: [id]}\n",
    )
    .unwrap();
    process.status = Some(serde_saphyr::from_str(FULL).unwrap());
    process
}

async fn written(
    next: &RemoteProcessStatus,
    answer: (u16, Value),
) -> (Result<Option<RemoteProcess>, Error>, Vec<Call>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    let client = fake_api::client(move |call: Call| {
        seen.lock().unwrap().push(call);
        answer.clone()
    });
    let outcome = write(&client, &process(), next).await;
    let calls = calls.lock().unwrap().clone();
    (outcome, calls)
}

#[test]
fn the_relays_fields_are_not_ours() {
    let own = serde_json::to_value(own_fields(&process().status.unwrap())).unwrap();
    assert_eq!(
        own["attempts"],
        json!([{"number": 1, "podName": "hello-1", "podUid": "p", "node": "n"}])
    );
    assert_eq!(own["output"], Value::Null);
    assert_eq!(own["conditions"].as_array().unwrap().len(), 1);
}

#[test]
fn an_end_that_the_controller_found_stays_its_own() {
    let mut status = process().status.unwrap();
    status.attempts[0].exit.as_mut().unwrap().source = ExitSource::Kubelet;
    let own = own_fields(&status);
    assert!(own.attempts[0].exit.is_some() && own.attempts[0].finished_at.is_some());
    assert_eq!(own_fields(&own), own);
}

#[tokio::test]
async fn nothing_new_is_nothing_written() {
    let own = own_fields(&process().status.unwrap());
    let (outcome, calls) = written(&own, (500, json!({}))).await;
    assert!(matches!(outcome, Ok(None)));
    assert_eq!(calls.len(), 0);
}

#[tokio::test]
async fn a_write_holds_for_the_version_that_was_seen() {
    let mut next = own_fields(&process().status.unwrap());
    next.message = Some("new".into());
    let (outcome, calls) = written(&next, (200, serde_json::to_value(process()).unwrap())).await;
    assert!(outcome.unwrap().is_some());
    assert_eq!(
        calls[0].path,
        "/apis/remoteprocess.dev/v1alpha1/namespaces/team/remoteprocesses/hello/status"
    );
    assert_eq!(calls[0].body["metadata"]["resourceVersion"], "7");
    assert_eq!(calls[0].body["metadata"]["uid"], "u");
    assert_eq!(calls[0].body["status"]["message"], "new");
}

#[tokio::test]
async fn a_newer_version_is_a_conflict() {
    let status = Status::failure("the object has been modified", "Conflict").with_code(409);
    let (outcome, _) = written(
        &RemoteProcessStatus::default(),
        (409, serde_json::to_value(status).unwrap()),
    )
    .await;
    assert!(matches!(outcome, Err(Error::Conflict(_))), "{outcome:?}");
}
