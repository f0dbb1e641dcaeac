//! `rproc trigger`: the triggers that make processes of messages.

mod describe;
mod list;
mod replay;
mod test;

use clap::Subcommand;
use kube::Api;
use remoteprocess_api::ProcessTrigger;
use remoteprocess_client::Cluster;

use super::bridged;
use crate::args::GlobalArgs;
use crate::failure::Failure;

/// Flags of `trigger`.
#[derive(Debug, clap::Args)]
pub struct TriggerArgs {
    /// What to do.
    #[command(subcommand)]
    command: TriggerCommand,
}

#[derive(Debug, Subcommand)]
enum TriggerCommand {
    /// List triggers
    #[command(visible_aliases = ["get", "list"])]
    Ls(list::ListArgs),
    /// Show the details of triggers
    Describe(describe::DescribeArgs),
    /// Send a message to the source of a trigger, and print the name of its process
    Test(test::TestArgs),
    /// Send dead letters to the source of their trigger again
    Replay(replay::ReplayArgs),
}

/// Runs the command.
pub async fn run(global: &GlobalArgs, args: TriggerArgs) -> Result<u8, Failure> {
    match args.command {
        TriggerCommand::Ls(args) => list::run(global, args).await,
        TriggerCommand::Describe(args) => describe::run(global, args).await,
        TriggerCommand::Test(args) => test::run(global, args).await,
        TriggerCommand::Replay(args) => replay::run(global, args).await,
    }
}

/// The triggers of the namespace.
pub(crate) fn triggers(cluster: &Cluster) -> Api<ProcessTrigger> {
    bridged::typed(cluster)
}

/// What was found, or the failure.
fn found<T>(cluster: &Cluster, name: &str, found: kube::Result<Option<T>>) -> Result<T, Failure> {
    bridged::found::<ProcessTrigger, T>(cluster, name, found)
}
