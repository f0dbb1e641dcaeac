//! `rproc sink`: the sinks that send events about processes.

use clap::Subcommand;
use kube::Api;
use remoteprocess_api::ProcessSink;
use remoteprocess_client::Cluster;

use super::bridged::{self, ListFlags};
use crate::args::{GlobalArgs, sink_name};
use crate::failure::Failure;

/// Flags of `sink`.
#[derive(Debug, clap::Args)]
pub struct SinkArgs {
    /// What to do.
    #[command(subcommand)]
    command: SinkCommand,
}

#[derive(Debug, Subcommand)]
enum SinkCommand {
    /// List sinks
    #[command(visible_aliases = ["get", "list"], after_help = LIST_EXAMPLES)]
    Ls(ListArgs),
    /// Show the details of sinks
    #[command(after_help = "Examples:\n  # Why does it send no events?\n  rproc sink describe events")]
    Describe(DescribeArgs),
}

const LIST_EXAMPLES: &str = "Examples:
  # All sinks of the namespace
  rproc sink ls

  # All sinks, with the reason of the condition Ready
  rproc sink ls -A -o wide";

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Names of the sinks; default: all
    #[arg(value_parser = sink_name, value_name = "NAME")]
    names: Vec<String>,
    /// What to list, and how.
    #[command(flatten)]
    flags: ListFlags,
}

#[derive(Debug, clap::Args)]
struct DescribeArgs {
    /// Names of the sinks
    #[arg(value_parser = sink_name, value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Runs the command.
pub async fn run(global: &GlobalArgs, args: SinkArgs) -> Result<u8, Failure> {
    match args.command {
        SinkCommand::Ls(args) => bridged::list::<ProcessSink>(global, &args.names, &args.flags).await,
        SinkCommand::Describe(args) => bridged::describe::<ProcessSink>(global, &args.names).await,
    }
}

/// The sinks of the namespace.
pub(crate) fn sinks(cluster: &Cluster) -> Api<ProcessSink> {
    bridged::typed(cluster)
}
