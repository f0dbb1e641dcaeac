//! TCP between the simulated hosts; some of the connections break.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use remoteprocess_tls::{Dialer, Listener, Role};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::Channel;
use turmoil::net::{TcpListener, TcpStream};

use super::plan::Plan;

/// Every service listens here, each on its own host.
pub(super) const PORT: u16 = 8443;

/// Decides which connections break, and when.
pub(super) struct Network {
    rng: Mutex<StdRng>,
    frailty: u32,
    open: Mutex<Vec<Open>>,
    cuts: Arc<AtomicU64>,
}

struct Open {
    ends: [String; 2],
    cut: CancellationToken,
}

/// What happens to a connection after a number of bytes in both directions.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// An error, as after a reset.
    Reset,
    /// Silence: a half-open connection.
    Freeze,
}

/// The dialing side of a connection.
pub(super) struct Frail {
    io: TcpStream,
    left: u64,
    fate: Fate,
    /// Maximum number of bytes per second that are taken from the network.
    rate: Option<u64>,
    rest: Option<Pin<Box<Sleep>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    cuts: Arc<AtomicU64>,
}

impl Network {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            rng: Mutex::new(StdRng::seed_from_u64(!plan.seed)),
            frailty: plan.frailty,
            open: Mutex::default(),
            cuts: Arc::default(),
        }
    }

    pub(super) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }

    pub(super) fn choose(&self, from: &[usize]) -> Option<usize> {
        from.choose(&mut *self.rng()).copied()
    }

    /// Ends every connection between two hosts.
    pub(super) fn cut(&self, a: &str, b: &str) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|open| {
            let is_meant = open.ends == [a, b] || open.ends == [b, a];
            if is_meant {
                open.cut.cancel();
            }
            !is_meant
        });
    }

    fn rng(&self) -> std::sync::MutexGuard<'_, StdRng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection from one host to another.
    pub(super) async fn open(&self, from: String, to: String, rate: Option<u64>) -> io::Result<Frail> {
        let io = TcpStream::connect((to.as_str(), PORT)).await?;
        let (left, fate) = self.fate();
        let cut = CancellationToken::new();
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(Open {
            ends: [from, to],
            cut: cut.clone(),
        });
        Ok(Frail {
            io,
            left,
            fate,
            rate,
            rest: None,
            cut: Box::pin(cut.cancelled_owned()),
            cuts: self.cuts.clone(),
        })
    }

    fn fate(&self) -> (u64, Fate) {
        let mut rng = self.rng();
        if self.frailty == 0 || !rng.random_ratio(1, self.frailty) {
            return (u64::MAX, Fate::Reset);
        }
        // From within the handshake to the middle of the output.
        let left = 1 << rng.random_range(8..20);
        let fate = if rng.random_ratio(1, 5) {
            Fate::Freeze
        } else {
            Fate::Reset
        };
        (left, fate)
    }
}

/// A channel from `from` to the service at `to`, over mutual TLS.
pub(super) async fn dial(
    world: &Arc<super::World>,
    dialer: &Dialer,
    (from, to): (&str, &str),
    expected: &Role,
    rate: Option<u64>,
) -> Result<Channel, remoteprocess_tls::Error> {
    let (world, from, to) = (world.clone(), from.to_owned(), to.to_owned());
    let open = move || {
        let (world, from, to) = (world.clone(), from.clone(), to.clone());
        async move { world.network.open(from, to, rate).await }
    };
    dialer.connect_over(expected, open).await
}

/// The listening side of every service.
pub(super) struct Port(TcpListener);

impl Port {
    pub(super) async fn bind() -> io::Result<Self> {
        TcpListener::bind(("0.0.0.0", PORT)).await.map(Self)
    }
}

impl Listener for Port {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }
}

impl Frail {
    /// Whether the connection still lives; pending if it is frozen.
    fn poll_alive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(context).is_ready() {
            self.cuts.fetch_add(1, Ordering::Relaxed);
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        match (self.left, self.fate) {
            (0, Fate::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            (0, Fate::Freeze) => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }

    fn spend(&mut self, bytes: usize) {
        if self.left != u64::MAX && self.left > 0 {
            self.left = self.left.saturating_sub(bytes as u64);
            if self.left == 0 {
                self.cuts.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl AsyncRead for Frail {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_alive(context))?;
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(context));
            self.rest = None;
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, into))?;
        let taken = into.filled().len() - before;
        self.spend(taken);
        if let Some(rate) = self.rate {
            let rest = Duration::from_secs(1) * u32::try_from(taken).unwrap_or(u32::MAX)
                / u32::try_from(rate).unwrap_or(u32::MAX);
            self.rest = Some(Box::pin(tokio::time::sleep(rest)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Frail {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_alive(context))?;
        let taken = ready!(Pin::new(&mut self.io).poll_write(context, bytes))?;
        self.spend(taken);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
