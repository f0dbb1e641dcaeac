//! The tasks of this repository: `cargo xtask <task>`.
//!
//! Arrows: may depend on every crate of the workspace, nothing depends on it.
//! Invariant: everything that outlives a command is kept below the user's cache folder, never in the checkout, except
//! `dist/`, which is a release.

use anyhow::Result;
use clap::{Parser, Subcommand};

use generate::{GenerateArgs, generate};
use target::{Target, TargetArgs};

mod archive;
mod bench;
mod cargo;
mod check;
mod cluster;
mod demo;
mod deny;
mod exec;
mod external;
mod faults;
mod fuzz;
mod generate;
mod images;
mod install;
mod load;
mod lock;
mod page;
mod paths;
mod prometheus;
mod registry;
mod release;
mod s3;
mod steps;
mod target;
mod test;
mod tool;

/// Tasks of the RemoteProcess repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Sets up everything and runs an example: cluster, images, helm install, a process, its output, its status.
    Demo(TargetArgs),
    /// Runs all checks and tests, with one summary.
    Test(test::TestArgs),
    /// Checks formatting, lints, documentation, dependencies between crates and modules, words, and generated files.
    Check,
    /// Manages the development cluster: a real Kubernetes on this machine, without Docker.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Starts and ends the brokers for work on triggers: NATS with JetStream, RabbitMQ, and the emulator of Google Pub/Sub.
    #[command(subcommand)]
    Brokers(cluster::brokers::Command),
    /// Builds the programs and images, and loads them into the cluster or pushes them to a registry.
    Images(TargetArgs),
    /// Builds the images, loads or pushes them, and installs or upgrades the chart.
    Install(TargetArgs),
    /// Installs the operator and runs the benchmarks.
    Bench {
        #[command(flatten)]
        target: TargetArgs,
        /// Arguments of the benchmarks.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Sends the same messages by HTTP, NATS, RabbitMQ, Pub/Sub and gRPC to programs on the development cluster, with Locust, and
    /// compares how quick they are. Fails if a message is lost or doubled.
    Load(load::LoadArgs),
    /// Runs an S3 server for tests in the foreground: `--host`, `--port`, `--bucket` (see dev/s3/serve.py).
    #[command(disable_help_flag = true)]
    S3 {
        /// Arguments of dev/s3/serve.py.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Injects faults, in a simulation and on the cluster: `faults simulation`, `faults kills --long`, `faults help`.
    Faults {
        #[command(flatten)]
        target: TargetArgs,
        /// Scenario and its arguments; everything without one.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs the fuzz targets in `fuzz/` under libFuzzer: `fuzz`, `fuzz archive --seconds 600`.
    Fuzz(fuzz::FuzzArgs),
    /// Runs what other projects test with, in pinned versions: kube-score, kubeconform and checkov on the chart, promtool on
    /// metrics and alerts, h2spec and grpcurl on an operator, and libFuzzer. Needs no cluster.
    External,
    /// Builds the page of `rproc ui` with Node, for the next build of rproc; `--test` and `--screenshots` use Chromium.
    Page(page::PageArgs),
    /// Writes `dist/`: programs and images for amd64 and arm64, chart, manifests, checksums, SBOM and notes.
    Release(release::ReleaseArgs),
    /// Generates the CustomResourceDefinition from the types in `api/`.
    Crds(GenerateArgs),
    /// Generates the Rust code of the wire protocol from the .proto files.
    Proto(GenerateArgs),
    /// Generates docs/api.md from the CustomResourceDefinition.
    Docs(GenerateArgs),
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Demo(target) => demo::demo(&target),
        Task::Test(args) => test::test(&args),
        Task::Check => test::check(),
        Task::Cluster(command) => cluster::run(command),
        Task::Brokers(command) => cluster::brokers::run(&command),
        Task::Images(target) => images::build_and_load(&Target::resolve(&target)?).map(drop),
        Task::Install(target) => {
            let installation = install::install(&Target::resolve(&target)?)?;
            install::say_where_rproc_is(&installation.images);
            Ok(())
        }
        Task::Bench { target, args } => bench::bench(&target, &args),
        Task::Load(args) => load::load(&args),
        Task::S3 { args } => s3::serve(&args),
        Task::Faults { target, args } => faults::faults(&target, &args),
        Task::Fuzz(args) => fuzz::fuzz(&args),
        Task::External => external::external(),
        Task::Page(args) => page::page(&args),
        Task::Release(args) => release::release(&args),
        Task::Crds(args) => generate("crds", &args),
        Task::Proto(args) => generate("proto", &args),
        Task::Docs(args) => generate("docs", &args),
    }
}
