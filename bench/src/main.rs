//! Ours and the rivals in turn on the same cluster, in one run: ratios, never gates.
//!
//! Arrows: the end-to-end tests, for their fixtures.
//! Invariant: contenders take turns within each round, so that whatever else the machine does falls on all of them.

use clap::Parser;
use remoteprocess_e2e::with_temp_ns;

mod cpu;
mod follow;
mod report;
mod startup;

/// Measures against kubectl logs, kubectl exec, a bare pod and a Job, and prints Markdown.
#[derive(Parser)]
struct Args {
    /// Rounds of the stream benchmark
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Rounds of the start-and-end benchmark
    #[arg(long, default_value_t = 11)]
    starts: usize,
    /// Megabytes to follow
    #[arg(long, default_value_t = 100)]
    megabytes: usize,
    /// How the run is called, for the head of the report
    #[arg(long, default_value = "cargo xtask bench")]
    command: String,
}

fn main() {
    let args = Args::parse();
    let mut report = String::new();
    with_temp_ns("bench", |namespace| {
        let follow = follow::measure(namespace, args.rounds, args.megabytes)?;
        let starts = startup::measure(namespace, args.starts)?;
        report = [report::head(&args.command)?, follow, starts].join("\n");
        Ok(())
    });
    println!("{report}");
}
