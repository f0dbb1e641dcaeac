//! The connection to the server: address, TLS and login.
//!
//! TLS is ours, not lapin's, so that all brokers are trusted in one way, and because lapin's brings a reader of PKCS#12
//! with old ciphers. lapin gets one end of a pair of sockets, and a task carries bytes between the other end and the
//! server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use async_compat::Compat;
use lapin::auth::AuthProvider;
use lapin::tcp::AsyncTcpStream;
use lapin::types::{LongString, ShortString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{Channel, Connection, ConnectionProperties};
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::trigger::RabbitMqSource;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, copy};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use super::super::{Secrets, SourceError, in_time, tls_config};
use super::wire::error;

/// Largest frame, in bytes. lapin keeps buffers of 32 frames in each direction.
const FRAME_MAX: u32 = 64 * 1024;
/// Seconds between two signs of life. A server that gives none is lost after about twice that time.
const HEARTBEAT: u16 = 10;

/// An open connection.
pub(super) struct Link {
    connection: Connection,
}

impl Link {
    /// Opens a channel.
    ///
    /// # Errors
    /// The connection is lost.
    pub(super) async fn channel(&self) -> lapin::Result<Channel> {
        self.connection.create_channel().await
    }
}

/// What is needed to connect.
pub(super) struct Dialer {
    /// Namespace and name of the trigger, for people who look at the connections of the server.
    pub(super) name: String,
    /// The server.
    pub(super) source: RabbitMqSource,
    /// How to log in.
    pub(super) secrets: Secrets,
}

impl Dialer {
    /// Connects and logs in.
    ///
    /// # Errors
    /// The server does not answer, is not trusted, or refuses.
    pub(super) async fn open(&self) -> Result<Link, SourceError> {
        let Self { name, source, secrets } = self;
        let (host, port) = address(&source.address, if source.tls.is_some() { 5671 } else { 5672 })?;
        let what = format!("connect to {host}:{port}");
        let login = Login::read(source, secrets).await?;
        let stream = connect(&what, source, secrets, &host, port).await?;
        let (ours, theirs) = UnixStream::pair().map_err(SourceError::unreachable)?;
        let pump = Pump(tokio::spawn(carry(stream, ours)).abort_handle());
        let stream = as_tcp(theirs).map_err(SourceError::unreachable)?;
        let uri = uri(source, &login, host, port);
        let connection = in_time(&what, async {
            let opened = handshake(uri, stream, properties(name, &login)).await;
            opened.map_err(|cause| match source.tls {
                Some(_) if cause.is_io_error() => closed(&what, &cause),
                _ => error(&what, &cause),
            })
        });
        let connection = connection.await?;
        pump.keep();
        Ok(Link { connection })
    }
}

/// The server has closed a connection during the login. It does so without a word if it does not like the certificate
/// (TLS 1.3 tells after the handshake) or the mechanism of the login.
fn closed(what: &str, cause: &lapin::Error) -> SourceError {
    let message = format!(
        "{what}: the server closed the connection during the login ({cause}). Does it accept the certificate of the \
         bridge, or a login without one, and SASL EXTERNAL if the trigger has no credentials?"
    );
    SourceError::new(BridgeReason::Unauthorized, message)
}

/// Ends the carrying of bytes, and so lapin's thread, if the login fails or takes too long.
struct Pump(AbortHandle);

