//! `rproc trigger describe`: the details of a trigger.

use remoteprocess_api::ProcessTrigger;

use super::super::bridged;
use crate::args::{GlobalArgs, trigger_name};
use crate::failure::Failure;

/// Flags of `trigger describe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  # Why does it take no messages?\n  rproc trigger describe orders")]
pub(super) struct DescribeArgs {
    /// Names of the triggers
    #[arg(value_parser = trigger_name, value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Prints the details of the triggers.
pub(super) async fn run(global: &GlobalArgs, args: DescribeArgs) -> Result<u8, Failure> {
    bridged::describe::<ProcessTrigger>(global, &args.names).await
}
