//! Requests to the relay's HTTP face, over one connection with a certificate that is renewed.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE, TE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use remoteprocess_client::dial::DIAL_LIMIT;
use remoteprocess_client::retry::innermost;
use remoteprocess_client::{Cluster, Dial, DialError, Relay};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use super::problem::Problem;

/// What is sent on of the headers of a request. All others are between the client and us.
const SENT_ON: [HeaderName; 9] = [
    ACCEPT,
    CONTENT_TYPE,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    RANGE,
    TE,
    HeaderName::from_static("last-event-id"),
];

/// The way to the relay.
pub struct Upstream {
    cluster: Arc<Cluster>,
    line: Mutex<Line>,
    /// The number of the connection that new requests use; 0 before the first.
    number: watch::Sender<u64>,
}

struct Line {
    relay: Relay,
    channel: Option<Channel>,
}

impl Upstream {
    /// The relay of this cluster, without a connection so far.
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster: cluster.clone(),
            line: Mutex::new(Line {
                relay: Relay::new(cluster),
                channel: None,
            }),
            number: watch::Sender::new(0),
        }
    }

    /// The cluster of the relay.
    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Connects now.
    ///
    /// # Errors
    /// There is no way to the relay.
    pub async fn connect(&self) -> Result<(), DialError> {
        self.channel(None).await.map(drop)
    }

    /// The current connection, or the next one if the one with this number is of no use.
    async fn channel(&self, broken: Option<u64>) -> Result<(Channel, u64), DialError> {
        let mut line = self.line.lock().await;
        let number = *self.number.borrow();
        if let Some(channel) = line.channel.clone().filter(|_| broken != Some(number)) {
            return Ok((channel, number));
        }
        line.channel = None;
        let late = |_| DialError::Unreachable("the relay cannot be reached in time".to_owned());
        let channel = timeout(DIAL_LIMIT, line.relay.dial()).await.map_err(late)??;
        line.channel = Some(channel.clone());
        self.number.send_modify(|number| *number += 1);
        Ok((channel, number + 1))
    }

    /// Replaces the connection before its certificate ends. Streams of the old one follow by themselves.
    pub(super) async fn renew(self: Arc<Self>) {
        let mut number = self.number.subscribe();
        // It fails only if this is gone.
        let _ = number.wait_for(|number| *number > 0).await;
        loop {
            let renewed = self.line.lock().await.relay.renewed();
            let (relay, channel) = renewed.await;
            let mut line = self.line.lock().await;
            (line.relay, line.channel) = (relay, Some(channel));
            self.number.send_modify(|number| *number += 1);
        }
    }

    /// One request, and the number of the connection that answered it.
    pub(super) async fn send(&self, request: &Outgoing) -> Result<(Response<tonic::body::Body>, u64), Problem> {
        let mut broken = None;
        loop {
            let is_last = broken.is_some();
            let (mut channel, number) = self.channel(broken).await?;
            let called = async { channel.ready().await?.call(request.build()).await };
            match called.await {
                // The relay has done nothing: the next certificate may be good.
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED && !is_last => {
                    let mut line = self.line.lock().await;
                    if *self.number.borrow() == number {
                        line.relay.discredit();
                    }
                }
                Ok(answer) if is_grpc(&answer) => {
                    return Err(Problem::new(
                        StatusCode::NOT_IMPLEMENTED,
                        "HTTP is off at this operator. Set its Helm value faces.http to true",
                    ));
                }
                Ok(answer) => return Ok((answer, number)),
                Err(error) if is_last || !request.is_safe() => return Err(request.unanswered(&error)),
                Err(_) => {}
            }
            broken = Some(number);
        }
    }

    /// Tells when new requests use another connection than this one.
    pub(super) async fn is_replaced(&self, number: u64) -> u64 {
        let mut current = self.number.subscribe();
        let newer = current
            .wait_for(|current| *current > number)
            .await
            .map(|number| *number);
        match newer {
            Ok(newer) => newer,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Whether the answer is one to a gRPC call, which we never make.
fn is_grpc<B>(answer: &Response<B>) -> bool {
    let kind = answer.headers().get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// A request for the relay, which can be sent again.
#[derive(Clone)]
pub(super) struct Outgoing {
    head: Request<()>,
    body: Bytes,
}

impl Outgoing {
    /// The part of a client's request that is for the relay.
    pub(super) fn of(head: Parts, body: Bytes) -> Result<Self, Problem> {
        if ![Method::GET, Method::HEAD, Method::POST].contains(&head.method) {
            return Err(Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "the relay takes GET, HEAD and POST",
            ));
        }
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(head.method).uri(path);
        for name in &SENT_ON {
            for value in head.headers.get_all(name) {
                request = request.header(name, value);
            }
        }
        let head = request.body(()).map_err(|error| Problem::defect(&error))?;
        Ok(Self { head, body })
    }

    /// The same request, for what follows this cursor.
    pub(super) fn after(&self, cursor: &str) -> Result<Self, Problem> {
        let uri = self.head.uri();
        let rest: Vec<(String, String)> =
            serde_urlencoded::from_str(uri.query().unwrap_or_default()).map_err(|error| Problem::defect(&error))?;
        let begins = ["offset", "tail", "since"];
        let rest = rest.into_iter().filter(|(name, _)| !begins.contains(&name.as_str()));
        let query: Vec<_> = rest.chain([("offset".to_owned(), cursor.to_owned())]).collect();
        let query = serde_urlencoded::to_string(query).map_err(|error| Problem::defect(&error))?;
        let mut next = self.clone();
        let uri = format!("{}?{query}", uri.path()).parse();
        *next.head.uri_mut() = uri.map_err(|error: http::uri::InvalidUri| Problem::defect(&error))?;
        next.head.headers_mut().remove("last-event-id");
        Ok(next)
    }

    fn build(&self) -> Request<tonic::body::Body> {
        let body = tonic::body::Body::new(Full::new(self.body.clone()));
        self.head.clone().map(|()| body)
    }

    /// Whether sending it twice does no harm.
    fn is_safe(&self) -> bool {
        self.head.method() != Method::POST
    }

    fn unanswered(&self, error: &tonic::transport::Error) -> Problem {
        let why = innermost(error);
        match self.is_safe() {
            true => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("the relay does not answer: {why}"),
            ),
            false => Problem::new(
                StatusCode::BAD_GATEWAY,
                format!(
                    "the connection to the relay broke before the answer: {why}. The relay may have done it; look at \
                     the process before you try again"
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_and_the_session_stay_here() {
        let head = Request::builder()
            .uri("http://127.0.0.1:9/v1/x?tail=5&follow=true&offset=a")
            .header("accept", "text/event-stream")
            .header("last-event-id", "old")
            .header("cookie", "rproc-9=secret")
            .header("authorization", "Bearer secret")
            .header("origin", "http://127.0.0.1:9")
            .body(())
            .unwrap()
            .into_parts()
            .0;
        let request = Outgoing::of(head, Bytes::new()).unwrap();
        let sent = request.build();
        assert_eq!(sent.uri(), "/v1/x?tail=5&follow=true&offset=a");
        let names: Vec<&str> = sent.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["accept", "last-event-id"]);
        let next = request.after("1 2+3").unwrap().build();
        assert_eq!(next.uri(), "/v1/x?follow=true&offset=1+2%2B3");
        assert!(!next.headers().contains_key("last-event-id"));
    }

    #[test]
    fn a_broken_post_is_not_repeated() {
        let post = Request::post("/v1/x").body(()).unwrap().into_parts().0;
        assert!(!Outgoing::of(post, Bytes::new()).unwrap().is_safe());
        let delete = Request::delete("/v1/x").body(()).unwrap().into_parts().0;
        assert!(Outgoing::of(delete, Bytes::new()).is_err());
    }
}
