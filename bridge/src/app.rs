//! Starts the engine and the admin port, and ends them.

use std::sync::Arc;

use anyhow::Context as _;
use kube::Client;
use remoteprocess_runtime::prometheus_client::registry::Registry;
use remoteprocess_runtime::{Readiness, admin};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::args::Config;
use crate::engine;
use crate::status::Metrics;

/// Runs the bridge until `shutdown`, or until its trigger is gone.
///
/// # Errors
/// When the admin port cannot be bound, or there is no way to an API server.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind(config.admin_listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.admin_listen))?;
    let client = Client::try_default().await.context("no way to an API server")?;
    let (metrics, mut registry, readiness) = (Metrics::default(), Registry::default(), Readiness::default());
    metrics.register(&mut registry);
    let watched = readiness.gate("watch");
    let serving = admin(listener, readiness, Arc::new(registry), shutdown.clone());
    let working = async {
        engine::run(client, config.engine, metrics, watched, shutdown.clone()).await;
        shutdown.cancel();
    };
    tokio::join!(serving, working);
    Ok(())
}
