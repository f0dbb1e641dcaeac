//! A bridge in this process, which can be killed.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::SocketAddr;
use std::path::Path;

use remoteprocess_bridge::engine::{self, Config};
use remoteprocess_bridge::source::{Secrets, Settings};
use remoteprocess_bridge::status::Metrics;
use remoteprocess_ports::free_address;
use remoteprocess_runtime::{Gate, Readiness};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, NAMESPACE};

/// An engine.
pub(crate) struct Bridge {
    task: JoinHandle<()>,
    shutdown: CancellationToken,
    pub(crate) webhook: SocketAddr,
}

impl Bridge {
    /// Starts an engine that ends when it is told to.
    pub(crate) fn spawn<F>(webhook: SocketAddr, run: impl FnOnce(Gate, CancellationToken) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        remoteprocess_tls::install_crypto_provider();
        let (shutdown, ready) = (CancellationToken::new(), Readiness::default().gate("watch"));
        Self {
            task: tokio::spawn(run(ready, shutdown.clone())),
            shutdown,
            webhook,
        }
    }

    /// Starts that of the trigger `orders`; its webhook gets a free port.
    pub(crate) fn start(cluster: &Cluster, secrets: &Path) -> Self {
        Self::start_at(cluster, secrets, free_address())
    }

    pub(crate) fn start_at(cluster: &Cluster, secrets: &Path, webhook: SocketAddr) -> Self {
        let config = Config {
            namespace: NAMESPACE.to_owned(),
            trigger: "orders".to_owned(),
            settings: Settings {
                secrets: Secrets::under(secrets),
                webhook,
            },
        };
        Self::spawn(webhook, |ready, shutdown| {
            engine::run(cluster.client(), config, Metrics::default(), ready, shutdown)
        })
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

/// Writes the keys of a Secret.
pub(crate) fn write_secret(directory: &Path, secret: &str, keys: &[(&str, &str)]) {
    let directory = directory.join(secret);
    std::fs::create_dir_all(&directory).expect("a directory");
    for (key, value) in keys {
        std::fs::write(directory.join(key), value).expect("a file");
    }
}
