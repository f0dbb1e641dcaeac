//! Starts all parts of the operator and ends them in order.

mod lead;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use kube::Client;
use remoteprocess_runtime::prometheus_client::registry::Registry;
use remoteprocess_runtime::{Readiness, admin};
use remoteprocess_tls::{ClientAuth, Dialer, Role, serve};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::args::Config;
use crate::authority::metrics::{enroll_limits, main_limits};
use crate::authority::{AuthorityConfig, AuthorityHandle, csr};
use crate::controller;
use crate::directory::Directory;
use crate::relay::archive::{Archive, Retention, retain};
use crate::relay::attempt::Agent;
use crate::relay::attempt::AttemptKey;
use crate::relay::core::Core;
use crate::relay::core::authorize::Authorizer;
use crate::relay::core::streams::Streams;
use crate::relay::enroll::EnrollmentService;
use crate::relay::faces::{Faces, Switches};
use crate::relay::grpc::agent::{Connect, ConnectError};
use crate::relay::grpc::peers::Peers;
use crate::relay::live::{Budget, Context, LiveAttempts};
use crate::relay::reconcile::{self, Reconciler};
use crate::relay::status::Recorder;
use crate::trace::Exporter;

use lead::lead;

/// Maximum memory of the rings of all live attempts together, in bytes: part of the 512 MiB that the chart gives a
/// replica.
const RING_MEMORY: usize = 96 << 20;
/// Pause between two attempts to load the authority while the API server is unavailable.
const AGAIN: Duration = Duration::from_secs(1);

/// The sockets, bound before anything else so that a port in use is noticed at once.
struct Listeners {
    relay: TcpListener,
    enroll: TcpListener,
    admin: TcpListener,
}

/// Reaches agents over mutual TLS.
struct AgentDialer(Dialer);

/// Runs the operator until `shutdown`.
///
/// # Errors
/// When a port cannot be bound, the archive cannot be opened, or there is no way to an API server.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listeners = Listeners::bind(&config).await?;
    let client = Client::try_default().await.context("no way to an API server")?;
    let archive = Archive::open(&config.archive).context("the archive")?;
    let (traces, over) = (traces(&config)?, CancellationToken::new());
    let readiness = Readiness::default();
    let (certified, watched) = (readiness.gate("certificate"), readiness.gate("watch"));
    let admin = admin(listeners.admin, readiness, Arc::new(metrics()), shutdown.clone());
    let operate = async {
        let Some(authority) = shutdown.run_until_cancelled(authority(&client, &config)).await else {
            return;
        };
        certified.open();
        info!(replica = config.replica, "the authority is loaded");
        let relay = Relay::new(&config, &client, &authority, archive, &shutdown);
        tokio::join!(
            authority.run(shutdown.clone()),
            csr::run(client.clone(), authority.clone(), shutdown.clone()),
            relay.run(
                &config,
                client.clone(),
                &authority,
                (listeners.relay, listeners.enroll),
                || watched.open()
            ),
            lead(
                &config,
                &client,
                &authority,
                &relay.directory,
                || relay.retain(config.retention),
                &shutdown
            ),
        );
    };
    let operate = async {
        operate.await;
        over.cancel();
    };
    let send = async {
        if let Some(traces) = traces {
            traces.run(over.clone()).await;
        }
    };
    tokio::join!(admin, operate, send);
    Ok(())
}

/// Turns traces on, if there is a receiver.
fn traces(config: &Config) -> anyhow::Result<Option<Exporter>> {
    let exporter = |otlp| Exporter::new(otlp, &config.namespace, &config.replica);
    let exporter = config.tracing.as_ref().map(exporter).transpose();
    exporter.context("--tracing-otlp-endpoint or --tracing-otlp-ca")
}

impl Listeners {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        let bind = async |address| {
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))
        };
        Ok(Self {
            relay: bind(config.relay_listen).await?,
            enroll: bind(config.enroll_listen).await?,
            admin: bind(config.admin_listen).await?,
        })
    }
}

impl Connect for AgentDialer {
    fn connect<'a>(&'a self, agent: &'a Agent) -> BoxFuture<'a, Result<tonic::transport::Channel, ConnectError>> {
        let role = Role::Agent {
            namespace: agent.namespace.clone(),
            pod_uid: agent.pod_uid.clone(),
        };
        Box::pin(async move { Ok(self.0.connect(&agent.address, &role).await?) })
    }
}

/// The metrics of all parts.
fn metrics() -> Registry {
    let mut metrics = Registry::default();
    crate::relay::metrics::register(&mut metrics);
    crate::relay::calls::register(&mut metrics);
    controller::metrics::register(&mut metrics);
    crate::authority::metrics::register(&mut metrics);
    crate::timeline::register(&mut metrics);
    crate::trace::register(&mut metrics);
    metrics
}

