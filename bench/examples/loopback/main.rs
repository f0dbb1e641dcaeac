//! The cost of each part of a stream's path, without a cluster: the programs of agent and entrypoint, the relay and the
//! follower of `rproc`, each in a process of its own, on loopback.
//!
//! `cargo run --release -p remoteprocess-bench --example loopback -- [--rounds N] [blocks|lines|latency|floor …]`, and
//! `--programs DIR` (repeatable) to compare builds in turn: agent, entrypoint, bench-writer and loopback of each folder.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]

mod client;
mod cost;
mod floor;
mod operator;
mod pod;
mod turn;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the path of a stream on loopback.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// What is measured
    #[arg(default_values = ["blocks", "lines", "latency"])]
    what: Vec<What>,
    /// Turns of each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Megabytes of a turn
    #[arg(long, default_value_t = 1000)]
    megabytes: usize,
    /// Folders with builds that take turns; default: this program's
    #[arg(long)]
    programs: Vec<PathBuf>,
    /// Say what each thread used
    #[arg(long)]
    threads: bool,
}

/// The part that a process of this program plays.
#[derive(Subcommand)]
enum Part {
    /// The relay; keeps its archive in a folder
    Operator { folder: PathBuf },
    /// A follower of everything
    Client { hello: String },
    /// One end of a plain TLS connection
    Hop { end: floor::End, hello: String },
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Lines of 100 bytes in blocks of 8 KiB
    Blocks,
    /// One write(2) for each line
    Lines,
    /// From the write(2) of a line to its arrival
    Latency,
    /// TLS over TCP and nothing else
    Floor,
}

fn main() {
    remoteprocess_tls::install_crypto_provider();
    let args = Args::parse();
    match args.part {
        Some(Part::Operator { folder }) => operator::run(&folder),
        Some(Part::Client { hello }) => client::run(&hello),
        Some(Part::Hop { end, hello }) => floor::run(end, &hello),
        None => measure(&args),
    }
}

fn measure(args: &Args) {
    let own = std::env::current_exe().unwrap();
    let mut builds = args.programs.clone();
    if builds.is_empty() {
        // Examples are one folder below the programs.
        builds.push(own.ancestors().nth(2).unwrap().to_owned());
    }
    for what in &args.what {
        for round in 0..args.rounds {
            for build in &builds {
                print!("{round} {}: ", build.display());
                match what {
                    What::Blocks => turn::follow(build, args.megabytes, 8192, args.threads),
                    What::Lines => turn::follow(build, args.megabytes, 100, args.threads),
                    What::Latency => turn::latency(build),
                    What::Floor => floor::measure(args.megabytes),
                }
            }
        }
    }
}
