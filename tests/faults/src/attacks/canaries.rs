//! What users write, and keys, appear nowhere else: not in the log with the audit log, Events, metrics, traces or the
//! status. The end-to-end test `what_users_write_and_keys_are_nowhere_else` looks for more of them, in more places.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use remoteprocess_api::RemoteProcess;
use tokio::time::{sleep, timeout};

use super::target::Target;

/// Stands in environment, arguments, commands of exec sessions, names of sessions and messages.
pub(super) const CANARY: &str = "canary-4b1d9c";

/// How long the operator may take to send the span of an attempt.
const SENT: Duration = Duration::from_secs(20);

/// The traces, once there is the span of a whole attempt among them.
async fn traces(target: &Target) -> Result<String> {
    let sent = async {
        loop {
            let text = target.traces.text();
            if text.contains("name: \"attempt\"") {
                return text;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SENT, sent).await.context("no span of an attempt was sent")
}

/// Looks for the canary and for the key of the CA.
pub(super) async fn check(target: &Target) -> Result<()> {
    let lists = ListParams::default();
    let events: Api<Event> = Api::all(target.client.clone());
    let processes: Api<RemoteProcess> = Api::all(target.client.clone());
    let statuses: Vec<_> = processes
        .list(&lists)
        .await?
        .items
        .into_iter()
        .map(|process| process.status)
        .collect();
    let log = target.whole_log()?;
    ensure!(log.contains("\"target\":\"audit\""), "the audit log is empty");
    let metrics = target.metrics().await?;
    ensure!(
        metrics.contains("remoteprocess_rpc_requests_total"),
        "there are no metrics of calls"
    );
    let places = [
        ("the log", log),
        ("metrics", metrics),
        ("the traces", traces(target).await?),
        ("Events", format!("{:?}", events.list(&lists).await?.items)),
        ("the status", format!("{statuses:?}")),
    ];
    let key = target.key_line();
    for (place, text) in &places {
        for (what, secret) in [("what a user wrote", CANARY), ("the key of the CA", &key)] {
            ensure!(!text.contains(secret), "{what} is in {place}");
        }
    }
    println!("    {} places without canaries and keys", places.len());
    Ok(())
}
