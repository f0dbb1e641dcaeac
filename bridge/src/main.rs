//! The bridge binary: parse, init, run.

// The macros that print panic if the stream is closed.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use anyhow::Context as _;
use clap::Parser as _;
use remoteprocess_bridge::app;
use remoteprocess_bridge::args::{Args, Config};
use remoteprocess_runtime::{init_logs, shutdown_token};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

// A bridge waits for others most of the time: one thread is enough, and a Deployment per trigger stays small.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    remoteprocess_tls::install_crypto_provider();
    let config = Config::try_from(Args::parse())?;
    init_logs(config.log_format, &config.log_filter, None)?;
    let shutdown = shutdown_token().context("signal handlers")?;
    app::run(config, shutdown).await
}
