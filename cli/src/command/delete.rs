//! `rproc delete`: deletes processes.

use kube::api::DeleteParams;

use super::{Failure, open, print, resource};
use crate::args::GlobalArgs;
use crate::connect::Rule;

/// Flags of `delete`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  # End it where it runs; its output stays readable by: rproc logs --uid\n  rproc delete build"
)]
pub struct DeleteArgs {
    /// Names of the processes
    #[arg(required = true)]
    pub names: Vec<String>,
}

/// Deletes the processes.
///
/// # Errors
/// One is not there or may not be deleted.
pub async fn run(global: &GlobalArgs, args: DeleteArgs) -> Result<u8, Failure> {
    let cluster = open(global).await?;
    for name in &args.names {
        let deleted = cluster.processes().delete(name, &DeleteParams::default()).await;
        deleted.map_err(|error| {
            cluster.error(
                &error,
                &Rule::process("delete", "remoteprocess-edit"),
                "delete the process",
            )
        })?;
        print(&format!("{} deleted\n", resource(name)))?;
    }
    Ok(0)
}
