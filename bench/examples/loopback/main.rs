//! The cost of each part of a stream's path, without a cluster: the programs of agent and entrypoint, the relay and the
//! follower of `rproc`, each in a process of its own, on loopback.
//!
//! `cargo run --release -p remoteprocess-bench --example loopback -- [--rounds N] [blocks|lines|latency|floor|crowd …]`, with
//! `--face grpc|raw|lines|events|curl` (repeatable) to compare the faces of the relay in turn, and `--programs DIR`
//! (repeatable) to compare builds in turn: agent, entrypoint, bench-writer and loopback of each folder.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]

mod client;
mod cost;
mod crowd;
mod floor;
mod http;
mod operator;
mod pod;
mod turn;

use std::path::{Path, PathBuf};

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
    /// Faces of the relay that take turns
    #[arg(long, default_value = "grpc")]
    face: Vec<client::Face>,
    /// Followers of a crowd that read server-sent events
    #[arg(long, default_value_t = 1000)]
    events: usize,
    /// Followers of a crowd that use gRPC
    #[arg(long, default_value_t = 50)]
    grpc: usize,
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
    Client { hello: String, face: client::Face },
    /// Many followers of everything
    Followers { hello: String, events: usize, grpc: usize },
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
    /// Many followers at once, and the relay's memory
    Crowd,
}

fn main() {
    remoteprocess_tls::install_crypto_provider();
    let args = Args::parse();
    match args.part {
        Some(Part::Operator { folder }) => operator::run(&folder),
        Some(Part::Client { hello, face }) => client::run(&hello, face),
        Some(Part::Followers { hello, events, grpc }) => crowd::run(&hello, events, grpc),
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
        let faces = match what {
            What::Blocks | What::Lines | What::Latency => &args.face[..],
            // They have one way to follow, or all.
            What::Floor | What::Crowd => &args.face[..1],
        };
        for round in 0..args.rounds {
            for build in &builds {
                for face in faces {
                    print!("{round} {}: ", build.display());
                    args.turn(*what, build, *face);
                }
            }
        }
    }
}

impl Args {
    fn turn(&self, what: What, build: &Path, face: client::Face) {
        match what {
            What::Blocks => turn::follow(build, face, self.megabytes, 8192, self.threads),
            What::Lines => turn::follow(build, face, self.megabytes, 100, self.threads),
            What::Latency => turn::latency(build, face),
            What::Floor => floor::measure(self.megabytes),
            What::Crowd => crowd::measure(build, self.megabytes, self.events, self.grpc),
        }
    }
}
