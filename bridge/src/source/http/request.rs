//! One request: authenticates it, reads its body, waits for the engine's decision.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use remoteprocess_api::bridge::BridgeReason;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;

use super::answer::{self, RETRY_AFTER, Reply, later, reply};
use super::authentic::Claim;
use super::{HttpReceipt, Shared, WAITER};
use crate::message::{Message, percent_decoded};
use crate::source::Delivery;

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the engine may take to decide.
const DECISION_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a result that a request can ask for.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Headers that are a part of the message, besides `ce-*` and the one with the id. Gateways and senders put secrets into
/// others, and every user who can read ConfigMaps can read the message.
const KEPT_HEADERS: [&str; 3] = ["content-type", "idempotency-key", "webhook-id"];
/// A header with a secret, even if it is to be the id.
const SECRET_HEADERS: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "webhook-signature"];

/// Answers a request; never fails.
pub(super) async fn handle(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Reply, Infallible> {
    let wait = request.uri().query().and_then(wait_of);
    let (message, room) = match read(request, &shared).await {
        Ok(read) => read,
        Err(refusal) => {
            if refusal.status().is_client_error() {
                shared.refuse();
            }
            return Ok(*refusal);
        }
    };
    if let Some(reason) = shared.held() {
        return Ok(later(reason == BridgeReason::Limited, RETRY_AFTER, &sentence(reason)));
    }
    Ok(submit(message, room, wait, &shared).await)
}

/// Seconds in `?wait=SECONDS`, at most five minutes; `None` if the request does not wait.
fn wait_of(query: &str) -> Option<Duration> {
    let seconds = query.split('&').find_map(|pair| pair.strip_prefix("wait="))?;
    let seconds = seconds.parse().ok().filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(seconds).min(MAX_WAIT))
}

async fn read(request: Request<Incoming>, shared: &Shared) -> Result<(Message, OwnedSemaphorePermit), Box<Reply>> {
    let error = |status, sentence: &str| Box::new(answer::error(status, sentence));
    if request.uri().path() != "/" {
        return Err(error(StatusCode::NOT_FOUND, "the webhook is at /"));
    }
    if request.method() != Method::POST {
        return Err(error(StatusCode::METHOD_NOT_ALLOWED, "send messages by POST"));
    }
    let (parts, body) = request.into_parts();
    let authenticator = shared.authenticator();
    let claim = authenticator
        .claim(&parts.headers, Timestamp::now())
        .map_err(|sentence| error(StatusCode::UNAUTHORIZED, sentence))?;
    let (body, room) = read_body(&parts.headers, body, shared).await?;
    let signed_id = match claim {
        Claim::Token => None,
        Claim::Signature {
            id,
            timestamp,
            signatures,
        } => {
            if !authenticator.is_signed(&id, &timestamp, &body, &signatures) {
                return Err(error(StatusCode::UNAUTHORIZED, "the signature is wrong"));
            }
            Some(id)
        }
    };
    let message = message(&parts.headers, body, signed_id, shared.id_header.as_deref());
    Ok((message, room))
}

/// Permits of [`Shared::memory`] for a body of this size; each takes one KiB more for its headers.
fn room_of(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024).saturating_add(1)).unwrap_or(u32::MAX)
}

/// Reads the body, within its limits of size and time, when there is room for it.
async fn read_body(
    headers: &HeaderMap,
    body: Incoming,
    shared: &Shared,
) -> Result<(Bytes, OwnedSemaphorePermit), Box<Reply>> {
    let too_large = || {
        let sentence = format!("the body has more than {} bytes", shared.max_bytes);
        Box::new(answer::error(StatusCode::PAYLOAD_TOO_LARGE, &sentence))
    };
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > shared.max_bytes) {
        return Err(too_large());
    }
    let room = shared
        .memory
        .clone()
        .acquire_many_owned(room_of(length.unwrap_or(shared.max_bytes)));
    let Ok(Ok(room)) = timeout(BODY_TIMEOUT, room).await else {
        return Err(Box::new(later(false, RETRY_AFTER, "too many requests wait")));
    };
    let read = timeout(BODY_TIMEOUT, Limited::new(body, shared.max_bytes).collect()).await;
    match read {
        Ok(Ok(body)) => Ok((body.to_bytes(), room)),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Box::new(answer::error(StatusCode::BAD_REQUEST, "the body broke off"))),
        Err(_) => Err(Box::new(answer::error(
            StatusCode::REQUEST_TIMEOUT,
            "the body came too slowly",
        ))),
    }
}

