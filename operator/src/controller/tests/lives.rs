//! Whole lives of processes: several attempts, deadlines, the end of the object. Each is repeated once for every call
//! that changes something, with an operator that dies right after that call.

use std::future::Future;
use std::pin::Pin;

use jiff::Timestamp;
use remoteprocess_api::DesiredState;
use serde_json::{Value, json};

use super::stage::Stage;
use crate::relay::live::Fact;

const RETRIES: &str = ", retries: {limit: 2, backoff: {initialSeconds: 5}}";

fn attempts(stage: &Stage) -> Vec<Value> {
    stage.status()["attempts"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_process_failure_is_tried_again_after_the_back_off() {
    let mut stage = Stage::new(RETRIES);
    stage.settle().await;
    stage.run(1, 7).await;
    let status = stage.status();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Pending"), &json!("Retrying"))
    );
    assert!(status["message"].as_str().unwrap().contains("code 7"), "{status}");
    stage.wait(4).await;
    assert_eq!(stage.status()["attempt"], 1, "the back-off is not over");
    stage.wait(2).await;
    assert_eq!(stage.status()["attempt"], 2);
    stage.run(2, 0).await;
    let status = stage.status();
    assert_eq!(
        (&status["phase"], &status["exitCode"]),
        (&json!("Succeeded"), &json!(0))
    );
    assert_eq!(status["retries"], json!({"infrastructure": 0, "processFailure": 1}));
    let exits: Vec<_> = attempts(&stage)
        .iter()
        .map(|attempt| attempt["exit"]["code"].clone())
        .collect();
    assert_eq!(exits, [7, 0], "each attempt keeps its own record");
}

#[tokio::test]
async fn the_next_attempt_waits_for_the_end_of_the_pod() {
    let mut stage = Stage::new(RETRIES);
    stage.settle().await;
    stage.launch(1).await;
    stage.exit(1, 7).await;
    stage.wait(20).await;
    assert_eq!(stage.status()["attempt"], 1, "its pod still runs");
    stage.pod_ends(1, 7);
    stage.settle().await;
    assert_eq!(stage.status()["attempt"], 2);
}

#[tokio::test]
async fn a_foreign_container_does_not_delay_the_next_attempt() {
    let mut stage = Stage::new(RETRIES);
    stage.settle().await;
    stage.launch(1).await;
    stage.exit(1, 7).await;
    stage.foreign_container_keeps_running(1);
    stage.settle().await;
    stage.wait(11).await;
    let writes = stage.cluster.status_writes();
    let said = writes.iter().find(|(_, status)| status["reason"] == "ForeignContainer");
    let message = said.expect("it is said").1["message"].to_string();
    assert!(message.contains("proxy"), "{message}");
    assert!(stage.pod(1).unwrap().metadata.deletion_timestamp.is_some());
    assert_eq!(
        stage.status()["attempt"],
        2,
        "the record is verified and the pod is going"
    );
}

#[tokio::test]
async fn a_foreign_container_does_not_keep_the_pod_of_an_ended_process() {
    for kind in ["containerStatuses", "ephemeralContainerStatuses"] {
        let mut stage = Stage::new("");
        stage.settle().await;
        stage.launch(1).await;
        stage.foreign_container_runs(1, kind);
        stage.wait(5).await;
        assert_eq!(stage.pod(1).unwrap().metadata.deletion_timestamp, None, "no record yet");
        stage.exit(1, 7).await;
        stage.settle().await;
        let before = stage.status();
        assert_eq!(before["phase"], "Failed");
        stage.wait(60).await;
        assert!(stage.pod(1).unwrap().metadata.deletion_timestamp.is_some(), "{kind}");
        let events = stage.cluster.events();
        let deleted: Vec<_> = events
            .iter()
            .filter(|event| event["reason"] == "ForeignContainer")
            .collect();
        assert_eq!(deleted.len(), 1, "{events:?}");
        assert!(deleted[0]["note"].to_string().contains("proxy"), "{events:?}");
        assert_eq!(stage.status(), before, "the end stays as it is");
    }
}

#[tokio::test]
async fn a_process_that_waits_for_long_has_an_event_for_each_sentence() {
    let mut stage = Stage::new("");
    stage.settle().await;
    stage.image_is_missing(1);
    stage.settle().await;
    let writes = stage.cluster.status_writes().len();
    assert_eq!(stage.cluster.events().len(), 0, "it has just begun to wait");
    stage.wait(31).await;
    stage.wait(61).await;
    let waits = stage.cluster.events();
    assert_eq!(waits.len(), 1, "{waits:?}");
    assert_eq!(
        (&waits[0]["reason"], &waits[0]["series"]["count"]),
        (&json!("ImagePull"), &json!(2))
    );
    assert_eq!(
        (&waits[0]["type"], &waits[0]["note"]),
        (&json!("Warning"), &json!("not found"))
    );
    assert_eq!(
        stage.cluster.status_writes().len(),
        writes,
        "an Event is no write of the status"
    );
    // Another operator does not know the reports of the first one.
    stage.die_after(usize::MAX);
    stage.wait(31).await;
    let waits = stage.cluster.events();
    assert_eq!(waits.len(), 1, "the same sentence has one Event: {waits:?}");
    assert_ne!(waits[0]["series"], json!(null));
}

#[tokio::test]
async fn a_pod_that_hands_over_its_output_is_left_alone() {
    let mut stage = Stage::new("");
    stage.settle().await;
    stage.launch(1).await;
    stage.exit(1, 0).await;
    stage.wait(600).await;
    assert_eq!(stage.pod(1).unwrap().metadata.deletion_timestamp, None);
}

#[tokio::test]
async fn the_kinds_are_counted_apart_and_each_has_the_limit() {
    let mut stage = Stage::new(", retries: {limit: 1, backoff: {initialSeconds: 0}}");
    stage.settle().await;
    stage.run(1, 7).await;
    stage.launch(2).await;
    stage.pod_vanishes_on(2, "deleted").await;
    assert_eq!(
        stage.status()["retries"],
        json!({"infrastructure": 1, "processFailure": 1})
    );
    stage.run(3, 7).await;
    let status = stage.status();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Failed"), &json!("NonZeroExit"))
    );
}

