//! Errors of the proxy itself as problem details (RFC 9457), in the form that the relay's have.

use std::error::Error;

use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use remoteprocess_client::DialError;
use serde_json::json;

use super::{Body, full};

/// A request that was refused or that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    /// A problem with this status.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
        }
    }

    /// The request may never succeed.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// The request has no session.
    pub fn unauthenticated(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// There is no such route.
    pub fn no_route(detail: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no such route; {detail}"))
    }

    /// Something that cannot happen.
    pub fn defect(error: &dyn Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The gRPC name of this kind of failure, as in the relay's problems.
    fn code(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "Unauthenticated",
            StatusCode::FORBIDDEN => "PermissionDenied",
            StatusCode::NOT_FOUND => "NotFound",
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => "Unavailable",
            StatusCode::GATEWAY_TIMEOUT => "DeadlineExceeded",
            StatusCode::NOT_IMPLEMENTED => "Unimplemented",
            StatusCode::INTERNAL_SERVER_ERROR => "Internal",
            _ => "InvalidArgument",
        }
    }

    /// The answer.
    pub fn into_response(self) -> Response<Body> {
        let body = json!({
            "type": format!("tag:remoteprocess.dev,2026:{}", self.code()),
            "title": self.status.canonical_reason().unwrap_or_default(),
            "status": self.status.as_u16(),
            "code": self.code(),
            "detail": self.detail,
        });
        let mut answer = Response::new(full(body.to_string()));
        *answer.status_mut() = self.status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self.status {
            StatusCode::UNAUTHORIZED => headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            StatusCode::SERVICE_UNAVAILABLE => headers.insert(RETRY_AFTER, HeaderValue::from_static("1")),
            _ => None,
        };
        answer
    }
}

impl From<DialError> for Problem {
    fn from(error: DialError) -> Self {
        let status = match &error {
            DialError::Refused(_) => StatusCode::FORBIDDEN,
            DialError::Missing(_) => StatusCode::BAD_GATEWAY,
            DialError::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}
