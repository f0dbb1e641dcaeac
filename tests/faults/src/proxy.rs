//! A TCP proxy that damages the connections through it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::net::sockopt::ip_original_dst;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// Bytes read at once.
const PART: usize = 64 * 1024;
/// Parts in transit in one direction: a delayed connection holds at most 4 MiB.
const UNDERWAY: usize = 64;

/// What happens to each connection.
#[derive(Clone, Debug, Default)]
pub struct Harm {
    /// It ends after this many bytes in both directions together; drawn again for each connection.
    pub cut_after: Option<RangeInclusive<u64>>,
    /// Percentage of these that hang instead of ending, with both ends open.
    pub half_open_percent: u32,
    /// Delay of each byte, in either direction.
    pub delay: Duration,
    /// Maximum number of bytes per second, in each direction.
    pub rate: Option<u64>,
}

/// Where connections are forwarded.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// This address.
    Fixed(SocketAddr),
    /// Where each connection was sent before the node's netfilter rules redirected it (`SO_ORIGINAL_DST`); such a proxy
    /// listens on every address of the node.
    Original,
}

impl Target {
    fn of(self, client: &TcpStream) -> io::Result<SocketAddr> {
        match self {
            Self::Fixed(target) => Ok(target),
            Self::Original => Ok(ip_original_dst(client)?.into()),
        }
    }
}

/// A listening proxy. Dropping it ends it and every connection.
pub struct Proxy {
    address: SocketAddr,
    counts: Arc<Counts>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    cuts: AtomicU64,
}

/// The remaining bytes of one connection, shared by both directions.
struct Fate {
    left: AtomicU64,
    is_half_open: bool,
    ended: watch::Sender<bool>,
}

impl Proxy {
    /// Listens on a port of its own and forwards everything to `target`. The same seed draws the same cuts.
    ///
    /// # Errors
    /// When there is no port or no thread.
    pub fn start(target: Target, harm: Harm, seed: u64) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let interface = match target {
            Target::Fixed(_) => Ipv4Addr::LOCALHOST,
            Target::Original => Ipv4Addr::UNSPECIFIED,
        };
        let listener = runtime.block_on(TcpListener::bind((interface, 0)))?;
        let address = listener.local_addr()?;
        let counts = Arc::new(Counts::default());
        runtime.spawn(accept(listener, target, harm, seed, counts.clone()));
        Ok(Self {
            address,
            counts,
            runtime: Some(runtime),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Connections that were cut or hung so far.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.counts.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, target: Target, harm: Harm, seed: u64, counts: Arc<Counts>) {
    let rng = Mutex::new(StdRng::seed_from_u64(seed));
    while let Ok((client, _)) = listener.accept().await {
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let fate = Arc::new(Fate::draw(
            &harm,
            &mut rng.lock().unwrap_or_else(PoisonError::into_inner),
        ));
        tokio::spawn(connect(client, target, harm.clone(), fate, counts.clone()));
    }
}

impl Fate {
    fn draw(harm: &Harm, rng: &mut StdRng) -> Self {
        let left = harm.cut_after.clone().map_or(u64::MAX, |range| rng.random_range(range));
        Self {
            left: AtomicU64::new(left),
            is_half_open: rng.random_range(0..100) < harm.half_open_percent,
            ended: watch::Sender::new(false),
        }
    }

    /// Subtracts bytes; returns false if the limit is exceeded.
    fn spend(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left == u64::MAX).then_some(left).or_else(|| left.checked_sub(bytes))
        });
        if taken.is_err() {
            self.ended.send_replace(true);
        }
        taken.is_ok()
    }
}

async fn connect(client: TcpStream, target: Target, harm: Harm, fate: Arc<Fate>, counts: Arc<Counts>) {
    let Ok(target) = target.of(&client) else { return };
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    // If this fails, the first byte fails, too.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut ended = fate.ended.subscribe();
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let both = async {
        tokio::join!(
            carry(from_client, to_server, &harm, &fate),
            carry(from_server, to_client, &harm, &fate),
        );
    };
    let mut both = std::pin::pin!(both);
    tokio::select! {
        () = &mut both => return,
        // The sender lives as long as the connection.
        _ = ended.wait_for(|ended| *ended) => {}
    }
    counts.cuts.fetch_add(1, Ordering::Relaxed);
    if fate.is_half_open {
        // `both` holds the sockets, and no task moves bytes anymore.
        std::future::pending::<()>().await;
    }
}

/// One direction, to its end.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, harm: &Harm, fate: &Fate) {
    let (sender, mut parts) = mpsc::channel::<(Instant, Vec<u8>)>(UNDERWAY);
    let reading = async {
        let mut buffer = vec![0; PART];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + harm.delay;
            if !fate.spend(length) {
                // `connect` counts the cut, and then ends both directions or lets them hang: no end may be seen before.
                return std::future::pending().await;
            }
            if sender.send((due, buffer[..length].to_vec())).await.is_err() {
                break;
            }
        }
        drop(sender);
    };
    let writing = async {
        while let Some((due, part)) = parts.recv().await {
            sleep_until(due).await;
            if to.write_all(&part).await.is_err() {
                return;
            }
            if let Some(rate) = harm.rate {
                sleep(Duration::from_secs_f64(part.len() as f64 / rate as f64)).await;
            }
        }
        // The other side may still send something.
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener as Listener, TcpStream as Stream};
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// A server that sends `bytes` to each client.
    fn server(bytes: usize) -> SocketAddr {
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                thread::spawn(move || stream.write_all(&vec![7; bytes]));
            }
        });
        address
    }

    fn received(proxy: &Proxy) -> usize {
        let mut stream = Stream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let (mut count, mut buffer) = (0, vec![0; 65536]);
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            count += length;
        }
        count
    }

    #[test]
    fn without_harm_everything_passes() {
        let proxy = Proxy::start(Target::Fixed(server(3_000_000)), Harm::default(), 1).unwrap();
        assert_eq!(received(&proxy), 3_000_000);
        assert_eq!((proxy.connections(), proxy.cuts()), (1, 0));
    }

    #[test]
    fn each_connection_is_cut_within_the_range() {
        let harm = Harm {
            cut_after: Some(500_000..=1_000_000),
            ..Harm::default()
        };
        let proxy = Proxy::start(Target::Fixed(server(3_000_000)), harm, 1).unwrap();
        for _ in 0..3 {
            assert!(received(&proxy) <= 1_000_000);
        }
        assert_eq!((proxy.connections(), proxy.cuts()), (3, 3));
    }

    #[test]
    fn a_half_open_connection_is_silent_and_stays() {
        let harm = Harm {
            cut_after: Some(500_000..=1_000_000),
            half_open_percent: 100,
            ..Harm::default()
        };
        let proxy = Proxy::start(Target::Fixed(server(3_000_000)), harm, 1).unwrap();
        let begin = Instant::now();
        assert!(received(&proxy) <= 1_000_000);
        assert!(begin.elapsed() >= Duration::from_secs(2), "the read ended early");
    }

    #[test]
    fn delay_and_rate_are_kept() {
        let harm = Harm {
            delay: Duration::from_millis(200),
            rate: Some(1_000_000),
            ..Harm::default()
        };
        let proxy = Proxy::start(Target::Fixed(server(500_000)), harm, 1).unwrap();
        let begin = Instant::now();
        assert_eq!(received(&proxy), 500_000);
        assert!(begin.elapsed() >= Duration::from_millis(600), "{:?}", begin.elapsed());
    }
}
