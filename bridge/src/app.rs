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
use crate::standby::{self, Led, Place, TIMING};
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
    let api = client.clone();
    let candidate = Campaign {
        client,
        identity: config.identity,
        gate: (ready.clone(), election),
        shutdown,
    };
    match config.object {
        Object::Trigger(config) => {
            let metrics = status::Metrics::default();
            metrics.register(registry);
            let (place, idle) = ((config.namespace.clone(), config.trigger.clone()), metrics.clone());
            let lead = move |term| engine::run(api.clone(), config.clone(), metrics.clone(), ready.clone(), term);
            candidate.run::<ProcessTrigger, _>(place, lead, move || idle.idle())
        }
        Object::Sink(config) => {
            let (metrics, reader) = (sink::Metrics::default(), Arc::new(RelayReader::default()));
            metrics.register(registry);
            let (place, idle) = ((config.namespace.clone(), config.sink.clone()), metrics.clone());
            let lead = move |term| {
                let (reader, ready) = (reader.clone(), ready.clone());
                sink::run(api.clone(), config.clone(), reader, metrics.clone(), ready, term)
            };
            candidate.run::<ProcessSink, _>(place, lead, move || idle.idle())
        }
    }
}

/// What a candidate needs, for a trigger as for a sink.
struct Campaign {
    client: Client,
    identity: String,
    gate: (Gate, standby::Metrics),
    shutdown: CancellationToken,
}

impl Campaign {
    /// Runs `lead` while this pod holds the lease of the object with this namespace and name.
    fn run<K: Led, Work: Future<Output = ()> + Send + 'static>(
        self,
        (namespace, name): (String, String),
        lead: impl Fn(CancellationToken) -> Work + Send + 'static,
        idle: impl Fn() + Send + 'static,
    ) -> BoxFuture<'static, ()> {
        let place = Place {
            namespace,
            name,
            identity: self.identity,
            timing: TIMING,
        };
        let end = self.shutdown.clone();
        let lead = move |term| unless_over(lead(term), end.clone());
        Box::pin(standby::run::<K, _>(
            self.client,
            place,
            self.gate,
            self.shutdown,
            lead,
            idle,
        ))
    }
}

/// Work that ends by itself has lost its trigger or sink: the bridge ends, too.
async fn unless_over(work: impl Future<Output = ()>, end: CancellationToken) {
    work.await;
    end.cancel();
}
