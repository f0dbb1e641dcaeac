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
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use socket2::{SockRef, TcpKeepalive};
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

use crate::{
    Identity, PeerIdentity, Role,
    admission::{Counted, Counts, Place, Refusal, Unproven},
    identity::HTTP1,
    metered::Metered,
};

/// Whether a client must present a certificate in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A handshake without one fails; each request carries an `Arc<PeerIdentity>`.
    Required,
    /// As `Required`, and connections of other roles than [`Role::Operator`] are cut.
    OperatorOnly,
    /// No certificate is requested; requests carry no identity.
    None,
}

/// The limits of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Bytes that a peer may send in its handshake.
    pub handshake_bytes: usize,
    /// Simultaneous connections of peers without a proven identity: all peers until their handshake is complete, and
    /// all peers of a listener that requests no certificate. Another connection displaces the oldest of the source that
    /// has the most.
    pub unproven: usize,
    /// As `unproven`, for one source: an IPv4 address or an IPv6 /64 network.
    pub unproven_per_source: usize,
    /// Bytes that all of them together may have sent in their handshakes. What they have sent is held in memory, about
    /// twice. Beyond it, the connections that have sent the most are closed, of the source that has sent the most.
    pub unproven_bytes: usize,
    /// Simultaneous connections of peers with a proven identity; further ones are closed after their handshake.
    pub connections: usize,
    /// As `connections`, for one identity: a user name, one agent, or the operator.
    pub connections_per_identity: usize,
    /// Time for calls in flight after the shutdown began, or after the certificate of the peer expired; then connections
    /// are closed.
    pub drain: Duration,
    /// After this long a connection takes no more calls, and is closed when those in flight have had `drain`.
    pub lifetime: Option<Duration>,
    /// Simultaneous calls on one connection.
    pub streams: u32,
    /// Bytes that a peer may send ahead of us on one call. The connection gets `streams` times this, so that one
    /// stalled call never stops the others.
    pub stream_window: u32,
    /// Maximum size of one HTTP/2 frame of a peer in bytes. A frame is held in memory until it is complete.
    pub frame: u32,
    /// Whether a client may choose HTTP/1.1. Not for [`ClientAuth::None`].
    pub http1: bool,
    /// Time for the headers of one call on HTTP/1.1, from the end of the last call.
    pub headers: Duration,
    /// Called for each connection that was refused or closed before its first call.
    pub on_refusal: fn(Refusal),
}

impl Default for Limits {
    /// For peers with a certificate.
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            // A certificate that names six hundred groups fits.
            handshake_bytes: 32 << 10,
            // All agents and followers come back at once after a restart.
            unproven: 1024,
            // Port-forwards and proxies connect many users from one address.
            unproven_per_source: 512,
            // Usual ones have less than 4 KiB.
            unproven_bytes: 4 << 20,
            connections: 8192,
            connections_per_identity: 512,
            drain: Duration::from_secs(10),
            lifetime: None,
            streams: 128,
            stream_window: 1 << 20,
            frame: MAX_FRAME,
            http1: false,
            headers: Duration::from_secs(30),
            on_refusal: |_| {},
        }
    }
}

impl Limits {
    /// For peers about whom nothing is known: small, and short-lived.
    pub fn anonymous() -> Self {
        Self {
            handshake_bytes: 8 << 10,
            drain: Duration::from_secs(5),
            lifetime: Some(Duration::from_secs(10)),
            streams: 1,
            stream_window: 16 << 10,
            frame: 16 << 10,
            ..Self::default()
        }
    }
}

/// Pause after an `accept` that failed on our side (no descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection is closed when the peer has answered no ping for twice this long.
const KEEPALIVE: Duration = Duration::from_secs(10);

type BoxError = Box<dyn StdError + Send + Sync>;

/// A source of connections: a kernel socket, or a simulated network.
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
        // Both fail only on a connection that is already gone, which the handshake detects.
        let _ = stream.set_nodelay(true);
        // HTTP/2 has pings. Only this finds a client of HTTP/1.1 that is gone while it waits for output.
        let alive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE)
            .with_retries(3);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&alive);
        Ok((stream, address))
    }
}