#[tokio::test]
async fn an_exit_code_that_is_not_meant_is_the_end() {
    for (codes, again) in [("{in: [7]}", true), ("{in: [8]}", false), ("{notIn: [7]}", false)] {
        let spec = format!(", retries: {{limit: 1, exitCodes: {codes}, backoff: {{initialSeconds: 0}}}}");
        let mut stage = Stage::new(&spec);
        stage.settle().await;
        stage.run(1, 7).await;
        assert_eq!(stage.status()["attempt"] == 2, again, "{codes}");
    }
}

#[tokio::test]
async fn a_lost_pod_is_followed_only_when_its_node_can_run_it_no_more() {
    let mut stage = Stage::new(", retries: {limit: 1, after: [Infrastructure], backoff: {initialSeconds: 0}}");
    stage.settle().await;
    stage.launch(1).await;
    stage.pod_vanishes_on(1, "silent").await;
    stage.wait(3600).await;
    let status = stage.status();
    assert_eq!(
        (&status["attempt"], &status["reason"]),
        (&json!(1), &json!("NodeLost")),
        "{status}"
    );
    assert!(status["message"].as_str().unwrap().contains("node-1"), "{status}");
    stage.node("deleted");
    stage.wait(20).await;
    assert_eq!(stage.status()["attempt"], 2);
}

#[tokio::test]
async fn many_attempts_leave_room_in_the_status() {
    let mut stage = Stage::new(", retries: {limit: 100, backoff: {initialSeconds: 0}}");
    stage.settle().await;
    for attempt in 1..=30 {
        stage.run(attempt, 1).await;
    }
    let numbers: Vec<_> = attempts(&stage)
        .iter()
        .map(|attempt| attempt["number"].as_u64().unwrap())
        .collect();
    assert_eq!(stage.status()["attempt"], 31);
    assert_eq!(numbers.iter().filter(|number| **number <= 9).count(), 9);
    assert!(
        numbers.len() <= 20 && numbers.ends_with(&[23, 24, 25, 26, 27, 28, 29, 30, 31]),
        "{numbers:?}"
    );
    let bytes = stage.status().to_string().len();
    assert!(bytes < 16 * 1024, "{bytes} bytes");
}

#[tokio::test]
async fn what_is_not_started_in_time_fails_with_the_reason_for_which_it_waits() {
    let mut stage = Stage::new(", deadlines: {startSeconds: 30}");
    stage.settle().await;
    stage.image_is_missing(1);
    stage.wait(25).await;
    assert_eq!(stage.status()["phase"], "Pending");
    stage.wait(6).await;
    let status = stage.status();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Failed"), &json!("ImagePull"))
    );
    assert!(status["message"].as_str().unwrap().contains("startSeconds"), "{status}");
    assert!(stage.pod(1).unwrap().metadata.deletion_timestamp.is_some());
    assert!(stage.grant(1).await.is_err(), "no agent starts it afterwards");
}

#[tokio::test]
async fn an_operator_that_was_away_until_the_start_deadline_says_the_same() {
    let mut stage = Stage::new(", deadlines: {startSeconds: 30}");
    stage.settle().await;
    stage.image_is_missing(1);
    stage.pass_unseen(31);
    stage.settle().await;
    let status = stage.status();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Failed"), &json!("ImagePull"))
    );
    assert_eq!(status["attempts"][0]["node"], "node-1");
    let conditions = status["conditions"].as_array().unwrap();
    let scheduled = conditions.iter().find(|condition| condition["type"] == "Scheduled");
    assert_eq!(scheduled.unwrap()["status"], "True", "{status}");
}

