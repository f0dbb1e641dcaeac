//! Errors as problem details (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use remoteprocess_proto::v1::Gap;
use serde::Serialize;

use crate::relay::calls::Refused;
use crate::relay::error::{Code, Error, MissingRule};

/// A refused request. Boxed, because it is rare.
#[derive(Debug)]
pub(super) struct Problem(Box<Details>);

#[derive(Debug)]
struct Details {
    status: StatusCode,
    error: Error,
    gap: Option<Gap>,
    header: Option<(http::HeaderName, HeaderValue)>,
}

/// The body of a problem.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Body {
    /// A name for the kind of failure, which does not change.
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    /// The gRPC name of the kind of failure.
    code: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_rule: Option<Box<MissingRule>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<Missing>,
}

/// A range that will never be delivered.
#[derive(Serialize)]
struct Missing {
    stream: &'static str,
    from: u64,
    to: Option<u64>,
    reason: &'static str,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::new(status(error.code), error)
    }
}

impl Problem {
    fn new(status: StatusCode, error: Error) -> Self {
        Self(Box::new(Details {
            status,
            error,
            gap: None,
            header: None,
        }))
    }

    /// A request that is wrong in a way that HTTP has a status for.
    pub(super) fn of_request(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::new(status, Error::invalid(detail))
    }

    /// Raw output that has a hole.
    pub(super) fn gap(gap: Gap) -> Self {
        let next = match gap.to {
            Some(to) => format!("Read on with offset={to}"),
            None => "Nothing follows".to_owned(),
        };
        let error = Error::new(
            Code::OutOfRange,
            format!(
                "{} has no bytes from offset {} on ({}), and raw output cannot show that. {next}, or ask for \
                 application/x-ndjson, which reports each gap in its place",
                gap.stream().name(),
                gap.from,
                <&'static str>::from(gap.reason()),
            ),
        );
        let mut problem = Self::new(StatusCode::GONE, error);
        problem.0.gap = Some(gap);
        problem
    }

    /// A range beyond the end.
    pub(super) fn range(length: u64) -> Self {
        let detail = format!("the output has {length} bytes; the range begins behind them");
        let mut problem = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, Error::new(Code::OutOfRange, detail));
        problem.0.header = HeaderValue::try_from(format!("bytes */{length}"))
            .ok()
            .map(|value| (CONTENT_RANGE, value));
        problem
    }

    /// The body, also for the last record of a stream that fails.
    pub(super) fn body(&self) -> Body {
        let Details { status, error, gap, .. } = &*self.0;
        let code = error.code.name();
        Body {
            kind: format!("tag:remoteprocess.dev,2026:{code}"),
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            code,
            detail: error.message.clone(),
            missing_rule: error.missing.clone(),
            gap: gap.map(|gap| Missing {
                stream: gap.stream().name(),
                from: gap.from,
                to: gap.to,
                reason: gap.reason().into(),
            }),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // The fields of a problem are texts and numbers.
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let Details {
            status, error, header, ..
        } = *self.0;
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        headers.extend(header);
        let refused = refusal(status, &error);
        response.extensions_mut().insert(Outcome {
            code: error.code.name(),
            refused,
        });
        response
    }
}

/// How a call failed, for its metrics and the audit log: in the extensions of the answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub code: &'static str,
    pub refused: Option<Refused>,
}

/// Why a request was refused; `None` for a failure that is no refusal.
fn refusal(status: StatusCode, error: &Error) -> Option<Refused> {
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => Some(Refused::TooLarge),
        StatusCode::REQUEST_TIMEOUT => Some(Refused::TooLate),
        StatusCode::TOO_MANY_REQUESTS => Some(Refused::TooMany),
        StatusCode::UNAUTHORIZED => Some(Refused::Unauthenticated),
        StatusCode::FORBIDDEN if error.missing.is_none() => Some(Refused::NoRole),
        StatusCode::FORBIDDEN => Some(Refused::NoRight),
        _ => None,
    }
}

fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::FailedPrecondition | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The answer of a path that no route has.
pub(super) async fn no_route() -> Problem {
    Error::not_found("there is no such route; /openapi.json has all of them").into()
}

/// The answer of a method that the route does not have.
pub(super) async fn no_method() -> Problem {
    Problem::of_request(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("this route does not take this method; see the header {ALLOW}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_the_rule_as_data() {
        let error = Error {
            missing: Some(Box::new(MissingRule {
                kind: "Role",
                namespace: Some("default".to_owned()),
                api_groups: ["remoteprocess.dev"],
                resources: ["remoteprocesses/log".to_owned()],
                verbs: ["get"],
            })),
            ..Error::new(Code::PermissionDenied, "why")
        };
        let body = serde_json::to_value(Problem::from(error).body()).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "type": "tag:remoteprocess.dev,2026:PermissionDenied", "title": "Forbidden", "status": 403,
                "code": "PermissionDenied", "detail": "why",
                "missingRule": {"kind": "Role", "namespace": "default", "apiGroups": ["remoteprocess.dev"],
                    "resources": ["remoteprocesses/log"], "verbs": ["get"]},
            })
        );
    }
}
