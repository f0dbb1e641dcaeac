//! `rproc trigger ls`: a table of triggers.

use remoteprocess_api::ProcessTrigger;

use super::super::bridged::{self, ListFlags};
use crate::args::{GlobalArgs, trigger_name};
use crate::failure::Failure;

/// Flags of `trigger ls`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ListArgs {
    /// Names of the triggers; default: all
    #[arg(value_parser = trigger_name, value_name = "NAME")]
    names: Vec<String>,
    /// What to list, and how.
    #[command(flatten)]
    flags: ListFlags,
}

const EXAMPLES: &str = "Examples:
  # All triggers of the namespace
  rproc trigger ls

  # All triggers, with dead letters and the reason of the condition Ready
  rproc trigger ls -A -o wide";

/// Prints the triggers.
pub(super) async fn run(global: &GlobalArgs, args: ListArgs) -> Result<u8, Failure> {
    bridged::list::<ProcessTrigger>(global, &args.names, &args.flags).await
}
