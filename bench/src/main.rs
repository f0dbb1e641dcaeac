//! Measures ours and its rivals in turn on the same cluster, in one run: ratios, never gates.
//!
//! Arrows: the end-to-end tests, for their fixtures.
//! Invariant: contenders take turns within each round, so that other load on the machine affects all of them.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use remoteprocess_e2e::{Namespace, with_temp_ns};

mod burst;
mod contender;
mod cpu;
mod crowd;
mod delivery;
mod fan_out;
mod first;
mod follow;
mod follower;
mod latency;
mod proxy;
mod report;
mod route;
mod scale;
mod slowdown;
mod stalled;
mod startup;
mod subject;

/// Measures against kubectl logs, kubectl exec, a bare pod and a Job, and prints Markdown.
#[derive(Parser)]
struct Args {
    /// Only these parts
    #[arg(long, value_delimiter = ',')]
    only: Vec<Section>,
    /// Rounds of each part but the last
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Rounds of the start-and-end benchmark
    #[arg(long, default_value_t = 11)]
    starts: usize,
    /// Megabytes to follow and to write
    #[arg(long, default_value_t = 100)]
    megabytes: usize,
    /// Lines of each round of the latency
    #[arg(long, default_value_t = 400)]
    lines: usize,
    /// Megabytes for each of fifty followers
    #[arg(long, default_value_t = 8)]
    fan_out_megabytes: usize,
    /// Processes that start at once
    #[arg(long, default_value_t = 30)]
    burst: usize,
    /// Sizes of the part `scale`
    #[command(flatten)]
    scale: scale::ScaleArgs,
    /// How the run is called, for the head of the report
    #[arg(long, default_value = "cargo xtask bench")]
    command: String,
    /// Wait for the end of standard input, then remove what the part `scale` left in this namespace
    #[arg(long, hide = true)]
    clean: Option<String>,
    /// Replicas of the operator after that
    #[arg(long, hide = true, default_value_t = 1)]
    replicas: usize,
}

/// A part of the report.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    Follow,
    Latency,
    FanOut,
    Stalled,
    Slowdown,
    Starts,
    First,
    Burst,
    /// Takes minutes, replaces the operator's pod, and removes what it left after an interrupt: only with `--only`.
    Scale,
}

impl Args {
    fn includes(&self, section: Section) -> bool {
        match self.only.as_slice() {
            [] => section != Section::Scale,
            only => only.contains(&section),
        }
    }

    fn measure(&self, section: Section, namespace: &Namespace) -> Result<String> {
        match section {
            Section::Follow => follow::measure(namespace, self.rounds, self.megabytes),
            Section::Latency => latency::measure(namespace, self.rounds, self.lines),
            Section::FanOut => fan_out::measure(namespace, self.rounds, self.fan_out_megabytes),
            Section::Stalled => stalled::measure(namespace, self.rounds, self.megabytes),
            Section::Slowdown => slowdown::measure(namespace, self.rounds, self.megabytes),
            Section::Starts => startup::measure(namespace, self.starts),
            Section::First => first::measure(namespace, self.starts),
            Section::Burst => burst::measure(namespace, self.rounds, self.burst),
            Section::Scale => scale::measure(namespace, self.rounds, &self.scale),
        }
    }
}

fn main() {
    let args = Args::parse();
    if let Some(namespace) = &args.clean {
        scale::clean(namespace, args.replicas).expect("everything is removed");
        return;
    }
    let mut report = String::new();
    with_temp_ns("bench", |namespace| {
        let load = report::load()?;
        let mut parts = Vec::new();
        for section in Section::value_variants() {
            if args.includes(*section) {
                parts.push(args.measure(*section, namespace)?);
            }
        }
        parts.insert(0, report::head(&args.command, &load)?);
        report = parts.join("\n");
        Ok(())
    });
    println!("{report}");
}
