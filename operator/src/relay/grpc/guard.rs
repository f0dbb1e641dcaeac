//! Runs around every method of the main listener: limits the calls of each caller, and measures and records each call.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use remoteprocess_runtime::prometheus_client::metrics::counter::Counter;
use tonic::{Code, Status, body::Body, transport::server::TcpConnectInfo};
use tower::Service;
use tracing::Instrument;

use super::methods::Method;
use crate::relay::calls::{Call, CallLimit, Refused};

/// Limits the calls of each caller, and measures and records all calls.
#[derive(Clone)]
pub struct Guard<S> {
    inner: S,
    limit: CallLimit,
}

impl<S> Guard<S> {
    /// Guards a service.
    pub(super) fn new(inner: S, limit: CallLimit) -> Self {
        Self { inner, limit }
    }
}

impl<S, B> Service<Request<B>> for Guard<S>
where
    S: Service<Request<Counted<B>>, Response = Response<Body>> + Send,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: http_body::Body<Data = Bytes> + Unpin,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let method = Method::at(request.uri().path()).map_or("other", |method| method.name);
        let info = request.extensions().get::<TcpConnectInfo>();
        let source = info.and_then(|info| Some(info.remote_addr?.ip()));
        let call = Call::begin("grpc", method, request.extensions().get().cloned(), source);
        if !self.limit.admits(&call) {
            let response = Status::resource_exhausted("too many calls; try again later").into_http();
            return async move {
                CallLimit::penalty().await;
                Ok(measured(response, call))
            }
            .boxed();
        }
        request.extensions_mut().insert(call.refusal().clone());
        let request = request.map(|body| Counted {
            body,
            bytes: call.received(),
        });
        let answer = call.span().in_scope(|| self.inner.call(request));
        let span = call.span().clone();
        async move { Ok(measured(answer.await?, call)) }
            .instrument(span)
            .boxed()
    }
}

/// The response, with a body that ends the call.
fn measured(response: Response<Body>, mut call: Call) -> Response<Body> {
    if let Some(code) = code(response.headers()) {
        end(&mut call, code);
        return response;
    }
    response.map(|body| Body::new(Measured { body, call }))
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()))
}

fn end(call: &mut Call, code: Code) {
    let refused = match code {
        Code::PermissionDenied => Some(Refused::NoRight),
        Code::Unauthenticated => Some(Refused::Unauthenticated),
        Code::ResourceExhausted => Some(Refused::TooMany),
        _ => None,
    };
    call.end(name(code), refused);
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Cancelled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// The body of a request, counted.
pub struct Counted<B> {
    body: B,
    bytes: Counter,
}

impl<B> http_body::Body for Counted<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            self.bytes.inc_by(frame.data_ref().map_or(0, Buf::remaining) as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer. Its trailers have the code of the call.
struct Measured {
    body: Body,
    call: Call,
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = ready!(
            this.call
                .span()
                .clone()
                .in_scope(|| Pin::new(&mut this.body).poll_frame(cx))
        );
        match &frame {
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref().and_then(code)) {
                (Some(data), _) => this.call.send(data.remaining()),
                (None, Some(code)) => end(&mut this.call, code),
                (None, None) => {}
            },
            Some(Err(status)) => end(&mut this.call, status.code()),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::time::Duration;

    use futures::future::join_all;
    use remoteprocess_tls::{PeerIdentity, Role, User};
    use tokio::time::Instant;
    use tower::service_fn;

    use super::*;
    use crate::audit::lines::Lines;

    fn request(role: Role, user: Option<&str>) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(Arc::new(PeerIdentity {
            role,
            user: user.map(|user| User {
                name: user.into(),
                ..User::default()
            }),
            not_after: std::time::SystemTime::now(),
            serial: "5e".into(),
        }));
        request
    }

    fn by(user: &str) -> Request<Body> {
        request(Role::User, Some(user))
    }

    fn is_served(response: &Response<Body>) -> bool {
        !response.headers().contains_key("grpc-status")
    }

    fn guard()
    -> Guard<impl Service<Request<Counted<Body>>, Response = Response<Body>, Error = Infallible, Future: Send> + Send>
    {
        let served = service_fn(async |_: Request<Counted<Body>>| Ok::<_, Infallible>(Response::new(Body::empty())));
        Guard::new(served, CallLimit::default())
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_cannot_ask_without_end() {
        let lines = Lines::collect();
        let (mut guard, begin) = (guard(), Instant::now());
        // All at once: the answers of those that are refused take time.
        let asked: Vec<_> = (0..10_000).map(|_| guard.call(by("mallory"))).collect();
        let other = guard.call(by("alice")).await.expect("an answer");
        assert!(is_served(&other), "others are not concerned");
        assert_eq!(begin.elapsed(), Duration::ZERO, "and do not wait");
        let answers = join_all(asked).await;
        let served = answers.iter().flatten().filter(|answer| is_served(answer)).count();
        assert_eq!((answers.len(), served), (10_000, 2000));
        assert!(begin.elapsed() >= Duration::from_secs(1));
        assert!(is_served(&guard.call(by("mallory")).await.expect("an answer")));
        let refusals = lines.audit();
        assert_eq!(refusals.len(), 8000);
        let field = |name| refusals[0][name].as_str();
        assert_eq!(
            [field("action"), field("reason"), field("user")],
            ["refuse", "TooMany", "mallory"]
        );
        assert_eq!((field("serial"), field("role")), ("5e", "a user"));
    }

    /// A client that asks again at once would keep a processor busy with refusals.
    #[tokio::test(start_paused = true)]
    async fn a_caller_that_does_not_wait_is_answered_once_a_second() {
        let (mut guard, begin) = (guard(), Instant::now());
        while is_served(&guard.call(by("mallory")).await.expect("an answer")) {}
        assert_eq!(begin.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_agent_cannot_ask_without_end_and_a_replica_can() {
        let agent = |pod_uid: &str| Role::Agent {
            namespace: "default".to_owned(),
            pod_uid: pod_uid.to_owned(),
        };
        let mut guard = guard();
        let mut count = async |role: Role| {
            let asked: Vec<_> = (0..3000).map(|_| guard.call(request(role.clone(), None))).collect();
            join_all(asked)
                .await
                .iter()
                .flatten()
                .filter(|answer| is_served(answer))
                .count()
        };
        assert_eq!(count(agent("a")).await, 2000);
        assert_eq!(count(Role::Operator).await, 3000, "it calls for many users");
        assert_eq!(count(agent("b")).await, 2000, "others are not concerned");
    }
}