/// Serves `service` over TLS and HTTP/2 (or HTTP/1.1, see [`Limits::http1`]) until `shutdown`: then no new connection and no new call is accepted, calls in
/// flight may end within `limits.drain`, and the rest is closed. Each handshake uses the identity as it is then. A
/// connection whose client certificate has expired takes no new calls, and is closed after `limits.drain`.
///
/// Requests carry tonic's `TcpConnectInfo`, a [`Connection`] and, with [`ClientAuth::Required`], an `Arc<PeerIdentity>`
/// in their extensions. An error on one connection ends that connection and is logged.
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
    let gate = Arc::new(Gate {
        identity,
        client_auth,
        limits,
        proven: Arc::new(Semaphore::new(limits.connections)),
        identities: Counts::default(),
    });
    let (connections, cut, unproven) = (TaskTracker::new(), CancellationToken::new(), Unproven::default());
    while let Some((stream, address)) = accept(&listener, &shutdown).await {
        let place = unproven.enter(address.ip(), limits.unproven, limits.unproven_per_source);
        let (gate, service) = (gate.clone(), service.clone());
        let (shutdown, cut) = (shutdown.clone(), cut.clone());
        connections.spawn(async move {
            let passed = tokio::select! {
                passed = gate.pass(stream, place) => passed,
                () = shutdown.cancelled() => return,
            };
            match passed {
                // In memory of its own, so that a connection that has proven nothing takes little of it.
                Ok(passed) => Box::pin(converse(passed, address, service, limits, shutdown, cut)).await,
                Err((refusal, error)) => {
                    (limits.on_refusal)(refusal);
                    let (source, reason) = (address.ip(), refusal.reason());
                    tracing::info!(%source, reason, error = &*error, "refused a connection");
                }
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

/// The next connection; `None` when the shutdown began. It waits for nothing else, so no peer delays another one.
async fn accept<L: Listener>(listener: &L, shutdown: &CancellationToken) -> Option<(L::Io, SocketAddr)> {
    let next = async {
        loop {
            match listener.accept().await {
                Ok(next) => return next,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn StdError, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        next = next => Some(next),
        () = shutdown.cancelled() => None,
    }
}

/// The checks that a connection must pass before it may make calls.
struct Gate {
    identity: Arc<Identity>,
    client_auth: ClientAuth,
    limits: Limits,
    proven: Arc<Semaphore>,
    identities: Counts<IdentityKey>,
}

/// A connection that may make calls.
struct Passed<Io> {
    stream: TlsStream<Metered<Io>>,
    peer: Option<Arc<PeerIdentity>>,
    held: Held,
}

/// The place that a connection occupies.
enum Held {
    Unproven(Place),
    Proven {
        _slot: OwnedSemaphorePermit,
        _identity: Counted<IdentityKey>,
    },
}

/// The key by which connections are counted: a user by name, an agent by its pod.
type IdentityKey = (Role, Option<String>);

impl Held {
    /// Ends when a newer connection has taken this place; never for a peer with a proven identity.
    async fn displaced(&self) {
        match self {
            Self::Unproven(place) => place.displaced().await,
            Self::Proven { .. } => std::future::pending().await,
        }
    }
}

impl Gate {
    async fn pass<Io: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: Io,
        place: Place,
    ) -> Result<Passed<Io>, (Refusal, BoxError)> {
        let stream = tokio::select! {
            shaken = timeout(self.limits.handshake, self.handshake(stream, &place)) => {
                shaken.map_err(|_| (Refusal::Slow, BoxError::from("no handshake in time")))??
            }
            () = place.displaced() => {
                return Err((Refusal::Displaced, "newer connections needed the room".into()));
            }
        };
        if self.client_auth == ClientAuth::None {
            let held = Held::Unproven(place);
            return Ok(Passed {
                stream,
                peer: None,
                held,
            });
        }
        let peer = PeerIdentity::of(stream.get_ref().1, self.identity.trust_domain())
            .map_err(|error| (Refusal::Untrusted, error.into()))?;
        let held = self.admit(&peer)?;
        Ok(Passed {
            stream,
            peer: Some(Arc::new(peer)),
            held,
        })
    }

    async fn handshake<Io: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: Io,
        place: &Place,
    ) -> Result<TlsStream<Metered<Io>>, (Refusal, BoxError)> {
        let acceptor = TlsAcceptor::from(self.identity.material().server(self.client_auth, self.limits.http1));
        let metered = Metered::new(
            stream,
            self.limits.handshake_bytes,
            place.meter(self.limits.unproven_bytes),
        );
        let accepting = acceptor.accept(metered);
        let mut stream = accepting.await.map_err(|error| match error.kind() {
            io::ErrorKind::QuotaExceeded => (Refusal::TooLarge, error.into()),
            _ => (Refusal::Untrusted, BoxError::from(error)),
        })?;
        let (metered, tls) = stream.get_mut();
        metered.lift();
        tls.set_buffer_limit(Some(UNSENT));
        Ok(stream)
    }

    fn admit(&self, peer: &PeerIdentity) -> Result<Held, (Refusal, BoxError)> {
        if self.client_auth == ClientAuth::OperatorOnly && peer.role != Role::Operator {
            return Err((Refusal::WrongRole, format!("{} may not call here", peer.role).into()));
        }
        let key = (peer.role.clone(), peer.user.as_ref().map(|user| user.name.clone()));
        let identity = self
            .identities
            .admit(key, self.limits.connections_per_identity)
            .ok_or_else(|| {
                (
                    Refusal::Identity,
                    format!("{} has too many connections", peer.role).into(),
                )
            })?;
        let slot = self.proven.clone().try_acquire_owned().map_err(|_| {
            (
                Refusal::Full,
                BoxError::from("the listener has as many connections as it can take"),
            )
        })?;
        Ok(Held::Proven {
            _slot: slot,
            _identity: identity,
        })
    }
}

/// The connection that a request came on. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Connection(CancellationToken);

impl Connection {
    /// Cuts the connection, with all calls on it: the only way to end a call whose client takes no answer.
    pub fn cut(&self) {
        self.0.cancel();
    }

    /// Ends when [`Connection::cut`] was called.
    pub async fn is_cut(&self) {
        self.0.cancelled().await;
    }
}

/// Serves one connection from its handshake to its end.
async fn converse<Io, S, B>(
    passed: Passed<Io>,
    address: SocketAddr,
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
    let Passed { stream, peer, held } = passed;
    let last_call = last_call(peer.as_deref(), limits.lifetime);
    let info = TcpConnectInfo {
        local_addr: None,
        remote_addr: Some(address),
    };
    let handle = Connection::default();
    let cut_by_service = handle.0.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(info.clone());
        request.extensions_mut().insert(handle.clone());
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        service.clone().oneshot(request)
    });
    let is_http1 = limits.http1 && stream.get_ref().1.alpn_protocol().is_none_or(|chosen| chosen == HTTP1);
    let io = TokioIo::new(stream);
    let drive = Drive {
        last_call,
        held,
        limits,
        shutdown,
        cut,
        cut_by_service,
    };
    let ended = if is_http1 {
        drive.run(http1_builder(limits).serve_connection(io, service)).await
    } else {
        drive.run(http2_builder(limits).serve_connection(io, service)).await
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %address, error = &error as &dyn StdError, "connection ended");
    }
}

/// What ends a connection.
struct Drive {
    last_call: Option<Duration>,
    held: Held,
    limits: Limits,
    shutdown: CancellationToken,
    cut: CancellationToken,
    cut_by_service: CancellationToken,
}

impl Drive {
    async fn run<C>(self, connection: C) -> Result<(), hyper::Error>
    where
        C: GracefulConnection<Error = hyper::Error>,
    {
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = self.shutdown.cancelled() => {}
            () = after(self.last_call) => {}
            () = self.held.displaced() => {
                (self.limits.on_refusal)(Refusal::Displaced);
                return Ok(());
            }
            () = self.cut_by_service.cancelled() => return Ok(()),
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection => ended,
            () = self.cut.cancelled() => Ok(()),
            () = self.cut_by_service.cancelled() => Ok(()),
            () = sleep(self.limits.drain) => Ok(()),
        }
    }
}

/// How long the connection may take calls; `None`: without limit.
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

fn http1_builder(limits: Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_header_size(MAX_HEADERS as usize)
        .max_buf_size(HTTP1_BUFFER);
    builder
}

fn http2_builder(limits: Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_frame_size(limits.frame)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(MAX_FRAME as usize)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.stream_window.saturating_mul(limits.streams).min(MAX_WINDOW));
    builder
}

/// Maximum size of the headers of one call in bytes.
const MAX_HEADERS: u32 = 16 << 10;

/// Bytes that HTTP/1.1 holds of what it reads, and of what it writes.
const HTTP1_BUFFER: usize = 64 << 10;

/// Maximum size of one frame in bytes: a whole chunk of output fits, so that it is not cut into pieces of 16 KiB.
pub(crate) const MAX_FRAME: u32 = 128 << 10;

/// Bytes that TLS may buffer for the socket: a whole frame, which is then sent in one call.
pub(crate) const UNSENT: usize = MAX_FRAME as usize + (16 << 10);

/// The largest window of HTTP/2 (RFC 9113, 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;
