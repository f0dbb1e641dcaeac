//! A server on the loopback interface with plain HTTP in front, and the relay behind it over mutual TLS.
//!
//! [`gate`] decides who may pass. [`relay`] carries a request to the relay's HTTP face, with a certificate that is
//! renewed. [`terminal`] attaches a WebSocket to a process. `rproc ui` adds its page ([`page`]) and the few calls of the
//! API server that the page makes ([`objects`]).
//!
//! Invariant: nothing passes without the session. The session and the cookies of a browser are never sent on.

pub mod gate;
pub mod objects;
pub mod page;
pub mod problem;
pub mod relay;
pub mod resume;
pub mod terminal;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    SET_COOKIE, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use gate::Gate;
use page::Page;
use problem::Problem;
use relay::Upstream;
use terminal::Terminals;

/// Connections at once. More of them wait.
const MAX_CONNECTIONS: usize = 256;
/// Headers of a request, and their size with the request line.
const MAX_HEADERS: usize = 100;
const MAX_HEAD: usize = 32 << 10;
/// Time for the headers of a request, and for its body.
const HEAD_TIME: Duration = Duration::from_secs(30);
const BODY_TIME: Duration = Duration::from_secs(10);
/// Size of the body of a request, as at the relay.
const MAX_BODY: usize = 16 << 10;
/// Pause after a connection that could not be accepted, because this program has too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What an answer that is not the page may do in a browser: nothing.
const NO_CONTENT_POLICY: &str = "default-src 'none'; frame-ancestors 'none'; sandbox";

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// The server.
pub struct Proxy {
    gate: Gate,
    upstream: Arc<Upstream>,
    terminals: Terminals,
    page: Option<Page>,
}

/// A listener on the loopback interface; port 0 chooses a free one.
///
/// # Errors
/// The port is taken, or may not be used.
pub async fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

impl Proxy {
    /// A proxy, with or without the page.
    pub fn new(gate: Gate, upstream: Arc<Upstream>, page: Option<Page>) -> Self {
        let terminals = Terminals::new(upstream.cluster().clone());
        Self {
            gate,
            upstream,
            terminals,
            page,
        }
    }

    /// Serves until it is dropped.
    pub async fn serve(self, listener: TcpListener) -> Infallible {
        let proxy = Arc::new(self);
        let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let renewals = tokio::spawn(proxy.upstream.clone().renew());
        let _renewals = AbortOnDrop(renewals);
        loop {
            let seat = seats.clone().acquire_owned().await;
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let proxy = proxy.clone();
            tokio::spawn(async move {
                let _seat = seat;
                proxy.converse(stream).await;
            });
        }
    }

    async fn converse(self: Arc<Self>, stream: TcpStream) {
        // Records are small, and a person watches them.
        let _ = stream.set_nodelay(true);
        let service = service_fn(move |request| {
            let proxy = self.clone();
            async move { Ok::<_, Infallible>(proxy.answer(request).await) }
        });
        // A client that breaks off, or that speaks no HTTP, concerns nothing else.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let mut answer = self.route(request).await.unwrap_or_else(Problem::into_response);
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            // It is no document, and its header Connection must stay.
            return answer;
        }
        harden(answer.headers_mut());
        answer
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        let path = request.uri().path();
        if path == gate::LOGIN {
            return self.gate.login(&request);
        }
        self.gate.admit(&request)?;
        if path == "/openapi.json" || path.starts_with("/v1/") {
            let (head, body) = complete(request).await?;
            return resume::forward(&self.upstream, head, body).await;
        }
        if path.starts_with(terminal::PREFIX) {
            return self.terminals.open(request);
        }
        match &self.page {
            Some(page) => {
                let (head, body) = complete(request).await?;
                page.answer(head, body).await
            }
            None => Err(Problem::no_route("GET /openapi.json describes the routes of the relay")),
        }
    }
}

/// The request with its whole body, which is small.
async fn complete(request: Request<Incoming>) -> Result<(http::request::Parts, Bytes), Problem> {
    let (head, body) = request.into_parts();
    if [Method::GET, Method::HEAD].contains(&head.method) {
        return Ok((head, Bytes::new()));
    }
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body was not complete after 10 s");
    let body = timeout(BODY_TIME, Limited::new(body, MAX_BODY).collect())
        .await
        .map_err(late)?;
    let large = |_| {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body broke off, or has more than 16 KiB",
        )
    };
    Ok((head, body.map_err(large)?.to_bytes()))
}

/// A body that is complete.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Removes what belongs to the connection behind us, and sets what keeps a browser from running an answer.
fn harden(headers: &mut HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, HeaderName::from_static("keep-alive")] {
        headers.remove(name);
    }
    if !headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    }
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, NO_CONTENT_POLICY),
        (CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// The answer to a login with a cookie.
fn with_cookie(cookie: &str, html: &'static str) -> Result<Response<Body>, Problem> {
    let mut answer = Response::new(full(html));
    let cookie = HeaderValue::try_from(cookie).map_err(|error| Problem::defect(&error))?;
    answer.headers_mut().insert(SET_COOKIE, cookie);
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, html);
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    Ok(answer)
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
