use std::{
    error::Error as StdError,
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::TcpConnectInfo;
use tower::{Service, ServiceExt};

use crate::{Identity, PeerIdentity, sources::Sources};

/// Whether a client has to show a certificate in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A handshake without one fails; each request carries an `Arc<PeerIdentity>`.
    Required,
    /// None is asked for; requests carry no identity.
    None,
}

/// What one listener grants its peers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for calls in flight after the shutdown began; then connections are cut.
    pub drain: Duration,
    /// After this long a connection takes no more calls, and is cut when those in flight have had `drain`.
    pub lifetime: Option<Duration>,
    /// Connections at a time, handshakes included; further ones wait in the kernel's queue.
    pub connections: usize,
    /// Connections at a time from one address; further ones are closed at once.
    pub connections_per_source: usize,
    /// Calls at a time on one connection.
    pub streams: u32,
    /// Bytes that a peer may send ahead of us on one call. The connection gets `streams` times this, so that one stalled
    /// call never stops the others.
    pub stream_window: u32,
}

impl Default for Limits {
    /// For peers that have shown a certificate.
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            drain: Duration::from_secs(10),
            lifetime: None,
            connections: 16_384,
            // Port-forwards and proxies bring many users from one address.
            connections_per_source: 16_384,
            streams: 128,
            stream_window: 1 << 20,
        }
    }
}

impl Limits {
    /// For peers about whom nothing is known: small, and short-lived.
    pub fn anonymous() -> Self {
        Self {
            drain: Duration::from_secs(5),
            lifetime: Some(Duration::from_secs(10)),
            connections: 1024,
            // All pods of a node may come from one address.
            connections_per_source: 256,
            streams: 4,
            stream_window: 64 << 10,
            ..Self::default()
        }
    }
}

/// Between two tries after `accept` failed for a reason of our own (no descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection is given up when the peer has answered no ping for twice this long.
const KEEPALIVE: Duration = Duration::from_secs(10);

type BoxError = Box<dyn StdError + Send + Sync>;

/// Where connections come from: a socket of the kernel's, or of a simulated network.
pub trait Listener: Send + Sync {
    /// One connection.
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection and the address of its peer.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Io, SocketAddr)>> + Send;
}

impl Listener for TcpListener {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = Self::accept(self).await?;
        // Fails only on a connection that is gone already, which the handshake finds out.
        let _ = stream.set_nodelay(true);
        Ok((stream, address))
    }
}

/// Serves `service` over TLS and HTTP/2 until `shutdown`: then no new connection and no new call is taken, calls in
/// flight may end within `limits.drain`, and what is left is cut. Each handshake uses the identity as it is then. A
/// connection whose client certificate has expired takes no new calls; those in flight go on.
///
/// Requests carry tonic's `TcpConnectInfo` and, with [`ClientAuth::Required`], an `Arc<PeerIdentity>` in their
/// extensions. What goes wrong with one connection ends that connection and is logged.
pub async fn serve<L, S, B>(
    listener: L,
    identity: Arc<Identity>,
    client_auth: ClientAuth,
    service: S,
    limits: Limits,
    shutdown: CancellationToken,
) where
    L: Listener,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let slots = Arc::new(Semaphore::new(limits.connections));
    let (connections, cut, sources) = (TaskTracker::new(), CancellationToken::new(), Sources::default());
    while let Some((stream, address, slot)) = accept(&listener, &slots, &shutdown).await {
        let Some(admission) = sources.admit(address.ip(), limits.connections_per_source) else {
            continue;
        };
        let (identity, service) = (identity.clone(), service.clone());
        let (shutdown, cut) = (shutdown.clone(), cut.clone());
        connections.spawn(async move {
            let _slots = (slot, admission);
            let handshake = handshake(stream, &identity, client_auth, limits.handshake);
            let secured = tokio::select! {
                secured = handshake => secured,
                () = shutdown.cancelled() => return,
            };
            match secured {
                Ok((stream, peer)) => converse(stream, address, peer, service, limits, shutdown, cut).await,
                Err(error) => tracing::info!(peer = %address, error = &*error, "handshake failed"),
            }
        });
    }
    drop(listener);
    connections.close();
    if timeout(limits.drain, connections.wait()).await.is_err() {
        tracing::info!(
            connections = connections.len(),
            "cutting connections that did not end in time"
        );
        cut.cancel();
        connections.wait().await;
    }
}

/// The next connection, when there is room for one; `None` when the shutdown began.
async fn accept<L: Listener>(
    listener: &L,
    slots: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(L::Io, SocketAddr, OwnedSemaphorePermit)> {
    let next = async {
        let slot = slots.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, address)) => return Some((stream, address, slot)),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn StdError, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        next = next => next,
        () = shutdown.cancelled() => None,
    }
}

async fn handshake<Io: AsyncRead + AsyncWrite + Unpin>(
    stream: Io,
    identity: &Identity,
    client_auth: ClientAuth,
    limit: Duration,
) -> Result<(TlsStream<Io>, Option<Arc<PeerIdentity>>), BoxError> {
    let acceptor = TlsAcceptor::from(identity.material().server(client_auth));
    let mut stream = timeout(limit, acceptor.accept(stream))
        .await
        .map_err(|_| "no handshake in time")??;
    stream.get_mut().1.set_buffer_limit(Some(UNSENT));
    let peer = match client_auth {
        ClientAuth::None => None,
        ClientAuth::Required => Some(Arc::new(PeerIdentity::of(stream.get_ref().1, identity.trust_domain())?)),
    };
    Ok((stream, peer))
}

/// One connection from its handshake to its end.
async fn converse<Io, S, B>(
    stream: TlsStream<Io>,
    address: SocketAddr,
    peer: Option<Arc<PeerIdentity>>,
    service: S,
    limits: Limits,
    shutdown: CancellationToken,
    cut: CancellationToken,
) where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let last_call = last_call(peer.as_deref(), limits.lifetime);
    let info = TcpConnectInfo {
        local_addr: None,
        remote_addr: Some(address),
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(info.clone());
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        service.clone().oneshot(request)
    });
    let mut connection = pin!(builder(limits).serve_connection(TokioIo::new(stream), service));
    let early = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = shutdown.cancelled() => None,
        () = after(last_call) => None,
    };
    let ended = match early {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = cut.cancelled() => return,
                () = after(limits.lifetime.map(|_| limits.drain)) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %address, error = &error as &dyn StdError, "connection ended");
    }
}

/// How long the connection may take calls; `None` without end.
fn last_call(peer: Option<&PeerIdentity>, lifetime: Option<Duration>) -> Option<Duration> {
    let until_expiry = peer.map(|p| p.not_after.duration_since(SystemTime::now()).unwrap_or_default());
    until_expiry.into_iter().chain(lifetime).min()
}

/// Ends after `time`; never for `None`.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => std::future::pending().await,
    }
}

fn builder(limits: Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(MAX_FRAME as usize)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.stream_window.saturating_mul(limits.streams).min(MAX_WINDOW));
    builder
}

/// Bytes in one frame: a whole chunk of output fits, so that it is not cut into pieces of 16 KiB.
pub(crate) const MAX_FRAME: u32 = 128 << 10;

/// Bytes that TLS may hold of what the socket has not taken: a whole frame, which then goes out in one call.
pub(crate) const UNSENT: usize = MAX_FRAME as usize + (16 << 10);

/// The largest window of HTTP/2 (RFC 9113, 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;
