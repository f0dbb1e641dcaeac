//! The connection between one operator and the API server: a layer below kube's client at which one fault happens.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::pending;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tower::BoxError;

/// How long a slow API server delays its watches.
const BEHIND: Duration = Duration::from_millis(150);

/// The single fault of a run. Calls that change something, and events of watches, are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing.
    None,
    /// The operator dies before it sends this call; another one starts.
    DiesBefore(usize),
    /// This call is carried out, and the operator dies before it gets the answer; another one starts.
    DiesAfter(usize),
    /// The same, and the first lists of the next one are as old as the object.
    StaleFromTheBeginning(usize),
    /// The same, and they are one version of the object behind.
    StaleByOne(usize),
    /// This call is not carried out but answered with this code.
    Refused(usize, u16),
    /// This call is carried out and answered with 500.
    AnswerLost(usize),
    /// The connection of a watch breaks in place of this event.
    WatchCut(usize),
    /// In place of this event the API server says that a new list is required (410).
    WatchGone(usize),
}

/// The connection of one run, for whichever operator uses it.
pub(super) struct Line {
    fault: Fault,
    server: Client,
    calls: AtomicUsize,
    events: AtomicUsize,
    has_struck: AtomicBool,
    /// Versions of the object in the order in which they were seen.
    versions: Mutex<Vec<String>>,
    /// From which version each kind is listed once, and for which kinds that has happened.
    stale: Mutex<(Option<String>, BTreeSet<String>)>,
}

impl Line {
    pub(super) fn new(server: Client, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            fault,
            server,
            calls: AtomicUsize::new(0),
            events: AtomicUsize::new(0),
            has_struck: AtomicBool::new(false),
            versions: Mutex::default(),
            stale: Mutex::default(),
        })
    }

    /// The client of an operator. When it dies, `dead` is cancelled and its calls are no longer sent or answered.
    pub(super) fn client(self: &Arc<Self>, dead: CancellationToken) -> Client {
        let line = self.clone();
        let service = tower::service_fn(move |request| {
            let (line, dead) = (line.clone(), dead.clone());
            async move { line.carry(request, &dead).await }
        });
        Client::new(service, "default")
    }

    /// Calls so far that change something.
    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Events so far.
    pub(super) fn events(&self) -> usize {
        self.events.load(Ordering::Relaxed)
    }

    /// Whether the fault has happened.
    pub(super) fn has_struck(&self) -> bool {
        self.has_struck.load(Ordering::Relaxed)
    }

    /// This version of the object was seen.
    pub(super) fn saw(&self, version: String) {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if versions.last() != Some(&version) {
            versions.push(version);
        }
    }

    async fn carry(self: Arc<Self>, request: Request<Body>, dead: &CancellationToken) -> Result<Answer, kube::Error> {
        if dead.is_cancelled() {
            return pending().await;
        }
        if request.method() != Method::GET {
            return self.change(request, dead).await;
        }
        let query = request.uri().query().unwrap_or_default();
        if query.contains("watch=true") {
            return self.watch(request).await;
        }
        // Only lists have a limit.
        let request = if query.contains("limit=") {
            self.age(request)
        } else {
            request
        };
        self.server.send(request).await.map(plain)
    }

    async fn change(&self, request: Request<Body>, dead: &CancellationToken) -> Result<Answer, kube::Error> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        match self.fault {
            Fault::DiesBefore(at) if at == call => self.die(dead).await,
            Fault::DiesAfter(at) | Fault::StaleFromTheBeginning(at) | Fault::StaleByOne(at) if at == call => {
                self.server.send(request).await?;
                self.die(dead).await
            }
            Fault::Refused(at, code) if at == call => {
                self.strike();
                Ok(refusal(code, request.method()))
            }
            Fault::AnswerLost(at) if at == call => {
                self.strike();
                let method = request.method().clone();
                self.server.send(request).await?;
                Ok(refusal(500, &method))
            }
            _ => self.server.send(request).await.map(plain),
        }
    }

    fn strike(&self) {
        self.has_struck.store(true, Ordering::Relaxed);
    }

    async fn die<T>(&self, dead: &CancellationToken) -> T {
        self.strike();
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stale = match self.fault {
            Fault::StaleFromTheBeginning(_) => versions.first(),
            Fault::StaleByOne(_) => versions.iter().rev().nth(1),
            _ => None,
        };
        self.stale.lock().unwrap_or_else(PoisonError::into_inner).0 = stale.cloned();
        dead.cancel();
        pending().await
    }

    /// After a death, the first list of each kind is an old one.
    fn age(&self, request: Request<Body>) -> Request<Body> {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(version), aged) = (stale.0.clone(), &mut stale.1) else {
            return request;
        };
        if !aged.insert(request.uri().path().to_owned()) {
            return request;
        }
        let (mut parts, body) = request.into_parts();
        let uri = format!("{}&resourceVersion={version}&resourceVersionMatch=Exact", parts.uri);
        parts.uri = uri.parse().expect("a URI with two more parameters");
        Request::from_parts(parts, body)
    }

    async fn watch(self: Arc<Self>, request: Request<Body>) -> Result<Answer, kube::Error> {
        let is_behind = self.stale.lock().unwrap_or_else(PoisonError::into_inner).0.is_some();
        if is_behind {
            sleep(BEHIND).await;
        }
        let (parts, body) = self.server.send(request).await?.into_parts();
        let events = Events {
            body: body.map_err(BoxError::from).boxed_unsync(),
            rest: Vec::new(),
            line: self,
            is_over: false,
        };
        Ok(Response::from_parts(parts, events.boxed_unsync()))
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

fn plain(response: Response<Body>) -> Answer {
    response.map(|body| body.map_err(BoxError::from).boxed_unsync())
}

/// The status object of the API server.
fn status(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "brought about by a test", "reason": reason, "code": code,
    })
}