impl Pump {
    /// The connection is open: it ends when lapin closes its end.
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Carries bytes in both directions until one side ends.
async fn carry(server: Box<dyn Stream>, client: UnixStream) {
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let (mut from_client, mut to_client) = client.into_split();
    // An error is the end of the connection; lapin reports it.
    tokio::select! {
        _ = copy(&mut from_server, &mut to_client) => {}
        _ = copy(&mut from_client, &mut to_server) => {}
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// lapin takes a TCP stream; what it does with it, reading and writing, is the same for a pair of sockets.
fn as_tcp(stream: UnixStream) -> io::Result<TcpStream> {
    TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(stream.into_std()?)))
}

async fn connect(
    what: &str,
    queue: &RabbitMqSource,
    secrets: &Secrets,
    host: &str,
    port: u16,
) -> Result<Box<dyn Stream>, SourceError> {
    let tls = match &queue.tls {
        Some(tls) => Some(TlsConnector::from(tls_config(Some(tls), secrets).await?)),
        None => None,
    };
    in_time(what, async {
        let failed = |error: io::Error| SourceError::new(reason(&error), format!("{what}: {error}"));
        let stream = TcpStream::connect((host, port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some(tls) = tls else {
            return Ok(Box::new(stream) as Box<dyn Stream>);
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            SourceError::new(
                BridgeReason::Untrusted,
                format!("{what}: no certificate can have this name"),
            )
        })?;
        Ok(Box::new(tls.connect(name, stream).await.map_err(failed)?) as Box<dyn Stream>)
    })
    .await
}

/// Why a connection failed: a certificate that is not trusted, ours that is refused, or no answer.
fn reason(error: &io::Error) -> BridgeReason {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => BridgeReason::Untrusted,
        Some(rustls::Error::AlertReceived(_)) => BridgeReason::Unauthorized,
        _ => BridgeReason::Unreachable,
    }
}

async fn handshake(uri: AMQPUri, stream: TcpStream, properties: ConnectionProperties) -> lapin::Result<Connection> {
    let stream = Mutex::new(Some(stream));
    let connect = async move |_: AMQPUri, _| {
        let stream = stream.lock().map(|mut stream| stream.take()).ok().flatten();
        let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        Ok(AsyncTcpStream::Plain(Compat::new(stream)))
    };
    Connection::connector(uri, lapin::runtime::default_runtime()?, connect, properties).await
}

/// How the bridge logs in.
struct Login {
    user: String,
    password: String,
    /// By the certificate, which the server's plugin `rabbitmq_auth_mechanism_ssl` accepts.
    is_external: bool,
}

impl Login {
    async fn read(queue: &RabbitMqSource, secrets: &Secrets) -> Result<Self, SourceError> {
        if queue.credentials_secret_name.is_some() {
            return Ok(Self {
                user: secrets.required_credential("username").await?,
                password: secrets.required_credential("password").await?,
                is_external: false,
            });
        }
        let certificate = queue
            .tls
            .as_ref()
            .map(|tls| tls.client_certificate_secret_name.is_some());
        // The account that a new RabbitMQ has, and accepts from its own machine.
        Ok(Self {
            user: "guest".to_owned(),
            password: "guest".to_owned(),
            is_external: certificate == Some(true),
        })
    }
}

/// SASL EXTERNAL, without a name of our own: the server takes it from the certificate.
struct External;

impl AuthProvider for External {
    fn mechanism(&self) -> ShortString {
        SASLMechanism::External.name().into()
    }
}

fn properties(name: &str, login: &Login) -> ConnectionProperties {
    let name = LongString::from(format!("remoteprocess {name}"));
    let properties = ConnectionProperties::default().with_connection_name(name);
    match login.is_external {
        true => properties.with_auth_provider(External),
        false => properties,
    }
}

fn uri(queue: &RabbitMqSource, login: &Login, host: String, port: u16) -> AMQPUri {
    AMQPUri {
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: login.user.clone(),
                password: login.password.clone(),
            },
            host,
            port,
        },
        vhost: queue.virtual_host.clone().unwrap_or_else(|| "/".to_owned()),
        query: AMQPQueryString {
            frame_max: Some(FRAME_MAX),
            heartbeat: Some(HEARTBEAT),
            ..AMQPQueryString::default()
        },
    }
}

/// `host`, `host:port`, an IP address, or `[IPv6]:port`.
fn address(text: &str, default_port: u16) -> Result<(String, u16), SourceError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((address.ip().to_string(), address.port()));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok((address.to_string(), default_port));
    }
    let (host, port) = match text.split_once(':') {
        None => (text, Ok(default_port)),
        Some((host, port)) => (host, port.parse()),
    };
    let is_host = !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    match port {
        Ok(port) if is_host => Ok((host.to_owned(), port)),
        _ => Err(SourceError::unreachable(format!(
            "rabbitmq.address {text:?} is not HOST or HOST:PORT"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let read = |text: &str| address(text, 5672).ok();
        let is = |host: &str, port: u16| Some((host.to_owned(), port));
        assert_eq!(read("rabbit"), is("rabbit", 5672));
        assert_eq!(read("rabbit.messaging:1"), is("rabbit.messaging", 1));
        assert_eq!(read("10.0.0.1"), is("10.0.0.1", 5672));
        assert_eq!(read("10.0.0.1:7"), is("10.0.0.1", 7));
        assert_eq!(read("[::1]:7"), is("::1", 7));
        assert_eq!(read("[::1]"), is("::1", 5672));
        assert_eq!(read("::1"), is("::1", 5672));
        for wrong in [
            "",
            ":5672",
            "rabbit:",
            "rabbit:70000",
            "amqp://rabbit",
            "rabbit:1/x",
            "a b",
            "user@rabbit",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
