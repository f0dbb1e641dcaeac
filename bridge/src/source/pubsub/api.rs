//! Calls of the REST API, with answers and refusals in bounds.

use std::error::Error;
use std::time::Duration;

use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::sanitize::acts_on_terminal;
use remoteprocess_api::trigger::PubSubSource;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::super::{ANSWER_TIMEOUT, Secrets, SourceError, tls_config};
use super::credential::Credential;

/// The service of Google.
const SERVICE: &str = "https://pubsub.googleapis.com";
/// Largest answer that is read, in bytes: a message has at most 10 MB, and base64 adds a third.
const MAX_ANSWER: usize = 16 << 20;
/// Largest answer that is no message, in bytes.
const MAX_REFUSAL: usize = 64 << 10;
/// Longest sentence of the service that is passed on, in characters.
const MAX_SENTENCE: usize = 512;

/// A service, and how we authenticate.
pub(super) struct Service {
    client: Client,
    endpoint: String,
    credential: Credential,
}

impl Service {
    pub(super) async fn new(source: &PubSubSource, secrets: &Secrets) -> Result<Self, SourceError> {
        let endpoint = source.endpoint.as_deref().unwrap_or(SERVICE).to_owned();
        // Credentials are never sent without TLS: that is an emulator.
        let credential = match endpoint.starts_with("https://") {
            true => Credential::read(source, secrets).await?,
            false => Credential::None,
        };
        let tls = tls_config(None, secrets).await?;
        let client = Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .redirect(Policy::none())
            .connect_timeout(ANSWER_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(10))
            .tcp_keepalive_interval(Duration::from_secs(5))
            .user_agent("remoteprocess-bridge")
            .build();
        Ok(Self {
            client: client.map_err(SourceError::unreachable)?,
            endpoint,
            credential,
        })
    }

    /// Posts to a path like `projects/P/topics/T:publish`.
    ///
    /// # Errors
    /// The service refuses, or does not answer within [`ANSWER_TIMEOUT`].
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, SourceError> {
        let answer = self.post_within(path, body, ANSWER_TIMEOUT).await?;
        answer.ok_or_else(|| {
            let seconds = ANSWER_TIMEOUT.as_secs();
            SourceError::unreachable(format!("{path}: no answer within {seconds} s"))
        })
    }

    /// The same with another limit; `None`: no answer within it.
    pub(super) async fn post_within(
        &self,
        path: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<Option<Value>, SourceError> {
        let request = self.client.post(self.url(path));
        let request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        tokio::time::timeout(limit, self.send(path, request))
            .await
            .ok()
            .transpose()
    }

    /// Gets an object.
    ///
    /// # Errors
    /// As [`Service::post`].
    pub(super) async fn get(&self, path: &str) -> Result<Value, SourceError> {
        super::super::in_time(path, self.send(path, self.client.get(self.url(path)))).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}/v1/{}", self.endpoint, encoded(path))
    }

    async fn send(&self, path: &str, request: RequestBuilder) -> Result<Value, SourceError> {
        let request = match self.credential.token(&self.client).await? {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let mut response = request.send().await.map_err(|cause| failed(path, &cause))?;
        let status = response.status();
        if status.is_success() {
            let body = read(&mut response, MAX_ANSWER)
                .await
                .map_err(|why| broken(path, &why))?;
            return serde_json::from_slice(&body).map_err(|error| broken(path, &error.to_string()));
        }
        let body = read(&mut response, MAX_REFUSAL).await.unwrap_or_default();
        Err(SourceError::new(
            reason(status),
            format!("{path}: {}", sentence(status, &body)),
        ))
    }
}

/// Names may have `%`; everything else that they may have is itself in a path.
fn encoded(path: &str) -> String {
    path.replace('%', "%25")
}

fn broken(path: &str, why: &str) -> SourceError {
    SourceError::unreachable(format!("{path}: {why}"))
}

/// Reads an answer to its end.
///
/// # Errors
/// It is larger than `limit`, or breaks off.
pub(super) async fn read(response: &mut Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| innermost(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(format!("the answer has more than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Why there is no answer.
pub(super) fn failed(what: &str, error: &reqwest::Error) -> SourceError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    let mut reason = BridgeReason::Unreachable;
    while let Some(error) = cause {
        let tls = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = tls.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let tls = tls.or_else(|| error.downcast_ref::<rustls::Error>());
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            reason = BridgeReason::Untrusted;
        }
        cause = error.source();
    }
    SourceError::new(reason, format!("{what}: {}", innermost(error)))
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn reason(status: StatusCode) -> BridgeReason {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => BridgeReason::Unauthorized,
        // A name that no topic can have is a bad request.
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => BridgeReason::NotFound,
        _ => BridgeReason::Unreachable,
    }
}

/// The service's own sentence, or the status.
fn sentence(status: StatusCode, body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = body
        .pointer("/error/message")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let clean = message.chars().filter(|character| !acts_on_terminal(*character));
    let clean: String = clean.take(MAX_SENTENCE).collect();
    match clean.is_empty() {
        true => format!("the service answered {status}"),
        false => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_words_of_the_service() {
        let body = br#"{"error": {"code": 404, "message": "Resource not found (resource=s).", "status": "NOT_FOUND"}}"#;
        assert_eq!(
            sentence(StatusCode::NOT_FOUND, body),
            "Resource not found (resource=s)."
        );
        for strange in [&b"<html>"[..], b"{}", br#"{"error": 7}"#, b"\xff"] {
            assert_eq!(
                sentence(StatusCode::BAD_GATEWAY, strange),
                "the service answered 502 Bad Gateway"
            );
        }
        let long = format!(r#"{{"error": {{"message": "\u001b[2J{}"}}}}"#, "x".repeat(10_000));
        let sentence = sentence(StatusCode::FORBIDDEN, long.as_bytes());
        assert!(sentence.len() == MAX_SENTENCE && !sentence.contains('\u{1b}'));
        assert_eq!(reason(StatusCode::FORBIDDEN), BridgeReason::Unauthorized);
        assert_eq!(reason(StatusCode::NOT_FOUND), BridgeReason::NotFound);
        assert_eq!(reason(StatusCode::TOO_MANY_REQUESTS), BridgeReason::Unreachable);
    }
}
