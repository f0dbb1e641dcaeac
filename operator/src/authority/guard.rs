//! Runs before every method of the main listener: limits the calls of each user, and logs each refusal.

use std::{
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response, Uri};
use remoteprocess_tls::PeerIdentity;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body, transport::server::TcpConnectInfo};
use tower::Service;

use super::{csr::quoted, metrics::count_refusal, rate::RateLimit};

/// Calls of one user at once, and per second after that. Each may cost one request to the API server.
const BURST: f64 = 2000.0;
const PER_SECOND: f64 = 100.0;

/// Limits the calls of each user, and logs and counts refusals.
#[derive(Clone)]
pub struct Guard<S> {
    inner: S,
    /// By the SHA-256 of their names, which can be long.
    users: Arc<RateLimit<[u8; 32]>>,
}

impl<S> Guard<S> {
    /// Guards a service.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            users: Arc::new(RateLimit::new(BURST, PER_SECOND)),
        }
    }
}

impl<S, B> Service<Request<B>> for Guard<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Send,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = Call::of(&request);
        let is_admitted = call
            .user()
            .is_none_or(|user| self.users.admit(Sha256::digest(user).into(), Instant::now()));
        if !is_admitted {
            let response = Status::resource_exhausted("too many calls; try again later").into_http();
            call.note(&response);
            return std::future::ready(Ok(response)).boxed();
        }
        let answer = self.inner.call(request);
        async move {
            let response = answer.await?;
            call.note(&response);
            Ok(response)
        }
        .boxed()
    }
}

/// The caller and the method.
struct Call {
    peer: Option<Arc<PeerIdentity>>,
    source: Option<IpAddr>,
    method: Uri,
}

impl Call {
    fn of<B>(request: &Request<B>) -> Self {
        let info = request.extensions().get::<TcpConnectInfo>();
        Self {
            peer: request.extensions().get().cloned(),
            source: info.and_then(|info| Some(info.remote_addr?.ip())),
            method: request.uri().clone(),
        }
    }

    fn user(&self) -> Option<&str> {
        Some(&self.peer.as_ref()?.user.as_ref()?.name)
    }

    /// Logs and counts the response if it is a refusal.
    fn note(&self, response: &Response<Body>) {
        let headers = response.headers();
        let code = headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
        let reason = match code {
            Some(Code::PermissionDenied) => "PermissionDenied",
            Some(Code::Unauthenticated) => "Unauthenticated",
            Some(Code::ResourceExhausted) => "ResourceExhausted",
            _ => return,
        };
        count_refusal("main", reason);
        let message = headers.get("grpc-message").and_then(|message| message.to_str().ok());
        tracing::info!(
            target: "refused",
            user = self.user().map(quoted),
            role = self.peer.as_ref().map(|peer| tracing::field::display(&peer.role)),
            source = self.source.map(tracing::field::display),
            method = quoted(self.method.path()),
            reason,
            detail = message.map(quoted),
            "refused a call"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use remoteprocess_tls::{Role, User};
    use tower::service_fn;

    use super::*;

    fn request(user: &str) -> Request<()> {
        let mut request = Request::new(());
        request.extensions_mut().insert(Arc::new(PeerIdentity {
            role: Role::User,
            user: Some(User {
                name: user.into(),
                ..User::default()
            }),
            not_after: std::time::SystemTime::now(),
        }));
        request
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_cannot_ask_without_end() {
        let mut guard = Guard::new(service_fn(async |_: Request<()>| {
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }));
        let mut ask = async |user: &str| {
            let response = guard.call(request(user)).await.expect("an answer");
            !response.headers().contains_key("grpc-status")
        };
        let mut served = 0;
        for _ in 0..10_000 {
            served += usize::from(ask("mallory").await);
        }
        assert_eq!(served, 2000);
        assert!(ask("alice").await, "others are not concerned");
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert!(ask("mallory").await);
    }
}