fn refusal(code: u16, method: &Method) -> Answer {
    let reason = match (code, method) {
        (409, &Method::POST) => "AlreadyExists",
        (409, _) => "Conflict",
        (429, _) => "TooManyRequests",
        _ => "InternalError",
    };
    let body = Body::from(status(code, reason).to_string().into_bytes());
    let mut answer = plain(Response::new(body));
    *answer.status_mut() = StatusCode::from_u16(code).expect("a code of HTTP");
    answer
}

/// The body of a watch, event by event.
struct Events {
    body: UnsyncBoxBody<Bytes, BoxError>,
    rest: Vec<u8>,
    line: Arc<Line>,
    is_over: bool,
}

impl Events {
    /// The next complete event, or its replacement.
    fn take(&mut self) -> Option<Result<Bytes, BoxError>> {
        let end = self.rest.iter().position(|byte| *byte == b'\n')?;
        let event: Vec<u8> = self.rest.drain(..=end).collect();
        if event.starts_with(br#"{"type":"BOOKMARK""#) {
            return Some(Ok(event.into()));
        }
        let number = self.line.events.fetch_add(1, Ordering::Relaxed) + 1;
        match self.line.fault {
            Fault::WatchCut(at) if at == number => {
                self.line.strike();
                self.is_over = true;
                Some(Err(io::Error::from(io::ErrorKind::ConnectionReset).into()))
            }
            Fault::WatchGone(at) if at == number => {
                self.line.strike();
                self.is_over = true;
                let gone = json!({"type": "ERROR", "object": status(410, "Expired")});
                Some(Ok(format!("{gone}\n").into()))
            }
            _ => Some(Ok(event.into())),
        }
    }
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if self.is_over {
                return Poll::Ready(None);
            }
            if let Some(event) = self.take() {
                return Poll::Ready(Some(event.map(Frame::data)));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => self.rest.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake() -> Client {
        let events = concat!(
            "{\"type\":\"ADDED\",\"object\":1}\n{\"type\":\"BOOKMARK\",\"object\":2}\n",
            "{\"type\":\"ADDED\",\"object\":3}\n",
        );
        let service = tower::service_fn(move |_| async move {
            Ok::<_, io::Error>(Response::new(Body::from(events.as_bytes().to_vec())))
        });
        Client::new(service, "default")
    }

    async fn send(client: &Client, method: &str, uri: &str) -> Result<String, kube::Error> {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Body::empty())
            .expect("a request");
        let answer = client.send(request).await?;
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok(format!("{code} {}", String::from_utf8_lossy(&body)))
    }

    #[tokio::test]
    async fn one_call_is_refused_and_no_other() {
        let line = Line::new(fake(), Fault::Refused(2, 429));
        let client = line.client(CancellationToken::new());
        assert!(send(&client, "GET", "/x").await.expect("an answer").starts_with("200"));
        assert!(send(&client, "POST", "/x").await.expect("an answer").starts_with("200"));
        assert!(!line.has_struck());
        assert!(
            send(&client, "PATCH", "/x")
                .await
                .expect("an answer")
                .starts_with("429")
        );
        assert!(
            send(&client, "PATCH", "/x")
                .await
                .expect("an answer")
                .starts_with("200")
        );
        assert_eq!((line.calls(), line.has_struck()), (3, true));
    }

    #[tokio::test]
    async fn the_dead_say_nothing_and_hear_nothing() {
        for fault in [Fault::DiesBefore(1), Fault::DiesAfter(1)] {
            let (line, dead) = (Line::new(fake(), fault), CancellationToken::new());
            let client = line.client(dead.clone());
            tokio::select! {
                biased;
                _ = send(&client, "DELETE", "/x") => panic!("it was answered"),
                () = dead.cancelled() => {}
            }
            let read = send(&client, "GET", "/x");
            assert!(tokio::time::timeout(Duration::from_millis(20), read).await.is_err());
            assert!(send(&line.client(CancellationToken::new()), "GET", "/x").await.is_ok());
        }
    }

    #[tokio::test]
    async fn an_event_is_cut_off_or_replaced_and_bookmarks_are_none() {
        let whole = Line::new(fake(), Fault::None);
        let client = whole.client(CancellationToken::new());
        let seen = send(&client, "GET", "/x?watch=true").await.expect("events");
        assert!(seen.contains("3}") && whole.events() == 2, "{seen}");
        let gone = Line::new(fake(), Fault::WatchGone(2)).client(CancellationToken::new());
        let seen = send(&gone, "GET", "/x?watch=true").await.expect("events");
        assert!(
            seen.contains("BOOKMARK") && seen.contains("410") && !seen.contains("3}"),
            "{seen}"
        );
        let cut = Line::new(fake(), Fault::WatchCut(1)).client(CancellationToken::new());
        assert!(send(&cut, "GET", "/x?watch=true").await.is_err());
    }
}
