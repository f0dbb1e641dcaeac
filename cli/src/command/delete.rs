//! `rproc delete`: deletes processes.

use kube::api::DeleteParams;

use super::{Failure, change, open, print, resource};
use crate::args::{GlobalArgs, process_name};
use crate::connect::Rule;

/// Flags of `delete`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  # End it where it runs; its output stays readable by: rproc logs --uid\n  rproc delete build"
)]
pub struct DeleteArgs {
    /// Names of the processes
    #[arg(required = true, value_parser = process_name)]
    pub names: Vec<String>,
}

/// Deletes the processes.
///
/// # Errors
/// Says which are not there or may not be deleted; the others are deleted.
pub async fn run(global: &GlobalArgs, args: DeleteArgs) -> Result<u8, Failure> {
    let cluster = open(global).await?;
    let mut failures = Vec::new();
    for name in &args.names {
        match cluster.processes().delete(name, &DeleteParams::default()).await {
            Ok(_) => print(&format!("{} deleted\n", resource(name)))?,
            Err(error) => {
                let rule = Rule::process("delete", "remoteprocess-edit");
                failures.push(cluster.sentence(&error, &rule, &format!("delete {name}")));
            }
        }
    }
    change::conclude(&failures)
}
