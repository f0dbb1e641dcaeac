//! `rproc delete`: deletes processes.

use std::time::Duration;

use kube::api::DeleteParams;
use remoteprocess_client::observe::Seen;
use remoteprocess_client::{Cluster, Rule};
use tokio::time::Instant;

use super::selection::{Failures, Selection};
use super::update;
use crate::args::GlobalArgs;
use crate::args::duration;
use crate::failure::Failure;
use crate::print::{print, resource};

/// Flags of `delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DeleteArgs {
    /// Which processes.
    #[command(flatten)]
    pub selection: Selection,
    /// Treat a process that does not exist as deleted
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Wait until it is deleted; --wait=false returns when deletion begins
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = clap::ArgAction::Set)]
    pub wait: bool,
    /// Maximum time to wait; 0 for no limit
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0", hide_default_value = true)]
    pub timeout: Duration,
}

const EXAMPLES: &str = "Examples:
  # End it if it runs; read its output later with: rproc logs --uid
  rproc delete build

  # All failed processes
  rproc delete --field-selector status.phase=Failed";

/// Deletes the processes, and waits until they are gone. If one fails, the others are deleted nevertheless.
pub async fn run(global: &GlobalArgs, args: DeleteArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let deadline = update::deadline(args.timeout);
    // Listed processes may be gone in the meantime, as with kubectl.
    let may_be_gone = args.ignore_not_found || !args.selection.is_named();
    let (mut leaving, mut failures) = (Vec::new(), Failures::default());
    for name in args.selection.names(&cluster).await? {
        match failures.keep(delete(&cluster, &name, may_be_gone).await)? {
            Some(Deletion::Gone) => print(&format!("{} deleted\n", resource(&name)))?,
            Some(Deletion::Begun(uid)) => {
                print(&format!("{} deleted\n", resource(&name)))?;
                leaving.push((name, uid));
            }
            Some(Deletion::Absent) | None => {}
        }
    }
    for (name, uid) in leaving.iter().filter(|_| args.wait) {
        failures.keep(gone(&cluster, name, uid, deadline).await)?;
    }
    failures.conclude()
}

/// Deletes a process, if it exists, and waits until it is gone.
pub async fn and_wait(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    match delete(cluster, name, true).await? {
        Deletion::Begun(uid) => gone(cluster, name, &uid, None).await,
        Deletion::Gone | Deletion::Absent => Ok(()),
    }
}

async fn gone(cluster: &Cluster, name: &str, uid: &str, deadline: Option<Instant>) -> Result<(), Failure> {
    let is_gone = |seen: &Seen| matches!(seen, Seen::Gone).then_some(Ok(()));
    let late = |_| format!("{name} is being deleted and is not gone in time. See: rproc describe {name}");
    update::until(cluster, (name, Some(uid)), deadline, is_gone, late).await
}

/// The API server's answer to a deletion.
enum Deletion {
    /// Done.
    Gone,
    /// The object with this uid is deleted when its process has ended.
    Begun(String),
    /// There was nothing to delete, which is no failure.
    Absent,
}

async fn delete(cluster: &Cluster, name: &str, may_be_gone: bool) -> Result<Deletion, Failure> {
    match cluster.processes().delete(name, &DeleteParams::default()).await {
        Ok(answer) => Ok(match answer.left().and_then(|object| object.metadata.uid) {
            Some(uid) => Deletion::Begun(uid),
            None => Deletion::Gone,
        }),
        Err(kube::Error::Api(status)) if status.code == 404 && may_be_gone => Ok(Deletion::Absent),
        Err(error) => {
            let rule = Rule::process("delete", "remoteprocess-edit");
            Err(cluster.error(&error, &rule, &format!("delete {name}")).into())
        }
    }
}
