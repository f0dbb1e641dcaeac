//! How many writes of the status, and how many Events, a run costs.

use serde_json::json;

use super::stage::Stage;

fn words(stage: &Stage) -> Vec<String> {
    let word = |(manager, status): &(String, serde_json::Value)| {
        let manager = manager.trim_start_matches("remoteprocess-");
        format!("{manager}: {} {}", status["phase"], status["reason"]).replace('"', "")
    };
    stage.cluster.status_writes().iter().map(word).collect()
}

#[tokio::test]
async fn a_run_costs_four_writes_and_two_events() {
    let mut stage = Stage::new("");
    stage.settle().await;
    stage.run(1, 0).await;
    assert_eq!(
        words(&stage),
        [
            "controller: Pending Waiting",
            "relay: Pending Waiting",
            "relay: Running Running",
            "relay: Succeeded Completed",
        ]
    );
    assert_eq!(events(&stage), ["Running", "Completed"]);
    assert_eq!(stage.status()["attempts"][0]["node"], "node-1");
    let writes = stage.cluster.status_writes().len();
    stage.wait(3600).await;
    assert_eq!(stage.cluster.status_writes().len(), writes, "nothing at rest");
}

#[tokio::test]
async fn an_end_that_comes_before_its_start_was_written_costs_three_writes() {
    let mut stage = Stage::new("");
    stage.settle().await;
    stage.containers_run(1);
    stage.grant(1).await.unwrap();
    stage.exit(1, 3).await;
    stage.start(1).await;
    stage.settle().await;
    assert_eq!(words(&stage).len(), 3, "{:?}", words(&stage));
    assert_eq!(events(&stage), ["NonZeroExit"]);
    assert_ne!(stage.status()["startedAt"], json!(null));
}

/// Where the pod or another attempt decides, the controller says how it ended.
#[tokio::test]
async fn the_relay_leaves_an_end_that_may_be_retried_to_the_controller() {
    for (spec, code, by) in [
        (", retries: {limit: 1}", 3, "controller: Pending Retrying"),
        (", retries: {limit: 1}", 0, "relay: Succeeded Completed"),
    ] {
        let mut stage = Stage::new(spec);
        stage.settle().await;
        stage.launch(1).await;
        stage.exit(1, code).await;
        stage.settle().await;
        assert_eq!(words(&stage).last().unwrap(), by);
    }
}

fn events(stage: &Stage) -> Vec<String> {
    let events = stage.cluster.events();
    events
        .iter()
        .filter_map(|event| Some(event["reason"].as_str()?.to_owned()))
        .collect()
}

#[tokio::test]
async fn each_reason_to_wait_costs_one_more() {
    let mut stage = Stage::new("");
    stage.settle().await;
    for _ in 0..3 {
        for sentence in ["not found", "back-off 10 s", "back-off 20 s"] {
            let waiting = format!(
                "{{phase: Pending, containerStatuses: [{{name: main, image: x, imageID: '', ready: false, \
                 restartCount: 0, state: {{waiting: {{reason: ImagePullBackOff, message: {sentence}}}}}}}]}}"
            );
            stage.kubelet(1, &waiting);
            stage.settle().await;
        }
    }
    stage.run(1, 0).await;
    assert_eq!(words(&stage).len(), 5, "{:?}", words(&stage));
}

#[tokio::test]
async fn the_end_of_a_container_is_no_write_before_its_record() {
    let mut stage = Stage::new("");
    stage.settle().await;
    stage.containers_run(1);
    stage.grant(1).await.unwrap();
    stage.start(1).await;
    stage.pod_ends(1, 3);
    stage.settle().await;
    stage.exit(1, 3).await;
    stage.settle().await;
    let words = words(&stage);
    assert_eq!(words.len(), 4, "{words:?}");
    assert_eq!(words[3], "relay: Failed NonZeroExit");
    assert_eq!(stage.status()["attempts"][0]["node"], "node-1");
}
