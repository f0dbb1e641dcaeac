use std::{error::Error as StdError, io, pin::Pin, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::{Service, service_fn};

use crate::{
    Error, Identity, PeerIdentity, Role, TrustDomain, identity,
    serve::{MAX_FRAME, UNSENT},
};

/// Limit for one connect, the handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection is closed when the peer has answered no ping for twice this long.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Bytes that are taken from the socket in one call: rustls asks for 4 KiB at a time.
const READ_AHEAD: usize = 64 << 10;

/// Number of streams for whose windows a connection has room, so that one stalled reader does not stop the others.
const STREAMS: u32 = 8;

/// Makes connections to peers of one trust domain.
#[derive(Clone)]
pub struct Dialer {
    credentials: Credentials,
}

#[derive(Clone)]
enum Credentials {
    Own(Arc<Identity>),
    Anonymous {
        config: Arc<ClientConfig>,
        trust_domain: TrustDomain,
    },
}

impl Dialer {
    /// Presents the certificate that `identity` has at each connect.
    pub fn new(identity: Arc<Identity>) -> Self {
        Self {
            credentials: Credentials::Own(identity),
        }
    }

    /// Presents no certificate; trusts the CAs of a bundle (PEM).
    ///
    /// # Errors
    /// A bundle that does not decode or is empty.
    pub fn anonymous(bundle_pem: &str, trust_domain: &TrustDomain) -> Result<Self, Error> {
        let config = identity::client_config(&identity::roots(bundle_pem)?, None)?;
        Ok(Self {
            credentials: Credentials::Anonymous {
                config,
                trust_domain: trust_domain.clone(),
            },
        })
    }

    /// Connects now to `target` (`host:port`, IPv6 in brackets), where `expected` must answer. The channel reconnects
    /// by itself when the connection breaks.
    ///
    /// # Errors
    /// No connection within 5 s, a peer that is not `expected`, or a role that does not listen.
    pub async fn connect(&self, target: &str, expected: &Role) -> Result<Channel, Error> {
        self.connect_over(expected, tcp(target)).await
    }

    /// As [`Dialer::connect`], but connects at the first call.
    ///
    /// # Errors
    /// A role that does not listen.
    pub fn connect_lazy(&self, target: &str, expected: &Role) -> Result<Channel, Error> {
        let name = self.server_name(expected)?;
        let connector = connector(self.credentials.clone(), name.clone(), expected.clone(), tcp(target));
        Ok(endpoint(&name, expected)?.connect_with_connector_lazy(connector))
    }

    /// As [`Dialer::connect`], over byte streams that `open` creates (a port-forward, for example): one call for each
    /// connection.
    ///
    /// # Errors
    /// As [`Dialer::connect`].
    pub async fn connect_over<F, T, Io>(&self, expected: &Role, open: F) -> Result<Channel, Error>
    where
        F: Fn() -> T + Clone + Send + 'static,
        T: Future<Output = io::Result<Io>> + Send + 'static,
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let name = self.server_name(expected)?;
        let connector = connector(self.credentials.clone(), name.clone(), expected.clone(), open);
        Ok(endpoint(&name, expected)?.connect_with_connector(connector).await?)
    }

    fn server_name(&self, expected: &Role) -> Result<String, Error> {
        expected.validate()?;
        expected
            .server_name(self.credentials.trust_domain())
            .ok_or_else(|| Error::NotAServer(expected.clone()))
    }
}

impl Credentials {
    fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Own(identity) => identity.trust_domain(),
            Self::Anonymous { trust_domain, .. } => trust_domain,
        }
    }

    fn config(&self) -> Arc<ClientConfig> {
        match self {
            Self::Own(identity) => identity.material().client.clone(),
            Self::Anonymous { config, .. } => config.clone(),
        }
    }

    /// The handshake, with all checks that the peer is `expected`: the standard verifier checks the chain and the
    /// server name, then the role is compared.
    async fn handshake<Io>(&self, name: String, expected: Role, io: Io) -> Result<TlsStream<Io>, BoxError>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let mut stream = TlsConnector::from(self.config())
            .connect(ServerName::try_from(name)?, io)
            .await?;
        stream.get_mut().1.set_buffer_limit(Some(UNSENT));
        let found = PeerIdentity::of(stream.get_ref().1, self.trust_domain())?.role;
        if found == expected {
            Ok(stream)
        } else {
            Err(Error::WrongPeer { expected, found }.into())
        }
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

fn connector<F, T, Io>(
    credentials: Credentials,
    name: String,
    expected: Role,
    open: F,
) -> impl Service<Uri, Response = TokioIo<TlsStream<BufReader<Io>>>, Error = BoxError, Future: Send> + Send + 'static
where
    F: Fn() -> T + Clone + Send + 'static,
    T: Future<Output = io::Result<Io>> + Send + 'static,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    service_fn(move |_: Uri| {
        let (credentials, name, expected, stream) = (credentials.clone(), name.clone(), expected.clone(), open());
        async move {
            let stream = BufReader::with_capacity(READ_AHEAD, stream.await?);
            Ok(TokioIo::new(credentials.handshake(name, expected, stream).await?))
        }
    })
}

fn tcp(target: &str) -> impl Fn() -> BoxFuture<io::Result<TcpStream>> + Clone + Send + 'static {
    let target: Arc<str> = target.into();
    move || {
        let target = target.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(&*target).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The address is used only for the `:authority` of requests, because the connector knows where to connect. The scheme
/// is `http` because TLS is ours, not tonic's.
fn endpoint(name: &str, expected: &Role) -> Result<Endpoint, Error> {
    let window = stream_window(expected);
    Ok(Endpoint::from_shared(format!("http://{name}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .max_frame_size(MAX_FRAME)
        .initial_stream_window_size(window)
        .initial_connection_window_size(STREAMS * window))
}

/// Bytes that a peer may send ahead of its reader, on each stream. An operator reads from hundreds of nearby agents; a
/// user reads from one operator, which may be far away.
const fn stream_window(peer: &Role) -> u32 {
    match peer {
        Role::Agent { .. } => 512 << 10,
        _ => 2 << 20,
    }
}
