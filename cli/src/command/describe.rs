//! `rproc describe`: the details of a process.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use remoteprocess_client::Cluster;

use super::selection::{Failures, Selection};
use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::print::print;
use crate::render::{description, last_seen};

/// Flags of `describe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  # Why does it wait? How did it end?\n  rproc describe build")]
pub struct DescribeArgs {
    /// Which processes.
    #[command(flatten)]
    pub selection: Selection,
}

/// Prints the details of the processes. If one fails, the others are printed nevertheless.
pub async fn run(global: &GlobalArgs, args: DescribeArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let mut failures = Failures::default();
    for (index, object) in args
        .selection
        .objects(&cluster, &mut failures)
        .await?
        .iter()
        .enumerate()
    {
        let events = events(&cluster, object.metadata.uid.as_deref().unwrap_or_default()).await;
        if index > 0 {
            print("\n")?;
        }
        print(&description::describe(object, events.as_deref(), Timestamp::now()))?;
    }
    failures.conclude()
}

/// The object's events, oldest first; `None` if the user may not read them.
pub(super) async fn events(cluster: &Cluster, uid: &str) -> Option<Vec<Event>> {
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let mut events = api
        .list(&ListParams::default().fields(&format!("involvedObject.uid={uid}")))
        .await
        .ok()?
        .items;
    events.sort_by_key(last_seen);
    Some(events)
}
