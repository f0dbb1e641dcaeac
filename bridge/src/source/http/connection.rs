//! Connections of the webhook: how many, for how long, by TLS or not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use remoteprocess_api::bridge::BridgeReason;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::authentic::Authenticator;
use super::request::handle;
use super::{Shared, lock};
use crate::source::{Secrets, SourceError};

/// Most connections. Another one displaces the oldest.
const CONNECTIONS: usize = 512;
/// How long a request's headers, or the next request, may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may live: longer than the longest wait for a result.
const LIFETIME: Duration = Duration::from_secs(600);
/// Most bytes of the headers of a request.
const HEAD_BYTES: usize = 32 * 1024;
/// Most headers of a request.
const HEADERS: usize = 100;
/// How often the Secrets are read again: they change while the bridge runs.
const RELOAD: Duration = Duration::from_secs(10);
/// Pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// TLS with the certificate that the trigger names.
pub(super) async fn acceptor(secrets: &Secrets) -> Result<TlsAcceptor, SourceError> {
    let (chain, key) = secrets.client_certificate().await?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    let config = config.map_err(|error| {
        SourceError::new(
            BridgeReason::InvalidSecret,
            format!("tls.crt and tls.key of the Secret cannot be used: {error}"),
        )
    })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until it is aborted.
pub(super) async fn serve(listener: TcpListener, mut tls: Option<TlsAcceptor>, shared: Arc<Shared>, secrets: Secrets) {
    let mut connections = JoinSet::new();
    let mut oldest = VecDeque::new();
    let mut reload = interval_at(Instant::now() + RELOAD, RELOAD);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = reload.tick() => {
                renew(&mut tls, &shared, &secrets).await;
                continue;
            }
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        oldest.retain(|connection: &tokio::task::AbortHandle| !connection.is_finished());
        if oldest.len() >= CONNECTIONS
            && let Some(first) = oldest.pop_front()
        {
            first.abort();
        }
        let (tls, shared) = (tls.clone(), shared.clone());
        oldest.push_back(connections.spawn(async move {
            match tls {
                None => answer(stream, shared).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                        answer(stream, shared).await;
                    }
                }
            }
        }));
    }
}

/// Takes over new Secrets. What cannot be used does not replace what is in use.
async fn renew(tls: &mut Option<TlsAcceptor>, shared: &Shared, secrets: &Secrets) {
    match Authenticator::read(secrets).await {
        Ok(authenticator) => *lock(&shared.authenticator) = Arc::new(authenticator),
        Err(error) => tracing::warn!(%error, "the Secret of the webhook cannot be used; the former one stays in use"),
    }
    if let Some(tls) = tls {
        match acceptor(secrets).await {
            Ok(acceptor) => *tls = acceptor,
            Err(error) => tracing::warn!(%error, "the certificate of the webhook cannot be used; the former one stays"),
        }
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(move |request| handle(request, shared.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    // If this fails, the sender notices: it gets no answer.
    let _ = timeout(LIFETIME, connection).await;
}
