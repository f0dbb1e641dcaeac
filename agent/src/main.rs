//! The agent program: parse, init, run.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use remoteprocess_agent::args::{Cli, Command, Config};
use remoteprocess_agent::{app, install, mask, supervise};
use remoteprocess_runtime::{LogFormat, init_logs, shutdown_token};

/// Threads that serve; capture and hashing have their own.
const WORKERS: usize = 2;
/// Stack of each: nothing here recurses.
const STACK_BYTES: usize = 512 * 1024;
/// Threads that come and go for file synchronisation.
const BLOCKING: usize = 4;

fn main() -> ExitCode {
    let cli = Cli::parse();
    remoteprocess_tls::install_crypto_provider();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("agent: {error:#}");
            match error.downcast_ref::<mask::Error>() {
                Some(_) => ExitCode::from(supervise::UNUSABLE),
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    match cli.command.unwrap_or(Command::Supervise { arguments: vec![] }) {
        Command::Install(args) => Ok(install::install(&args)?),
        Command::Supervise { arguments } => {
            init_logs(LogFormat::Auto, "info")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime
                .block_on(supervise::supervise(&arguments))
                .context("start the agent")
        }
        Command::Run(args) => {
            init_logs(LogFormat::Auto, &args.log)?;
            run(Config::try_from(*args)?)
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(STACK_BYTES)
        .thread_keep_alive(Duration::from_secs(1))
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let shutdown = shutdown_token().context("install signal handlers")?;
        if config.draining {
            shutdown.cancel();
        }
        app::run(config, shutdown).await
    });
    // Whatever still runs has nothing to say any more.
    runtime.shutdown_background();
    ended
}