#[tokio::test]
async fn an_object_whose_time_is_over_goes_when_its_output_is_closed() {
    let mut stage = Stage::new(", ttl: {secondsAfterFailure: 60}");
    stage.settle().await;
    stage.launch(1).await;
    stage.pod_ends(1, 3);
    stage.wait(100).await;
    assert_eq!(stage.status()["phase"], "Failed");
    stage.wait(100).await;
    assert!(stage.exists(), "nobody has said yet what became of its output");
    stage.close(1).await;
    stage.settle().await;
    assert!(!stage.exists());
}

#[tokio::test]
async fn success_and_failure_have_their_own_time() {
    let mut stage = Stage::new(", ttl: {secondsAfterFailure: 60}");
    stage.settle().await;
    stage.run(1, 0).await;
    stage.wait(1000).await;
    assert!(stage.exists());
}

#[tokio::test]
async fn ready_is_what_the_specification_calls_so() {
    for (when, running) in [("Started", "True"), ("Finished", "False")] {
        let mut stage = Stage::new(&format!(", readyWhen: {when}"));
        let condition = |stage: &Stage, kind: &str| {
            let status = stage.status();
            let mut conditions = status["conditions"].as_array().unwrap().iter();
            conditions
                .find(|condition| condition["type"] == kind)
                .map(|condition| condition["status"].clone())
        };
        stage.settle().await;
        assert_eq!(condition(&stage, "Reconciling"), Some(json!("True")));
        stage.launch(1).await;
        assert_eq!(condition(&stage, "Ready"), Some(json!(running)), "{when}");
        stage.exit(1, 1).await;
        stage.settle().await;
        assert_eq!(condition(&stage, "Ready"), Some(json!("False")));
        assert_eq!(
            (condition(&stage, "Stalled"), condition(&stage, "Reconciling")),
            (Some(json!("True")), None)
        );
    }
}

/// What `kubectl wait` does with a condition: it ignores conditions of an older generation, and uses the generation of
/// the status if the condition names none.
fn is_current(status: &Value, generation: i64) -> bool {
    let conditions = status["conditions"].as_array().unwrap().iter();
    let of_status = &status["observedGeneration"];
    conditions.into_iter().all(|condition| {
        let observed = condition.get("observedGeneration").unwrap_or(of_status);
        observed.as_i64().is_some_and(|observed| observed >= generation)
    })
}

#[tokio::test]
async fn kubectl_wait_returns_after_the_ttl_of_a_finished_process_was_changed() {
    let mut stage = Stage::new(", ttl: {secondsAfterSuccess: 3600}");
    stage.settle().await;
    stage.run(1, 0).await;
    let (before, writes) = (stage.status(), stage.cluster.status_writes().len());
    stage.change_ttl(7200);
    stage.settle().await;
    stage.wait(60).await;
    let after = stage.status();
    assert!(is_current(&after, 2), "{after}");
    let conditions = after["conditions"].as_array().unwrap();
    assert!(
        conditions.iter().any(|condition| condition["type"] == "OutputSealed"),
        "the relay's conditions are among them: {after}"
    );
    assert_eq!(
        stage.cluster.status_writes().len(),
        writes + 1,
        "one write for one change"
    );
    let without_generation = |mut status: Value| {
        status["observedGeneration"] = Value::Null;
        for condition in status["conditions"].as_array_mut().unwrap() {
            condition["observedGeneration"] = Value::Null;
        }
        status
    };
    assert_eq!(
        without_generation(before),
        without_generation(after),
        "the end stays as it is"
    );
}

#[tokio::test]
async fn kubectl_wait_returns_after_a_change_while_the_program_runs() {
    let mut stage = Stage::new("");
    stage.settle().await;
    stage.launch(1).await;
    stage.change_ttl(7200);
    stage.settle().await;
    assert!(is_current(&stage.status(), 2), "{}", stage.status());
}

/// An object that no operator has seen, as the API server shows it (the default status of the definition).
#[tokio::test]
async fn helm_waits_for_an_object_that_no_operator_has_seen_and_nothing_of_that_stays() {
    for (spec, writes) in [
        ("", 1),
        (", desiredState: Stopped", 1),
        (", desiredState: Paused", 1),
        (", volumeMounts: [{name: x, mountPath: /.rproc}]", 1),
    ] {
        let mut stage = Stage::new(spec);
        stage.show_default_status();
        stage.settle().await;
        let status = stage.status();
        assert_eq!(status["observedGeneration"], 1, "{status}");
        let conditions = status["conditions"].as_array().unwrap();
        let ready: Vec<_> = conditions
            .iter()
            .filter(|condition| condition["type"] == "Ready")
            .collect();
        assert_eq!((ready.len(), &ready[0]["status"]), (1, &json!("False")), "{status}");
        assert_ne!(ready[0]["lastTransitionTime"], "1970-01-01T00:00:00Z", "{status}");
        assert_eq!(stage.cluster.status_writes().len(), writes, "no write more than before");
    }
}