/// Loads the authority, and retries while the API server is unavailable.
async fn authority(client: &Client, config: &Config) -> Arc<AuthorityHandle> {
    loop {
        let settings = AuthorityConfig {
            namespace: config.namespace.clone(),
            trust_domain: config.trust_domain.clone(),
            server: config.server.clone(),
            login: config.agent.relay_enroll.clone(),
            source: config.ca_source.clone(),
            schedule: config.ca_schedule,
        };
        match AuthorityHandle::load_or_create(client.clone(), settings).await {
            Ok(authority) => return authority,
            Err(error) => {
                warn!(
                    category = error.category(),
                    error = &error as &dyn std::error::Error,
                    "no authority yet"
                );
                sleep(AGAIN).await;
            }
        }
    }
}

/// The parts of the relay that live as long as the operator.
struct Relay {
    directory: Directory,
    attempts: LiveAttempts,
    archive: Archive,
    recorder: Recorder,
    faces: Switches,
    /// Fires when the directory has received its first lists.
    delivered: CancellationToken,
    shutdown: CancellationToken,
}

impl Relay {
    fn new(
        config: &Config,
        client: &Client,
        authority: &AuthorityHandle,
        archive: Archive,
        shutdown: &CancellationToken,
    ) -> Self {
        let recorder = Recorder::new(client.clone(), config.replica.clone());
        let context = Context {
            archive: archive.clone(),
            connect: Arc::new(AgentDialer(Dialer::new(authority.identity()))),
            peers: Peers::by_name(Dialer::new(authority.identity()), config.peers.clone()),
            record: Box::new(recorder.clone()),
            memory: Arc::new(Budget::new(RING_MEMORY)),
            shutdown: shutdown.clone(),
        };
        Self {
            directory: Directory::default(),
            attempts: LiveAttempts::new(Arc::new(context)),
            archive,
            recorder,
            faces: config.faces,
            delivered: CancellationToken::new(),
            shutdown: shutdown.clone(),
        }
    }

    /// Keeps the archive within its limits; never returns.
    fn retain(&self, retention: Retention) -> impl Future<Output = ()> + use<> {
        let (archive, directory, delivered) = (self.archive.clone(), self.directory.clone(), self.delivered.clone());
        async move {
            delivered.cancelled().await;
            retain(&archive, retention, |uid| directory.has(uid)).await;
        }
    }

    /// Serves both listeners once the watch has delivered, after recording what an earlier replica left undone.
    async fn run(
        &self,
        config: &Config,
        client: Client,
        authority: &Arc<AuthorityHandle>,
        listeners: (TcpListener, TcpListener),
        ready: impl FnOnce() + Send,
    ) {
        let changes = self.directory.subscribe();
        let watch = self.directory.run(
            client.clone(),
            &config.watch_namespaces,
            || {
                ready();
                self.delivered.cancel();
            },
            &self.shutdown,
        );
        let served = async {
            if self
                .shutdown
                .run_until_cancelled(self.delivered.cancelled())
                .await
                .is_some()
            {
                self.serve(client.clone(), authority, listeners).await;
            }
            self.attempts.drained().await;
        };
        let reconciler = Reconciler {
            directory: self.directory.clone(),
            attempts: self.attempts.clone(),
            recorder: self.recorder.clone(),
        };
        tokio::select! {
            ((), ()) = async { tokio::join!(served, watch) } => {}
            () = reconciler.run(changes) => {}
        }
    }

    async fn serve(&self, client: Client, authority: &Arc<AuthorityHandle>, listeners: (TcpListener, TcpListener)) {
        let core = Core {
            directory: self.directory.clone(),
            live: self.attempts.clone(),
            archive: self.archive.clone(),
            authorizer: Authorizer::new(client.clone()),
            recorder: self.recorder.clone(),
            streams: Streams::default(),
            shutdown: self.shutdown.clone(),
        };
        let service = Faces::new(core, self.faces);
        let attempts = self.attempts.clone();
        let enrollment = EnrollmentService::new(client, authority.clone(), move |uid, attempt| {
            let key = AttemptKey {
                uid: uid.to_owned(),
                attempt,
            };
            attempts.get(&key).is_some_and(|live| live.is_connected())
        });
        let identity = authority.identity();
        let (relay, enroll) = listeners;
        let record_archived_ends =
            reconcile::record_archived_ends(&self.directory, &self.archive, &self.attempts, &self.recorder);
        tokio::join!(
            serve(
                relay,
                identity.clone(),
                ClientAuth::Required,
                service,
                main_limits(self.faces.http),
                self.shutdown.clone(),
            ),
            serve(
                enroll,
                identity,
                ClientAuth::None,
                enrollment.into_server(),
                enroll_limits(),
                self.shutdown.clone(),
            ),
            self.shutdown.run_until_cancelled(record_archived_ends),
        );
    }
}

#[cfg(test)]
mod tests;
