//! Starts the engine and the admin port, and ends them.

use std::sync::Arc;

use anyhow::Context as _;
use futures::future::BoxFuture;
use kube::Client;
use remoteprocess_runtime::prometheus_client::registry::Registry;
use remoteprocess_runtime::{Readiness, admin};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::args::{Config, Object};
use crate::engine;
use crate::sink;
use crate::sink::reader::RelayReader;
use crate::status::Metrics;

/// Runs the bridge until `shutdown`, or until its trigger or sink is gone.
///
/// # Errors
/// When the admin port cannot be bound, or there is no way to an API server.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind(config.admin_listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.admin_listen))?;
    let client = Client::try_default().await.context("no way to an API server")?;
    let (mut registry, readiness) = (Registry::default(), Readiness::default());
    let watched = readiness.gate("watch");
    let stop = shutdown.clone();
    let working: BoxFuture<'_, ()> = match config.object {
        Object::Trigger(trigger) => {
            let metrics = Metrics::default();
            metrics.register(&mut registry);
            Box::pin(engine::run(client, trigger, metrics, watched, stop))
        }
        Object::Sink(config) => {
            let (metrics, reader) = (sink::Metrics::default(), Arc::new(RelayReader::default()));
            metrics.register(&mut registry);
            Box::pin(sink::run(client, config, reader, metrics, watched, stop))
        }
    };
    let serving = admin(listener, readiness, Arc::new(registry), shutdown.clone());
    let working = async {
        working.await;
        shutdown.cancel();
    };
    tokio::join!(serving, working);
    Ok(())
}
