//! What users write, and keys, appear nowhere else: not in the log with the audit log, Events, metrics or the status.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use remoteprocess_api::RemoteProcess;

use super::target::Target;

/// Stands in environment, arguments, commands of exec sessions, names of sessions and messages.
pub(super) const CANARY: &str = "canary-4b1d9c";

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
