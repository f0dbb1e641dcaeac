//! Pauses, before the start, while the program runs and between two attempts; and the run deadline.

use jiff::Timestamp;
use remoteprocess_api::{ConditionType, DesiredState, condition};
use serde_json::json;

use super::stage::Stage;
use crate::relay::live::Fact;

fn word(stage: &Stage) -> (String, String) {
    let status = stage.process().status.unwrap();
    (status.phase.unwrap().to_string(), status.reason.unwrap().to_string())
}

fn is(phase: &str, reason: &str) -> (String, String) {
    (phase.to_owned(), reason.to_owned())
}

fn holds(stage: &Stage, kind: ConditionType) -> bool {
    condition::is_true(&stage.process().status.unwrap().conditions, kind)
}

#[tokio::test]
async fn a_program_is_paused_and_resumed_when_its_agent_says_so() {
    let mut stage = Stage::new("");
    stage.settle().await;
    stage.launch(1).await;
    stage.want(DesiredState::Paused);
    stage.settle().await;
    assert_eq!(word(&stage), is("Running", "Running"), "it still runs");
    let writes = stage.cluster.status_writes().len();
    stage.learn(1, Fact::Paused(Some(Timestamp::now()))).await;
    stage.settle().await;
    assert_eq!(word(&stage), is("Paused", "Paused"));
    assert_eq!(
        stage.status()["message"],
        "the program is paused by kubectl-patch through spec.desiredState"
    );
    assert!(holds(&stage, ConditionType::Paused) && holds(&stage, ConditionType::Ready));
    assert!(!holds(&stage, ConditionType::Reconciling));
    stage.want(DesiredState::Running);
    stage.learn(1, Fact::Paused(None)).await;
    stage.settle().await;
    assert_eq!(word(&stage), is("Running", "Running"));
    let conditions = stage.process().status.unwrap().conditions;
    assert!(condition::find(&conditions, ConditionType::Paused).is_none());
    assert_eq!(stage.cluster.status_writes().len() - writes, 2, "one for each");
    stage.exit(1, 0).await;
    stage.settle().await;
    assert_eq!(word(&stage), is("Succeeded", "Completed"));
}

#[tokio::test]
async fn what_is_paused_before_its_start_is_not_started() {
    let mut stage = Stage::new(", desiredState: Paused");
    stage.wait(3600).await;
    assert_eq!(word(&stage), is("Paused", "Paused"));
    assert!(!holds(&stage, ConditionType::Ready) && holds(&stage, ConditionType::Reconciling));
    assert!(stage.pod(1).is_none(), "there is no pod");
    stage.want(DesiredState::Running);
    stage.settle().await;
    stage.containers_run(1);
    stage.settle().await;
    stage.want(DesiredState::Paused);
    stage.settle().await;
    assert_eq!(word(&stage), is("Paused", "Paused"));
    assert!(stage.grant(1).await.is_err(), "its agent gets no grant");
    stage.want(DesiredState::Running);
    stage.settle().await;
    stage.run(1, 0).await;
    assert_eq!(word(&stage), is("Succeeded", "Completed"));
    assert_eq!(stage.status()["attempt"], 1);
}

#[tokio::test]
async fn no_attempt_follows_while_it_is_paused() {
    let mut stage = Stage::new(", retries: {limit: 2, backoff: {initialSeconds: 0}}");
    stage.settle().await;
    stage.launch(1).await;
    stage.want(DesiredState::Paused);
    stage.exit(1, 7).await;
    stage.pod_ends(1, 7);
    stage.wait(3600).await;
    assert_eq!(
        (word(&stage), &stage.status()["attempt"]),
        (is("Paused", "Paused"), &json!(1))
    );
    stage.want(DesiredState::Running);
    stage.settle().await;
    assert_eq!(stage.status()["attempt"], 2);
    stage.run(2, 0).await;
    assert_eq!(word(&stage), is("Succeeded", "Completed"));
}

#[tokio::test]
async fn a_pause_does_not_stop_the_start_deadline() {
    let mut stage = Stage::new(", desiredState: Paused, deadlines: {startSeconds: 30}");
    stage.wait(29).await;
    assert_eq!(word(&stage), is("Paused", "Paused"));
    stage.wait(2).await;
    assert_eq!(word(&stage), is("Failed", "DeadlineExceeded"));
    let message = stage.status()["message"].to_string();
    assert!(
        message.contains("startSeconds") && message.contains("paused"),
        "{message}"
    );
}

#[tokio::test]
async fn a_stop_ends_a_pause_and_names_the_requester() {
    let mut stage = Stage::new("");
    stage.settle().await;
    stage.launch(1).await;
    stage.want(DesiredState::Paused);
    stage.learn(1, Fact::Paused(Some(Timestamp::now()))).await;
    stage.settle().await;
    stage.ask_to_stop();
    stage.settle().await;
    assert_eq!(word(&stage), is("Stopping", "Stopping"));
    assert!(!holds(&stage, ConditionType::Paused));

    let mut unstarted = Stage::new("");
    unstarted.settle().await;
    unstarted.ask_to_stop();
    unstarted.settle().await;
    assert_eq!(word(&unstarted), is("Failed", "Stopped"));
    let stop = unstarted.status()["attempts"][0]["exit"]["stop"].clone();
    assert_eq!(stop, json!({"requestedBy": "kubectl-patch through spec.desiredState"}));
}

#[tokio::test]
async fn a_run_deadline_is_no_success_whatever_the_code_and_is_not_tried_again() {
    for code in [0, 5] {
        let mut stage = Stage::new(", retries: {limit: 2, backoff: {initialSeconds: 0}}, deadlines: {runSeconds: 60}");
        stage.settle().await;
        stage.launch(1).await;
        assert_eq!(stage.status()["attempts"][0]["runSeconds"], 60);
        stage.exit_at_deadline(1, code).await;
        stage.pod_ends(1, code);
        stage.settle().await;
        assert_eq!(word(&stage), is("Failed", "DeadlineExceeded"));
        let status = stage.status();
        assert_eq!((&status["exitCode"], &status["attempt"]), (&json!(code), &json!(1)));
        let message = status["message"].to_string();
        assert!(
            message.contains("it has run for 60 s") && message.contains("runSeconds"),
            "{message}"
        );
        assert_eq!(status["attempts"][0]["exit"]["stop"]["requestedBy"], "deadline");
    }
}
