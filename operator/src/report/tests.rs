use super::*;
use serde_json::{Value, json};

fn process(desired: &str, status: Value) -> RemoteProcess {
    let setter = json!({"manager": "rproc", "fieldsV1": {"f:spec": {"f:desiredState": {}}}});
    serde_json::from_value(json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {"name": "job", "managedFields": [setter]},
        "spec": {"image": "i", "command": ["x"], "desiredState": desired}, "status": status,
    }))
    .unwrap()
}

#[test]
fn a_pause_and_its_end_are_reported_with_the_requester() {
    let running = process(
        "Running",
        json!({"phase": "Running", "reason": "Running", "message": "it runs"}),
    );
    let paused = process(
        "Paused",
        json!({"phase": "Paused", "reason": "Paused", "message": "paused by rproc"}),
    );
    let news = |before, now| {
        let event = phase_news(before, now).unwrap();
        (event.reason, event.note.unwrap())
    };
    assert_eq!(news(&running, &paused), ("Paused".into(), "paused by rproc".into()));
    assert_eq!(
        news(&paused, &running),
        (
            "Resumed".into(),
            "the program continues, resumed by rproc through spec.desiredState".into()
        )
    );
    assert!(phase_news(&paused, &paused).is_none());
}

#[test]
fn a_wait_has_one_event_for_each_sentence() {
    let name = |reason: &str, message: &str| {
        let process = process(
            "Running",
            json!({"phase": "Pending", "reason": reason, "message": message}),
        );
        event_name(&process, &wait_news(&process).unwrap())
    };
    let first = name("CreateContainer", "configmap \"a\" not found");
    assert_eq!(first, name("CreateContainer", "configmap \"a\" not found"));
    assert_ne!(first, name("CreateContainer", "configmap \"b\" not found"));
    assert!(first.starts_with("job."), "{first}");
}
