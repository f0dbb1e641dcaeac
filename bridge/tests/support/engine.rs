//! A bridge in this process, which can be killed.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use remoteprocess_api::ProcessTrigger;
use remoteprocess_bridge::engine::{self, Config};
use remoteprocess_bridge::source::{Secrets, Settings};
use remoteprocess_bridge::standby::{self, Led, Place};
use remoteprocess_bridge::status::Metrics;
use remoteprocess_election::Timing;
use remoteprocess_ports::free_address;
use remoteprocess_runtime::{Gate, Readiness};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Line, NAMESPACE};

/// An election whose leases are over soon.
pub(crate) const TIMING: Timing = Timing {
    lease_duration: Duration::from_secs(2),
    renew_deadline: Duration::from_secs(1),
    renew_period: Duration::from_millis(150),
    retry_period: Duration::from_millis(100),
    handover: Duration::from_secs(5),
};

/// An engine.
pub(crate) struct Bridge {
    task: JoinHandle<()>,
    shutdown: CancellationToken,
    readiness: Readiness,
    pub(crate) webhook: SocketAddr,
}

impl Bridge {
    /// Starts an engine that ends when it is told to.
    pub(crate) fn spawn<F>(webhook: SocketAddr, run: impl FnOnce(Gate, CancellationToken) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        remoteprocess_tls::install_crypto_provider();
        let (shutdown, readiness) = (CancellationToken::new(), Readiness::default());
        Self {
            task: tokio::spawn(run(readiness.gate("watch"), shutdown.clone())),
            shutdown,
            readiness,
            webhook,
        }
    }

    /// Starts that of the trigger `orders`; its webhook gets a free port.
    pub(crate) fn start(cluster: &Cluster, secrets: &Path) -> Self {
        Self::start_at(cluster, secrets, free_address())
    }

    pub(crate) fn start_at(cluster: &Cluster, secrets: &Path, webhook: SocketAddr) -> Self {
        let config = config(secrets, webhook);
        Self::spawn(webhook, |ready, shutdown| {
            engine::run(cluster.client(), config, Metrics::default(), ready, shutdown)
        })
    }

    /// Starts that of the trigger `orders`, which works while it holds the Lease.
    pub(crate) fn start_candidate(cluster: &Cluster, secrets: &Path, line: &Line) -> Self {
        let webhook = free_address();
        let config = config(secrets, webhook);
        let client = cluster.client_of(line);
        let api = client.clone();
        Self::spawn_candidate::<ProcessTrigger, _>(webhook, ("orders", line), client, move |ready, term| {
            engine::run(api.clone(), config.clone(), Metrics::default(), ready, term)
        })
    }

    /// Starts an engine that works while it holds the Lease of the object with this name.
    pub(crate) fn spawn_candidate<K: Led, F>(
        webhook: SocketAddr,
        (name, line): (&str, &Line),
        client: kube::Client,
        mut run: impl FnMut(Gate, CancellationToken) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let place = Place {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            identity: line.identity.clone(),
            timing: TIMING,
        };
        Self::spawn(webhook, |ready, shutdown| {
            let gate = (ready.clone(), standby::Metrics::default());
            let lead = move |term| run(ready.clone(), term);
            standby::run::<K, _>(client, place, gate, shutdown, lead, || {})
        })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.readiness.is_ready()
    }

    /// Ends it as SIGKILL would: nothing is finished.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Ends it as SIGTERM does.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("no panic");
    }

    /// Waits for its own end.
    pub(crate) async fn ended(self) {
        self.task.await.expect("no panic");
    }
}

/// The trigger `orders`.
fn config(secrets: &Path, webhook: SocketAddr) -> Config {
    Config {
        namespace: NAMESPACE.to_owned(),
        trigger: "orders".to_owned(),
        settings: Settings {
            secrets: Secrets::under(secrets),
            webhook,
        },
    }
}

/// Writes the keys of a Secret.
pub(crate) fn write_secret(directory: &Path, secret: &str, keys: &[(&str, &str)]) {
    let directory = directory.join(secret);
    std::fs::create_dir_all(&directory).expect("a directory");
    for (key, value) in keys {
        std::fs::write(directory.join(key), value).expect("a file");
    }
}
