//! How many writes of the status a run costs.

use super::stage::Stage;

fn words(stage: &Stage) -> Vec<String> {
    let word = |(manager, status): &(String, serde_json::Value)| {
        let manager = manager.trim_start_matches("remoteprocess-");
        format!("{manager}: {} {}", status["phase"], status["reason"]).replace('"', "")
    };
    stage.cluster.status_writes().iter().map(word).collect()
}

#[tokio::test]
async fn a_run_costs_six_writes() {
    let mut stage = Stage::new("");
    stage.settle().await;
    stage.run(1, 0).await;
    assert_eq!(
        words(&stage),
        [
            "controller: Pending Waiting",
            "relay: Pending Waiting",
            "relay: Pending Waiting",
            "controller: Running Running",
            "relay: Running Running",
            "controller: Succeeded Completed",
        ]
    );
    assert_eq!(stage.status()["attempts"][0]["node"], "node-1");
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
    assert_eq!(words(&stage).len(), 7, "{:?}", words(&stage));
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
    assert_eq!(words.len(), 5, "{words:?}");
    assert_eq!(words[4], "controller: Failed NonZeroExit");
    assert_eq!(stage.status()["attempts"][0]["node"], "node-1");
}
