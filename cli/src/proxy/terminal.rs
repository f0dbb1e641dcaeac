//! The terminals of the page: a WebSocket for `attach` and one for `exec`, between a client on this machine and the
//! client library, which resumes over connections to the relay that break.
//!
//! [`message`] is what both sides say, [`socket`] the side of the client, [`process`] that of the process. `docs/ui.md`
//! describes the protocol.
//!
//! Invariant: input reaches the process at most once and in order. A client that comes back opens another terminal, and
//! nothing of the old one is sent again.

mod message;
mod process;
mod socket;

use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderName, HeaderValue, ORIGIN};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use remoteprocess_api::identifier;
use remoteprocess_client::Cluster;
use remoteprocess_proto::v1::ProcessKey;
use tokio::sync::Semaphore;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::Role;
use tonic::Code;

use super::problem::Problem;
use super::{Body, full};
use message::ServerMessage;
use process::Target;

/// The first part of the paths of terminals.
pub(super) const PREFIX: &str = "/terminal/";
/// The name of the protocol, which the client must offer.
pub const PROTOCOL: &str = "v1.terminal.remoteprocess.dev";
const SUBPROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
/// Terminals at once.
const MAX_TERMINALS: usize = 64;

/// What a terminal is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The process itself.
    Attach,
    /// Another command in its container.
    Exec,
}

/// The terminals of one proxy.
pub(super) struct Terminals {
    cluster: Arc<Cluster>,
    seats: Arc<Semaphore>,
}

impl Terminals {
    /// No terminal so far.
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            seats: Arc::new(Semaphore::new(MAX_TERMINALS)),
        }
    }

    /// Opens a terminal for a request that the gate has admitted.
    pub(super) fn open(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        let (kind, process) = target(request.uri().path())
            .ok_or_else(|| Problem::no_route("a terminal is /terminal/NAMESPACE/NAME/attach or …/exec"))?;
        check(request.headers())?;
        let bad = |error| Problem::new(StatusCode::BAD_REQUEST, format!("this is no WebSocket: {error}"));
        let mut answer = create_response_with_body(&request, || full("")).map_err(bad)?;
        let protocol = HeaderValue::from_static(PROTOCOL);
        answer.headers_mut().insert(SUBPROTOCOL, protocol);
        let seat = self.seats.clone().try_acquire_owned();
        let upgrade = hyper::upgrade::on(&mut request);
        let target = Target::new(self.cluster.clone(), kind, process);
        tokio::spawn(async move {
            // A client that breaks off here has no terminal.
            let Ok(upgraded) = upgrade.await else { return };
            let config = Some(socket::config());
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, config).await;
            match seat {
                Ok(_seat) => socket::serve(socket, target).await,
                // A browser does not show why an upgrade fails.
                Err(_) => socket::refuse(socket, &too_many()).await,
            }
        });
        Ok(answer)
    }
}

/// The answer to a client for whom no terminal is left.
fn too_many() -> ServerMessage {
    ServerMessage::Error {
        code: format!("{:?}", Code::ResourceExhausted),
        message: format!("there are {MAX_TERMINALS} terminals, which is the limit. Close one"),
    }
}

/// The process of a path.
fn target(path: &str) -> Option<(Kind, ProcessKey)> {
    let parts: Vec<&str> = path.strip_prefix(PREFIX)?.split('/').collect();
    let [namespace, name, kind] = parts[..] else {
        return None;
    };
    let kind = match kind {
        "attach" => Kind::Attach,
        "exec" => Kind::Exec,
        _ => return None,
    };
    let process = ProcessKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..ProcessKey::default()
    };
    (identifier::is_namespace(namespace) && identifier::is_name(name)).then_some((kind, process))
}

/// What a terminal needs beyond the session. The gate has compared `Origin` if it is there; a browser always sends it
/// with a WebSocket, and the policy that keeps other sites from reading an answer does not hold for WebSockets.
fn check(headers: &HeaderMap) -> Result<(), Problem> {
    if !headers.contains_key(ORIGIN) && !headers.contains_key(AUTHORIZATION) {
        return Err(Problem::forbidden(
            "a terminal needs the header Origin, or the bearer token",
        ));
    }
    let offered = headers.get_all(SUBPROTOCOL).iter();
    let mut offered = offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    match offered.any(|name| name.trim() == PROTOCOL) {
        true => Ok(()),
        false => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            format!("offer the protocol {PROTOCOL} in the header Sec-WebSocket-Protocol"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_a_process() {
        let (kind, process) = target("/terminal/team/build-1/exec").unwrap();
        assert_eq!(
            (kind, &*process.namespace, &*process.name),
            (Kind::Exec, "team", "build-1")
        );
        assert_eq!(target("/terminal/a/b/attach").unwrap().0, Kind::Attach);
        for path in [
            "/terminal/a/b",
            "/terminal/a/b/other",
            "/terminal/a/b/exec/c",
            "/terminal/../b/exec",
            "/terminal/a/%2e/exec",
            "/terminal//b/exec",
        ] {
            assert!(target(path).is_none(), "{path}");
        }
    }

    #[test]
    fn a_terminal_needs_the_origin_or_the_token_and_the_protocol() {
        let headers = |given: &[(&'static str, &'static str)]| {
            HeaderMap::from_iter(
                given
                    .iter()
                    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))),
            )
        };
        let offer = ("sec-websocket-protocol", "x, v1.terminal.remoteprocess.dev");
        assert!(check(&headers(&[offer, ("origin", "http://127.0.0.1:9")])).is_ok());
        assert!(check(&headers(&[offer, ("authorization", "Bearer x")])).is_ok());
        let refused = |given: &[(&'static str, &'static str)]| check(&headers(given)).unwrap_err().status().as_u16();
        assert_eq!(refused(&[offer]), 403);
        assert_eq!(refused(&[("origin", "http://127.0.0.1:9")]), 400);
    }
}
