//! The result of a process as a CloudEvent. Pure.

use jiff::Timestamp;
use kube::ResourceExt as _;
use remoteprocess_api::condition::{self, ConditionType};
use remoteprocess_api::names::{ANNOTATION_MESSAGE_ID, GROUP, LABEL_TRIGGER, VERSION};
use remoteprocess_api::{Phase, RemoteProcess, StreamStatus};
use serde_json::{Value, json};

/// Type of the event about a process that has ended.
pub const FINISHED: &str = "dev.remoteprocess.process.finished.v1";
/// Media type of [`CloudEvent::to_json`].
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// A CloudEvent 1.0 with data in JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct CloudEvent {
    /// Unique together with the source. The same event that is sent again has the same id.
    pub id: String,
    /// What happened, [`FINISHED`] for example.
    pub kind: &'static str,
    /// The trigger, as a path.
    pub source: String,
    /// Name of the process.
    pub subject: String,
    /// When it happened, if that is known.
    pub time: Option<Timestamp>,
    /// The rest.
    pub data: Value,
}

impl CloudEvent {
    /// The event in structured mode.
    pub fn to_json(&self) -> Vec<u8> {
        let mut event = json!({
            "specversion": "1.0",
            "id": self.id,
            "type": self.kind,
            "source": self.source,
            "subject": self.subject,
            "datacontenttype": "application/json",
            "data": self.data,
        });
        if let Some(time) = self.time {
            event["time"] = json!(time.to_string());
        }
        event.to_string().into_bytes()
    }
}

/// The result of a process of a trigger; `None` if the process has not ended. At most about 8 KiB.
pub fn result(process: &RemoteProcess) -> Option<CloudEvent> {
    let status = process.status.as_ref()?;
    let phase = status.phase.filter(|phase| phase.is_final())?;
    let (namespace, name) = (process.namespace().unwrap_or_default(), process.name_any());
    let trigger = process
        .labels()
        .get(LABEL_TRIGGER)
        .map(String::as_str)
        .unwrap_or_default();
    let output = status.latest_attempt().and_then(|attempt| attempt.output.as_ref());
    let stream = |stream: &StreamStatus| json!({"bytes": stream.bytes, "sha256": stream.sha256, "lostBytes": stream.lost_bytes.unwrap_or_default()});
    let uid = process.uid()?;
    let data = json!({
        "namespace": namespace,
        "name": name,
        "uid": uid,
        "messageId": process.annotations().get(ANNOTATION_MESSAGE_ID),
        "outcome": outcome(phase),
        "reason": status.reason.map(|reason| reason.to_string()),
        "message": status.message,
        "exitCode": status.exit_code,
        "signal": status.signal,
        "attempt": status.attempt,
        "startedAt": status.started_at.map(|time| time.to_string()),
        "finishedAt": status.finished_at.map(|time| time.to_string()),
        "stdout": output.map(|output| stream(&output.stdout)),
        "stderr": output.map(|output| stream(&output.stderr)),
        "sealed": is_sealed(process),
        "tail": status.output.as_ref().and_then(|output| output.tail.as_deref()),
    });
    Some(CloudEvent {
        id: uid,
        kind: FINISHED,
        source: format!("/apis/{GROUP}/{VERSION}/namespaces/{namespace}/processtriggers/{trigger}"),
        subject: name,
        time: Some(status.finished_at.unwrap_or(Timestamp::UNIX_EPOCH)),
        data,
    })
}

/// Whether sizes and hashes of the output are fixed.
pub fn is_sealed(process: &RemoteProcess) -> bool {
    let status = process.status.as_ref();
    status.is_some_and(|status| condition::is_true(&status.conditions, ConditionType::OutputSealed))
}

/// Why the message of a process that failed is a dead letter; `None` if the process has not failed.
pub fn failure(process: &RemoteProcess) -> Option<String> {
    let status = process
        .status
        .as_ref()
        .filter(|status| status.phase == Some(Phase::Failed))?;
    let reason = status.reason.map(|reason| reason.to_string());
    let message = status.message.as_deref().unwrap_or("no message");
    Some(format!(
        "process {} failed: {}: {message}",
        process.name_any(),
        reason.as_deref().unwrap_or("Unknown")
    ))
}

fn outcome(phase: Phase) -> &'static str {
    phase.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(status: Value) -> RemoteProcess {
        serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {
                "name": "orders-1", "namespace": "shop", "uid": "u-1",
                "labels": {"remoteprocess.dev/trigger": "orders"},
                "annotations": {"remoteprocess.dev/message-id": "m 1"},
            },
            "spec": {"image": "i", "command": ["x"]}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_process_that_runs_has_no_result() {
        assert_eq!(result(&process(json!({"phase": "Running"}))), None);
        assert_eq!(result(&process(json!({}))), None);
    }

    #[test]
    fn the_result_says_how_it_ended_and_what_it_wrote() {
        let ended = process(json!({
            "phase": "Failed", "reason": "NonZeroExit", "message": "exit code 3", "exitCode": 3, "attempt": 2,
            "finishedAt": "2026-01-02T03:04:05Z", "output": {"tail": "oops\n"},
            "conditions": [{"type": "OutputSealed", "status": "True", "reason": "Archived", "message": "",
                            "lastTransitionTime": "2026-01-02T03:04:05Z"}],
            "attempts": [
                {"number": 1, "output": {"stdout": {"bytes": 1}, "stderr": {"bytes": 1}, "sealed": true}},
                {"number": 2, "output": {"stdout": {"bytes": 5, "sha256": "ab"},
                                         "stderr": {"bytes": 7, "lostBytes": 2}, "sealed": true}},
            ],
        }));
        let event = result(&ended).unwrap();
        let json: Value = serde_json::from_slice(&event.to_json()).unwrap();
        assert_eq!(json["specversion"], "1.0");
        assert_eq!(json["id"], "u-1", "stable however often it is sent");
        assert_eq!(json["type"], "dev.remoteprocess.process.finished.v1");
        assert_eq!(
            json["source"],
            "/apis/remoteprocess.dev/v1alpha1/namespaces/shop/processtriggers/orders"
        );
        assert_eq!(json["subject"], "orders-1");
        assert_eq!(json["time"], "2026-01-02T03:04:05Z");
        let data = &json["data"];
        assert_eq!(data["messageId"], "m 1");
        assert_eq!(
            (&data["outcome"], &data["exitCode"], &data["attempt"]),
            (&json!("Failed"), &json!(3), &json!(2))
        );
        assert_eq!(
            data["stdout"],
            json!({"bytes": 5, "sha256": "ab", "lostBytes": 0}),
            "of the last attempt"
        );
        assert_eq!(data["stderr"]["lostBytes"], 2);
        assert_eq!((&data["sealed"], &data["tail"]), (&json!(true), &json!("oops\n")));
        let failure = failure(&ended).unwrap();
        assert_eq!(failure, "process orders-1 failed: NonZeroExit: exit code 3");
    }

    #[test]
    fn a_result_without_output_says_so() {
        let event = result(&process(json!({"phase": "Succeeded"}))).unwrap();
        assert_eq!(event.data["outcome"], "Succeeded");
        assert_eq!(
            (&event.data["stdout"], &event.data["sealed"]),
            (&Value::Null, &json!(false))
        );
        assert_eq!(failure(&process(json!({"phase": "Succeeded"}))), None);
    }
}