type Script = fn(&mut Stage) -> Pin<Box<dyn Future<Output = ()> + '_>>;

/// What happens around the operator, whichever replica is alive.
const SCRIPTS: [(&str, &str, Script); 11] = [
    ("success", "", |stage| Box::pin(stage.run(1, 0))),
    ("failure", "", |stage| Box::pin(stage.run(1, 3))),
    ("second attempt", RETRIES, |stage| {
        Box::pin(async move {
            stage.run(1, 3).await;
            stage.wait(6).await;
            stage.run(2, 0).await;
        })
    }),
    ("pod lost before its start", "", |stage| {
        Box::pin(async move {
            // A pod that left no trace before it vanished is created again with the same number: nothing can have run.
            stage.image_is_missing(1);
            stage.settle().await;
            stage.remove_pod(1);
            stage.settle().await;
            stage.wait(2).await;
            stage.run(2, 0).await;
        })
    }),
    ("pod lost while it runs", "", |stage| {
        Box::pin(async move {
            stage.launch(1).await;
            stage.remove_pod(1);
            stage.settle().await;
            stage.wait(11).await;
            stage.close(1).await;
        })
    }),
    (
        "node lost",
        ", retries: {limit: 1, backoff: {initialSeconds: 0}}",
        |stage| {
            Box::pin(async move {
                stage.launch(1).await;
                stage.pod_vanishes_on(1, "deleted").await;
                stage.close(1).await;
                stage.run(2, 0).await;
            })
        },
    ),
    ("stopped before its start", "", |stage| {
        Box::pin(async move {
            stage.containers_run(1);
            stage.settle().await;
            stage.ask_to_stop();
        })
    }),
    ("paused and resumed", "", |stage| {
        Box::pin(async move {
            stage.want(DesiredState::Paused);
            stage.settle().await;
            stage.want(DesiredState::Running);
            stage.launch(1).await;
            stage.want(DesiredState::Paused);
            stage.learn(1, Fact::Paused(Some(Timestamp::now()))).await;
            stage.settle().await;
            stage.want(DesiredState::Running);
            stage.learn(1, Fact::Paused(None)).await;
            stage.settle().await;
            stage.exit(1, 0).await;
        })
    }),
    (
        "run deadline",
        ", retries: {limit: 1}, deadlines: {runSeconds: 60}",
        |stage| {
            Box::pin(async move {
                stage.launch(1).await;
                stage.exit_at_deadline(1, 0).await;
                stage.settle().await;
                stage.pod_ends(1, 0);
            })
        },
    ),
    ("start deadline", ", deadlines: {startSeconds: 30}", |stage| {
        Box::pin(async move {
            stage.image_is_missing(1);
            stage.settle().await;
            stage.wait(31).await;
        })
    }),
    ("end of the object", ", ttl: {secondsAfterSuccess: 5}", |stage| {
        Box::pin(async move {
            stage.run(1, 0).await;
            stage.wait(6).await;
        })
    }),
];

/// The last status, without what differs from run to run: times, and the uids that the server generates.
async fn ending(spec: &str, script: Script, dies_after: Option<usize>) -> (Option<Value>, usize) {
    let mut stage = Stage::new(spec);
    if let Some(calls) = dies_after {
        stage.die_after(calls);
    }
    stage.settle().await;
    script(&mut stage).await;
    stage.settle().await;
    assert!(dies_after.is_none() || stage.has_died());
    let last = stage.exists().then(|| {
        let mut status = stage.status();
        forget_times(&mut status);
        status
    });
    (last, stage.calls())
}

fn forget_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| {
                !(name.ends_with("At") || name == "lastTransitionTime" || name == "duration" || name == "podUid")
            });
            fields.values_mut().for_each(forget_times);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_times),
        _ => {}
    }
}

#[tokio::test]
async fn an_operator_that_dies_after_any_call_changes_no_ending() {
    let mut points = 0;
    for (name, spec, script) in SCRIPTS {
        let (undisturbed, calls) = ending(spec, script, None).await;
        assert!(calls >= 2, "{name}");
        for dies_after in 1..=calls {
            let (disturbed, _) = ending(spec, script, Some(dies_after)).await;
            assert_eq!(
                undisturbed, disturbed,
                "{name}, died after call {dies_after} of {calls}"
            );
            points += 1;
        }
    }
    assert!(points > 30, "{points}");
}