fn message(headers: &HeaderMap, payload: Bytes, signed_id: Option<String>, id_header: Option<&str>) -> Message {
    let mut message = Message {
        payload,
        is_signed: signed_id.is_some(),
        ..Message::default()
    };
    for (name, value) in headers {
        let Ok(value) = value.to_str() else { continue };
        if !is_part(name.as_str(), id_header) {
            continue;
        }
        // HTTP Protocol Binding of CloudEvents, 3.1.3.2.
        if name.as_str().starts_with("ce-") {
            message.insert(name.as_str(), &percent_decoded(value));
        } else {
            message.insert(name.as_str(), value);
        }
    }
    message.content_type = message.header("content-type").map(str::to_owned);
    let given = message
        .header("webhook-id")
        .or_else(|| message.header("idempotency-key"));
    message.id = signed_id.or_else(|| given.map(str::to_owned));
    message
}

/// Whether a header is a part of the message. Names are in lower case.
fn is_part(name: &str, id_header: Option<&str>) -> bool {
    let is_wanted = name.starts_with("ce-") || KEPT_HEADERS.contains(&name) || id_header == Some(name);
    is_wanted && !SECRET_HEADERS.contains(&name)
}

async fn submit(
    mut message: Message,
    room: OwnedSemaphorePermit,
    wait: Option<Duration>,
    shared: &Arc<Shared>,
) -> Reply {
    let (answer, answered) = oneshot::channel();
    message.reply_to = wait.map(|_| WAITER.to_owned());
    let receipt = HttpReceipt {
        shared: shared.clone(),
        answer,
        waits: wait.is_some(),
        _room: Some(room),
    };
    let delivery = Delivery {
        message,
        receipt: Box::new(receipt),
    };
    let decided = async {
        shared.queue.send(delivery).await.ok()?;
        answered.await.ok()
    };
    match timeout(DECISION_TIMEOUT, decided).await {
        Ok(Some(answer)) => reply(answer, &shared.namespace, wait).await,
        Ok(None) | Err(_) => {
            let reason = shared.held();
            let is_limit = reason == Some(BridgeReason::Limited);
            later(
                is_limit,
                RETRY_AFTER,
                &reason.map_or_else(|| "no decision".to_owned(), sentence),
            )
        }
    }
}

/// Why messages are not taken, for a sender.
fn sentence(reason: BridgeReason) -> String {
    match reason {
        BridgeReason::Limited => "as many processes run as may (spec.policy)".to_owned(),
        BridgeReason::Suspended => "the trigger is suspended".to_owned(),
        other => format!("messages are not taken: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_have_a_bound() {
        assert_eq!(wait_of("wait=5"), Some(Duration::from_secs(5)));
        assert_eq!(wait_of("a=b&wait=99999"), Some(MAX_WAIT));
        for query in [
            "",
            "wait",
            "wait=",
            "wait=0",
            "wait=-1",
            "wait=x",
            "await=5",
            "wait=99999999999999999999",
        ] {
            assert_eq!(wait_of(query), None, "{query}");
        }
    }

    #[test]
    fn secrets_and_headers_of_the_connection_are_no_part_of_the_message() {
        let mut headers = HeaderMap::new();
        for name in SECRET_HEADERS.into_iter().chain(["host", "x-api-key", "x-order"]) {
            headers.insert(name, "x".parse().unwrap());
        }
        headers.insert("idempotency-key", "k1".parse().unwrap());
        headers.insert("ce-subject", "a%20b".parse().unwrap());
        let read = message(&headers, Bytes::new(), None, None);
        assert_eq!(
            read.headers.keys().collect::<Vec<_>>(),
            ["ce-subject", "idempotency-key"]
        );
        assert_eq!(
            (read.id.as_deref(), read.header("ce-subject")),
            (Some("k1"), Some("a b"))
        );
        headers.insert("webhook-id", "w1".parse().unwrap());
        assert_eq!(message(&headers, Bytes::new(), None, None).id.as_deref(), Some("w1"));
        let signed = message(&headers, Bytes::new(), Some("s1".into()), None);
        assert_eq!((signed.id.as_deref(), signed.is_signed), (Some("s1"), true));
        let with_id = |name| message(&headers, Bytes::new(), None, Some(name));
        assert_eq!(with_id("x-order").header("x-order"), Some("x"));
        assert_eq!(with_id("authorization").header("authorization"), None);
    }
}
