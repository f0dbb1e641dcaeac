//! `rproc trigger`: the triggers that make processes of messages.

mod describe;
mod list;
mod test;

use clap::Subcommand;
use kube::Api;
use kube::core::{ApiResource, DynamicObject};
use remoteprocess_api::ProcessTrigger;
use remoteprocess_client::{Cluster, Rule};

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
}

/// Runs the command.
pub async fn run(global: &GlobalArgs, args: TriggerArgs) -> Result<u8, Failure> {
    match args.command {
        TriggerCommand::Ls(args) => list::run(global, args).await,
        TriggerCommand::Describe(args) => describe::run(global, args).await,
        TriggerCommand::Test(args) => test::run(global, args).await,
    }
}

/// The triggers of the namespace.
pub(crate) fn triggers(cluster: &Cluster) -> Api<ProcessTrigger> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

/// The same without a type: unknown fields of a newer operator are kept.
fn objects(cluster: &Cluster, is_everywhere: bool) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<ProcessTrigger>(&());
    if is_everywhere {
        Api::all_with(cluster.client.clone(), &resource)
    } else {
        Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource)
    }
}

/// What was found, or the failure.
fn found<T>(cluster: &Cluster, name: &str, found: kube::Result<Option<T>>) -> Result<T, Failure> {
    let rule = Rule::trigger("get", "remoteprocess-view");
    let found = found.map_err(|error| cluster.error(&error, &rule, &format!("read trigger {name}")))?;
    found.ok_or_else(|| Failure::new(format!("there is no trigger {name} in namespace {}", cluster.namespace)))
}
