//! TCP connections, directly or through a proxy: one connector for the API server and for the relay.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{error, io};

use futures::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Builder;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::client::retry::RetryPolicy;
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use super::proxy::{Protocol, Proxies, Proxy, is_here};
use crate::retry::innermost;

/// Time limit for one connection through a proxy.
const PROXY_LIMIT: Duration = Duration::from_secs(8);

/// How long a connection may be quiet before a keepalive probe.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Connects to the addresses of one cluster.
#[derive(Clone, Default)]
pub struct Connector {
    proxies: Arc<Proxies>,
    /// TLS settings for a proxy: those of the cluster, as in kubectl.
    tls: Option<Arc<Config>>,
}

impl Connector {
    /// A connector that uses these proxies.
    #[must_use]
    pub fn new(proxies: Proxies, config: &Config) -> Self {
        Self {
            proxies: Arc::new(proxies),
            tls: Some(Arc::new(config.clone())),
        }
    }

    /// Whether the relay at this address is reached through a proxy. A `proxy-url` is the way into the cluster; this
    /// machine is not behind it.
    ///
    /// # Errors
    /// Names the variable or the field that is wrong.
    pub fn is_relay_proxied(&self, host: &str, port: u16) -> Result<bool, String> {
        Ok(!is_here(host) && self.proxies.of(true, host, port)?.is_some())
    }

    /// A connection to the host and port of `target`.
    ///
    /// # Errors
    /// No connection; with the proxy's name if there is one.
    pub async fn connect(self, target: Uri) -> io::Result<Stream> {
        let is_tls = target.scheme_str() != Some("http");
        let port = target.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let proxy = self.proxies.of(is_tls, target.host().unwrap_or_default(), port);
        let Some(proxy) = proxy.map_err(io::Error::other)? else {
            return tcp().oneshot(target).await.map(Stream::new).map_err(plain);
        };
        let target = with_port(&target, port)?;
        let why = match tokio::time::timeout(PROXY_LIMIT, self.through(proxy, target.clone())).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => innermost(&*error),
            Err(_) => format!("no answer within {} s", PROXY_LIMIT.as_secs()),
        };
        let host = target.host().unwrap_or_default();
        Err(io::Error::other(format!(
            "{} does not lead to {host}:{port}: {why}",
            proxy.label()
        )))
    }

    async fn through(&self, proxy: &Proxy, target: Uri) -> Result<Stream, BoxError> {
        match (proxy.protocol, &self.tls) {
            (Protocol::Socks5, _) => {
                let socks = SocksV5::new(proxy.uri.clone(), tcp());
                let Some((name, password)) = proxy.user.clone() else {
                    return Ok(Stream::new(socks.oneshot(target).await?));
                };
                // One method is offered at a time: a proxy that expects no user refuses the first one.
                let error = match socks.clone().with_auth(name, password).oneshot(target.clone()).await {
                    Ok(stream) => return Ok(Stream::new(stream)),
                    Err(error) => error,
                };
                let stream = socks.oneshot(target).await.map_err(|_| error)?;
                Ok(Stream::new(stream))
            }
            (Protocol::Https, Some(config)) => {
                let tls = config.rustls_https_connector_with_connector(tcp())?;
                Ok(Stream::new(tunnel(proxy, tls).oneshot(target).await?))
            }
            (Protocol::Http | Protocol::Https, _) => Ok(Stream::new(tunnel(proxy, tcp()).oneshot(target).await?)),
        }
    }
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // A connection that a network dropped silently must end: a watch would wait on it forever.
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(3));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(4 * KEEPALIVE));
    tcp
}

fn tunnel<C>(proxy: &Proxy, connector: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.uri.clone(), connector);
    match proxy.authorization() {
        Some(header) => tunnel.with_auth(header),
        None => tunnel,
    }
}

/// SOCKS needs the port.
fn with_port(target: &Uri, port: u16) -> io::Result<Uri> {
    let host = target.host().unwrap_or_default();
    format!("https://{host}:{port}/").parse().map_err(plain)
}

fn plain(error: impl error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(innermost(&error))
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Stream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        Box::pin(self.clone().connect(target))
    }
}

/// A connection: direct, or through a proxy.
pub struct Stream(Box<dyn Io>);

trait Io: Read + Write + Connection + Send + Unpin {}

impl<T: Read + Write + Connection + Send + Unpin> Io for T {}

impl Stream {
    fn new(io: impl Read + Write + Connection + Send + Unpin + 'static) -> Self {
        Self(Box::new(io))
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, parts)
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

/// A client for the API server in the configuration: kube's own layers over our connector.
///
/// # Errors
/// The configuration cannot be used.
pub(super) fn client(config: &Config, connector: Connector) -> Result<Client, kube::Error> {
    let tls = config.rustls_https_connector_with_connector(connector)?;
    let mut timed = TimeoutConnector::new(tls);
    timed.set_connect_timeout(config.connect_timeout);
    timed.set_write_timeout(config.write_timeout);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(Builder::new(TokioExecutor::new()).build(timed));
    Ok(Client::new(service, config.default_namespace.clone()))
}
