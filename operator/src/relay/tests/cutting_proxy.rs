//! A TCP proxy in front of the relay that cuts its first connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A running proxy; dropping it takes no more connections.
pub(super) struct CuttingProxy {
    pub address: SocketAddr,
    cuts: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl CuttingProxy {
    /// Forwards to the relay. Each of the first `count` connections ends after `enough` bytes of the relay.
    pub(super) async fn start(relay: SocketAddr, count: usize, enough: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = Arc::new(AtomicUsize::new(0));
        let counter = cuts.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = 0;
            while let Ok((client, _)) = listener.accept().await {
                let limit = if connections < count { enough } else { u64::MAX };
                connections += 1;
                let cuts = counter.clone();
                tokio::spawn(async move {
                    if carry(client, relay, limit).await {
                        cuts.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Self {
            address,
            cuts,
            accepting,
        }
    }

    /// Connections that were cut so far.
    pub(super) fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for CuttingProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries a connection until one side ends it or the relay has sent `limit` bytes; returns whether it was the limit.
async fn carry(mut client: TcpStream, relay: SocketAddr, limit: u64) -> bool {
    let Ok(mut server) = TcpStream::connect(relay).await else {
        return false;
    };
    let (mut from_client, mut to_client) = client.split();
    let (from_server, mut to_server) = server.split();
    let mut allowed = from_server.take(limit);
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => false,
        sent = copy(&mut allowed, &mut to_client) => sent.is_ok_and(|sent| sent == limit),
    }
}
