//! What a sender is told. Pure but for the wait for a result.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER as RETRY_AFTER_HEADER};
use http::{Response, StatusCode};
use http_body_util::Full;
use remoteprocess_api::sanitize;
use serde_json::json;
use tokio::sync::oneshot;

use crate::outcome;

/// When a sender may try again if messages are not taken.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longest sentence in an answer, in characters.
const MAX_SENTENCE: usize = 1024;

pub(super) type Reply = Response<Full<Bytes>>;

/// What the engine decided about a request.
pub(super) enum Answer {
    /// It has become this process, whose result may come.
    Accepted {
        process: String,
        result: Option<oneshot::Receiver<Vec<u8>>>,
    },
    /// Its process has ended with this event.
    Ended(Vec<u8>),
    /// Not now.
    Later {
        delay: Duration,
        reason: String,
        is_limit: bool,
    },
    /// Never.
    Refused(String),
}

/// The reply to a request that waits this long for its result, if it does.
pub(super) async fn reply(answer: Answer, namespace: &str, wait: Option<Duration>) -> Reply {
    match answer {
        Answer::Accepted { process, result } => {
            let ended = match (result, wait) {
                (Some(result), Some(wait)) => tokio::time::timeout(wait, result).await.ok().and_then(Result::ok),
                _ => None,
            };
            match ended {
                Some(event) => event_reply(event),
                None => json_reply(StatusCode::ACCEPTED, &json!({"namespace": namespace, "name": process})),
            }
        }
        Answer::Ended(event) => event_reply(event),
        Answer::Later {
            delay,
            reason,
            is_limit,
        } => later(is_limit, delay, &reason),
        Answer::Refused(reason) => error(StatusCode::UNPROCESSABLE_ENTITY, &reason),
    }
}

/// Not now: 429 if too many processes run, otherwise 503.
pub(super) fn later(is_limit: bool, delay: Duration, reason: &str) -> Reply {
    let status = if is_limit {
        StatusCode::TOO_MANY_REQUESTS
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut reply = error(status, reason);
    let seconds = delay.as_secs().max(1);
    reply
        .headers_mut()
        .insert(RETRY_AFTER_HEADER, HeaderValue::from(seconds));
    reply
}

/// A refusal with a sentence.
pub(super) fn error(status: StatusCode, sentence: &str) -> Reply {
    json_reply(status, &json!({"error": sanitize::plain(sentence, MAX_SENTENCE)}))
}

fn event_reply(event: Vec<u8>) -> Reply {
    body(StatusCode::OK, outcome::CONTENT_TYPE, event)
}

fn json_reply(status: StatusCode, value: &serde_json::Value) -> Reply {
    body(status, "application/json", format!("{value}\n").into_bytes())
}

fn body(status: StatusCode, media_type: &'static str, bytes: Vec<u8>) -> Reply {
    let mut reply = Response::new(Full::new(bytes.into()));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    reply
}
