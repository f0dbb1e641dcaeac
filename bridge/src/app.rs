//! Starts the engine and the admin port, and ends them.

use std::sync::Arc;

use anyhow::Context as _;
use futures::future::BoxFuture;
use kube::Client;
use remoteprocess_api::{ProcessSink, ProcessTrigger};
use remoteprocess_runtime::prometheus_client::registry::Registry;
use remoteprocess_runtime::{Gate, Readiness, admin};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::args::{Config, Object};
use crate::engine;
use crate::sink;
use crate::sink::reader::RelayReader;
use crate::standby::{self, Place, TIMING};
use crate::status;

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
    let working = work(client, config, &mut registry, watched, shutdown.clone());
    let serving = admin(listener, readiness, Arc::new(registry), shutdown.clone());
    let working = async {
        working.await;
        shutdown.cancel();
    };
    tokio::join!(serving, working);
    Ok(())
}

/// Works while this pod holds the lease.
fn work(
    client: Client,
    config: Config,
    registry: &mut Registry,
    ready: Gate,
    shutdown: CancellationToken,
) -> BoxFuture<'static, ()> {
    let election = standby::Metrics::default();
    election.register(registry);
    let gate = (ready.clone(), election);
    let place = |namespace: &str, name: &str| Place {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        identity: config.identity.clone(),
        timing: TIMING,
    };
    let end = shutdown.clone();
    match config.object {
        Object::Trigger(config) => {
            let (metrics, api) = (status::Metrics::default(), client.clone());
            metrics.register(registry);
            let (place, idle) = (place(&config.namespace, &config.trigger), metrics.clone());
            let lead = move |term: CancellationToken| {
                let work = engine::run(api.clone(), config.clone(), metrics.clone(), ready.clone(), term);
                unless_over(work, end.clone())
            };
            Box::pin(standby::run::<ProcessTrigger, _>(
                client,
                place,
                gate,
                shutdown,
                lead,
                move || idle.idle(),
            ))
        }
        Object::Sink(config) => {
            let (metrics, reader, api) = (
                sink::Metrics::default(),
                Arc::new(RelayReader::default()),
                client.clone(),
            );
            metrics.register(registry);
            let (place, idle) = (place(&config.namespace, &config.sink), metrics.clone());
            let lead = move |term: CancellationToken| {
                let (reader, ready) = (reader.clone(), ready.clone());
                let work = sink::run(api.clone(), config.clone(), reader, metrics.clone(), ready, term);
                unless_over(work, end.clone())
            };
            Box::pin(standby::run::<ProcessSink, _>(
                client,
                place,
                gate,
                shutdown,
                lead,
                move || idle.idle(),
            ))
        }
    }
}

/// Work that ends by itself has lost its trigger or sink: the bridge ends, too.
async fn unless_over(work: impl Future<Output = ()>, end: CancellationToken) {
    work.await;
    end.cancel();
}
