//! The operator binary: parse, init, run.

// The macros that print panic if the stream is closed.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use anyhow::Context;
use remoteprocess_operator::app;
use remoteprocess_operator::args::{Args, Config};
use remoteprocess_runtime::{init_logs, shutdown_token};

// musl's own allocator serializes the threads of the relay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    remoteprocess_tls::install_crypto_provider();
    let config = Config::try_from(remoteprocess_settings::parse::<Args>()?)?;
    init_logs(config.log_format, &config.log_filter, config.audit.as_ref())?;
    let shutdown = shutdown_token().context("signal handlers")?;
    app::run(config, shutdown).await
}
