//! A client of the HTTP face that hides nothing: how an answer ends, and its trailers. HTTP/1.1 is read byte by byte.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use remoteprocess_tls::{Dialer, Role};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use crate::relay::live::fake_agent::{identity, pem};

/// Much longer than any answer takes; only a hang lasts this long.
const DEADLINE: Duration = Duration::from_secs(60);
/// Where the process of the tests is.
pub(super) const PROCESS: &str = "/v1/namespaces/default/processes/hello";

/// An answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
    /// It came to its end: the last chunk, the announced length, or the end of a stream of HTTP/2.
    pub is_whole: bool,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub method: Method,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

pub(super) fn get(path: impl Into<String>) -> Ask {
    Ask {
        method: Method::GET,
        path: path.into(),
        headers: Vec::new(),
        body: Vec::new(),
    }
}

/// A request with a body of JSON.
pub(super) fn post(path: impl Into<String>, body: &Value) -> Ask {
    Ask {
        method: Method::POST,
        body: body.to_string().into_bytes(),
        ..get(path)
    }
    .with("content-type", "application/json")
}

impl Ask {
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn head(self) -> Self {
        Self {
            method: Method::HEAD,
            ..self
        }
    }

    /// Over HTTP/2.
    pub(super) async fn http2(&self, relay: SocketAddr) -> Answer {
        self.http2_as(relay, &Dialer::new(identity(&Role::User))).await
    }

    pub(super) async fn http2_as(&self, relay: SocketAddr, dialer: &Dialer) -> Answer {
        let asked = async {
            let mut channel = dialer.connect(&relay.to_string(), &Role::Operator).await.unwrap();
            let mut request = Request::builder()
                .method(self.method.clone())
                .uri(format!("http://relay{}", self.path));
            for (name, value) in &self.headers {
                request = request.header(*name, value);
            }
            let body = Body::new(Full::from(self.body.clone()));
            let response = channel
                .ready()
                .await
                .unwrap()
                .call(request.body(body).unwrap())
                .await
                .unwrap();
            let (parts, mut body) = response.into_parts();
            let mut answer = Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                ..Answer::default()
            };
            loop {
                match body.frame().await {
                    None => break answer.is_whole = true,
                    Some(Err(_)) => break,
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => answer.body.extend_from_slice(&data),
                        Err(frame) => answer.trailers = frame.into_trailers().unwrap(),
                    },
                }
            }
            answer
        };
        timeout(DEADLINE, asked).await.expect("in time")
    }

    /// Over HTTP/1.1.
    pub(super) async fn http1(&self, relay: SocketAddr) -> Answer {
        self.http1_until(relay, usize::MAX).await
    }

    /// Over HTTP/1.1; the connection is cut after this many bytes of the answer.
    pub(super) async fn http1_until(&self, relay: SocketAddr, enough: usize) -> Answer {
        let mut stream = connect(relay, &[b"http/1.1"]).await;
        stream.write_all(&self.bytes()).await.unwrap();
        let (mut raw, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
        while raw.len() < enough {
            // An end without close_notify is an error, as is a reset.
            match timeout(DEADLINE, stream.read(&mut buffer)).await.expect("in time") {
                Ok(0) | Err(_) => break,
                Ok(read) => raw.extend_from_slice(&buffer[..read]),
            }
        }
        parse(&raw, self.method == Method::HEAD)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut text = format!(
            "{} {} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n",
            self.method, self.path
        );
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("content-length: {}\r\n\r\n", self.body.len());
        [text.as_bytes(), &self.body].concat()
    }
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Each line as JSON.
    pub(super) fn lines(&self) -> Vec<Value> {
        let lines = self
            .body
            .split_inclusive(|c| *c == b'\n')
            .filter(|line| line.ends_with(b"\n"));
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        let value = self
            .headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {:?}", self.headers));
        value.to_str().unwrap()
    }
}

/// A connection of a user that offers these protocols.
pub(super) async fn connect(relay: SocketAddr, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
    try_connect(relay, protocols).await.unwrap()
}

/// As [`connect`]; the error is that of the handshake.
pub(super) async fn try_connect(relay: SocketAddr, protocols: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
    let [chain, key, ca] = pem(&Role::User);
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(relay).await.unwrap();
    let name = ServerName::try_from("operator.test.local").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

fn parse(raw: &[u8], is_head: bool) -> Answer {
    let Some(end) = raw.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Answer::default();
    };
    let head = String::from_utf8(raw[..end].to_vec()).unwrap();
    let (first, fields) = head.split_once("\r\n").unwrap_or((&head, ""));
    let mut answer = Answer {
        status: first.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: headers(fields),
        ..Answer::default()
    };
    let rest = &raw[end + 4..];
    if answer.headers.contains_key("transfer-encoding") && !is_head {
        unchunk(rest, &mut answer);
    } else {
        let length = answer
            .headers
            .get("content-length")
            .map(|length| length.to_str().unwrap().parse::<usize>());
        answer.body = rest.to_vec();
        answer.is_whole = is_head || length.is_none_or(|length| length.unwrap() == rest.len());
    }
    answer
}

fn unchunk(mut rest: &[u8], answer: &mut Answer) {
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        rest = &rest[end + 2..];
        if length == 0 {
            answer.is_whole = rest.ends_with(b"\r\n");
            answer.trailers = headers(std::str::from_utf8(rest).unwrap().trim_end());
            return;
        }
        answer.body.extend_from_slice(&rest[..length.min(rest.len())]);
        rest = rest.get(length + 2..).unwrap_or_default();
    }
}

fn headers(fields: &str) -> HeaderMap {
    let fields = fields.split("\r\n").filter_map(|field| field.split_once(": "));
    let field = |(name, value): (&str, &str)| {
        (
            HeaderName::try_from(name).unwrap(),
            HeaderValue::try_from(value).unwrap(),
        )
    };
    fields.map(field).collect()
}
