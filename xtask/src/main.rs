//! The tasks of this repository: `cargo xtask <task>`.
//!
//! Arrows: may depend on every crate of the workspace, nothing depends on it.
//! Invariant: everything that outlives a command is kept below the user's cache folder, never in the checkout.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod archive;
mod cluster;
mod exec;
mod paths;
mod steps;

/// Tasks of the RemoteProcess repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The development cluster: a real Kubernetes on this machine, without Docker.
    #[command(subcommand)]
    Cluster(cluster::Command),
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Cluster(command) => cluster::run(command),
    }
}
