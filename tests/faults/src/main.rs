//! Injects faults: `cargo xtask faults` runs this.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use remoteprocess_faults::reconcile;
use remoteprocess_faults::seeds::{self, Seeds};
use remoteprocess_faults::{attacks, cluster};

/// Faults on purpose. Each scenario has a size for CI and, with --long, a full one.
#[derive(Parser)]
#[command(name = "cargo xtask faults", bin_name = "cargo xtask faults")]
struct Cli {
    #[command(subcommand)]
    scenario: Option<Scenario>,
}

#[derive(Subcommand)]
enum Scenario {
    /// The stream protocol on a simulated network and clock; needs no cluster.
    Simulation(SimulationArgs),
    /// The controller on a real API server, with a fault at each call and each event; `cargo xtask` starts the server.
    Reconcile(ReconcileArgs),
    /// Strangers, users without rights and odd objects against an operator process; `cargo xtask` starts the API server.
    Attacks(AttacksArgs),
    /// h2spec and grpcurl against an operator process; `cargo xtask external` builds them.
    Foreign(ForeignArgs),
    /// `seq 1 2000000` many times through a proxy that cuts and delays; with --long beside `kubectl`.
    Cuts(CutsArgs),
    /// The same with every line between the parts cut and delayed: relay, agents, API server.
    Links(CutsArgs),
    /// The operator and the agent are killed again and again while a program writes.
    Kills(SizeArgs),
    /// The API server hangs for a minute.
    ApiServer(SizeArgs),
    /// The archive's volume takes nothing for a while.
    Store(SizeArgs),
    /// All that need the cluster.
    Cluster(SizeArgs),
    /// Everything that is left; `cargo xtask faults` without any argument is this and `reconcile`.
    All(SizeArgs),
}

#[derive(Args, Clone, Copy, Default)]
struct SizeArgs {
    /// The full size.
    #[arg(long)]
    long: bool,
}

#[derive(Args)]
struct AttacksArgs {
    #[command(flatten)]
    size: SizeArgs,
    /// Each attack alone for eight seconds, with the memory that it costs, instead of all at once.
    #[arg(long, conflicts_with = "long")]
    each: bool,
}

#[derive(Args)]
struct ForeignArgs {
    /// The program h2spec.
    #[arg(long)]
    h2spec: PathBuf,
    /// The program grpcurl.
    #[arg(long)]
    grpcurl: PathBuf,
    /// The folder with the .proto files.
    #[arg(long)]
    proto: PathBuf,
}

#[derive(Args)]
struct ReconcileArgs {
    #[command(flatten)]
    size: SizeArgs,
    /// Only the scenarios with this text in their name.
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,
}

#[derive(Args)]
struct CutsArgs {
    #[command(flatten)]
    size: SizeArgs,
    /// Draws the cuts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct SimulationArgs {
    /// 10,000 seeds instead of 150 and those that have failed once.
    #[arg(long)]
    long: bool,
    /// Only this seed. `RUST_LOG=info` says what happens.
    #[arg(long, conflicts_with = "long")]
    seed: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long)]
    seeds: Option<u64>,
    /// How often each: not everything in a simulation is fixed by its seed.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Start no further seed after this many seconds.
    #[arg(long)]
    limit: Option<u64>,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match run(Cli::parse().scenario.unwrap_or(Scenario::All(SizeArgs::default()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(scenario: Scenario) -> Result<()> {
    match scenario {
        Scenario::Simulation(args) => seeds::run(&args.into()),
        Scenario::Reconcile(args) => reconcile::run(args.size.long, &args.only),
        Scenario::Attacks(args) if args.each => attacks::each(),
        Scenario::Attacks(args) => attacks::run(args.size.long),
        Scenario::Foreign(args) => attacks::foreign(attacks::Programs {
            h2spec: args.h2spec,
            grpcurl: args.grpcurl,
            proto: args.proto,
        }),
        Scenario::Cuts(args) => cluster::cuts(args.size.long, args.seed),
        Scenario::Links(args) => cluster::links(args.size.long, args.seed),
        Scenario::Kills(size) => cluster::kills(size.long),
        Scenario::ApiServer(size) => cluster::api_server(size.long),
        Scenario::Store(size) => cluster::store(size.long),
        Scenario::Cluster(size) => on_the_cluster(size.long),
        Scenario::All(size) => {
            seeds::run(&Seeds::of_size(size.long))?;
            on_the_cluster(size.long)
        }
    }
}

fn on_the_cluster(long: bool) -> Result<()> {
    cluster::cuts(long, 1)?;
    cluster::links(long, 1)?;
    cluster::kills(long)?;
    cluster::api_server(long)?;
    cluster::store(long)
}

impl From<SimulationArgs> for Seeds {
    fn from(args: SimulationArgs) -> Self {
        let from = args.from;
        Self {
            seeds: match (args.seed, args.seeds) {
                (Some(seed), _) => vec![seed],
                (None, Some(count)) => (from..from + count).collect(),
                (None, None) => Self::of_size(args.long)
                    .seeds
                    .into_iter()
                    .filter(|seed| *seed >= from)
                    .collect(),
            },
            repeat: args.repeat,
            limit: args.limit.map(Duration::from_secs),
        }
    }
}
