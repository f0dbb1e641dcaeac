//! A server of HTTP that takes events, or does not.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Headers and body of a request.
type Taken = (BTreeMap<String, String>, Vec<u8>);

#[derive(Clone)]
pub(crate) struct Receiver {
    address: SocketAddr,
    code: Arc<AtomicU16>,
    taken: Arc<Mutex<Vec<Taken>>>,
    /// What an event that is refused has in it, and the answer.
    refused: Arc<Mutex<Option<(String, u16)>>>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            code: Arc::new(AtomicU16::new(200)),
            taken: Arc::default(),
            refused: Arc::default(),
        };
        let all = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let one = all.clone();
                let service = service_fn(move |request| {
                    let one = one.clone();
                    async move { one.serve(request).await }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        receiver
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/events", self.address)
    }

    /// How it answers from now on.
    pub(crate) fn answer(&self, code: u16) {
        self.code.store(code, Ordering::SeqCst);
    }

    /// Refuses events with this text from now on, with this answer.
    pub(crate) fn refuse(&self, text: &str, code: u16) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some((text.to_owned(), code));
    }

    /// Refuses none from now on.
    pub(crate) fn refuse_none(&self) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What it has confirmed.
    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let refused = refused.filter(|(text, _)| String::from_utf8_lossy(&body).contains(text));
        let code = refused.map_or_else(|| self.code.load(Ordering::SeqCst), |(_, code)| code);
        if (200..300).contains(&code) {
            let headers = parts.headers.iter();
            let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.push((headers.collect(), body));
        }
        let response = Response::builder().status(code).header("location", "/elsewhere");
        Ok(response.body(Empty::new()).unwrap())
    }
}
