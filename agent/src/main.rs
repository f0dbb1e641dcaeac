//! The agent program: parse, init, run.

// The macros that print panic if the stream is closed.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use remoteprocess_agent::args::{self, Cli, Command, Config};
use remoteprocess_agent::{app, install, mask, supervise};
use remoteprocess_runtime::{LogFormat, init_logs, shutdown_token};

// musl's own allocator returns every buffer of output to the kernel, which then has to provide zeroed pages again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stack of each thread: nothing here recurses.
const STACK_BYTES: usize = 512 * 1024;
/// Threads for file synchronization, started on demand.
const BLOCKING: usize = 4;

fn main() -> ExitCode {
    let cli = remoteprocess_settings::parse::<Cli>();
    remoteprocess_tls::install_crypto_provider();
    match cli.map_err(anyhow::Error::from).and_then(start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            // The kubelet shows this message. If it cannot be written, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "agent: {error:#}");
            match is_unusable(&error) {
                true => ExitCode::from(supervise::UNUSABLE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// Whether the agent was told something that it cannot do.
fn is_unusable(error: &anyhow::Error) -> bool {
    error.is::<remoteprocess_settings::Error>() || error.is::<args::Error>() || error.is::<mask::Error>()
}

fn start(cli: Cli) -> anyhow::Result<()> {
    match cli.command.unwrap_or(Command::Supervise { arguments: vec![] }) {
        Command::Install(args) => Ok(install::install(&args)?),
        Command::Supervise { arguments } => {
            init_logs(LogFormat::Auto, "info", None)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime
                .block_on(supervise::supervise(cli.config.as_deref(), &arguments))
                .context("start the agent")
        }
        Command::Run(args) => {
            init_logs(LogFormat::Auto, &args.log, None)?;
            run(Config::try_from(*args)?)
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    // Capture and hashing have threads of their own; moving a stream from thread to thread costs more than it gains.
    let runtime = tokio::runtime::Builder::new_current_thread()
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
    // The tasks that still run have nothing left to report.
    runtime.shutdown_background();
    ended
}
