//! The load of `bench/locust/`: the same messages by each way to a program, on the development cluster.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::cluster::{State, brokers};
use crate::steps::step;
use crate::target::Target;
use crate::{exec, install, paths};

/// What to send.
#[derive(Args)]
pub(crate) struct LoadArgs {
    /// Number of messages that each way gets. One or two programs start per second, so 100 take about ten minutes.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    messages: u32,
    /// Folder for the reports, which is made; by default `load` in the cache folder.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only these ways: http, nats, rabbitmq, pubsub, grpc-client-stream, grpc-server-stream.
    #[arg(long)]
    only: Option<String>,
    /// JSON file with the messages, instead of bench/locust/traffic.json.
    #[arg(long)]
    traffic: Option<PathBuf>,
    /// JSON file with the shape of the load, instead of bench/locust/shape.json.
    #[arg(long)]
    shape: Option<PathBuf>,
}

/// Installs the operator on the development cluster, starts the brokers, and sends the messages; an error if one was lost or
/// doubled. The brokers keep running.
pub(crate) fn load(args: &LoadArgs) -> Result<()> {
    let out = match &args.out {
        Some(folder) => folder.clone(),
        None => paths::cache()?.join("load"),
    };
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let target = Target::development(State::of_this_user()?, None)?;
    let installation = install::install(&target)?;
    let brokers = brokers::up()?;
    step("load", || {
        let mut load = Command::new("python3");
        load.arg(folder().join("load.py"))
            .arg("--messages")
            .arg(args.messages.to_string())
            .arg("--out")
            .arg(&out);
        let options = [("--traffic", &args.traffic), ("--shape", &args.shape)];
        for (option, path) in options {
            load.args(path.iter().flat_map(|path| [OsStr::new(option), path.as_os_str()]));
        }
        load.args(args.only.iter().flat_map(|only| ["--only", only]));
        load.env("LOAD_NATS", &brokers.nats)
            .env("LOAD_RABBITMQ", &brokers.rabbitmq);
        load.envs(brokers.pubsub.iter().map(|address| ("LOAD_PUBSUB", address)));
        installation.images.describe(&mut load, &target);
        exec::run(&mut load)
    })
}

/// Runs the tests of what is pure in `bench/locust/`: percentiles, traffic and shape files, and who gets which message.
pub(crate) fn unit_tests() -> Result<()> {
    let mut python = Command::new("python3");
    // Without files of compiled code in the checkout.
    python.args(["-B", "-m", "unittest", "--quiet", "tests"]);
    exec::output(python.current_dir(folder())).map(drop)
}

fn folder() -> PathBuf {
    paths::repository().join("bench/locust")
}
