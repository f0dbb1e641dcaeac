//! The calls of the API server that the page makes, with your own credentials, and no others.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body as ApiBody;
use remoteprocess_api::{DesiredState, identifier, names};
use remoteprocess_client::{Cluster, Rule};
use serde::{Deserialize, Serialize};

use super::Body;
use super::problem::Problem;

/// A call that is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// List or watch.
    Read,
    /// May I …?
    Review,
    /// Pause or resume.
    Change,
}

/// The one change that the page makes: pause and resume, as `rproc pause` writes it.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Change {
    metadata: ChangeMetadata,
    spec: ChangeSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ChangeMetadata {
    /// So that the change never reaches another object of the same name.
    uid: String,
    annotations: Annotations,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Annotations {
    #[serde(rename = "remoteprocess.dev/reason")]
    reason: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ChangeSpec {
    desired_state: DesiredState,
}

impl Call {
    /// The call that a request makes.
    fn of(method: &Method, path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let is_namespace = identifier::is_namespace;
        match (method, parts.as_slice()) {
            (&Method::GET, ["api", "v1", "namespaces"]) => Some(Self::Read),
            (&Method::GET, ["api", "v1", "namespaces", namespace, "events"]) if is_namespace(namespace) => {
                Some(Self::Read)
            }
            (&Method::POST, ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]) => Some(Self::Review),
            (_, ["apis", names::GROUP, names::VERSION, rest @ ..]) => match (method, rest) {
                (&Method::GET, ["remoteprocesses"]) => Some(Self::Read),
                (&Method::GET, ["namespaces", namespace, "remoteprocesses"]) if is_namespace(namespace) => {
                    Some(Self::Read)
                }
                (&Method::PATCH, ["namespaces", namespace, "remoteprocesses", name])
                    if is_namespace(namespace) && identifier::is_name(name) =>
                {
                    Some(Self::Change)
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// The request for the API server.
    fn request(self, head: &Parts, body: &Bytes) -> Result<Request<Vec<u8>>, Problem> {
        let path = head.uri.path();
        let is_json = head
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind == "application/json");
        if self != Self::Read && !is_json {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "send JSON, with the header Content-Type: application/json",
            ));
        }
        let (uri, kind, body) = match self {
            Self::Read => (
                head.uri.path_and_query().map_or(path, |uri| uri.as_str()).to_owned(),
                None,
                Vec::new(),
            ),
            Self::Review => (path.to_owned(), Some("application/json"), body.to_vec()),
            Self::Change => (
                format!("{path}?fieldManager=rproc"),
                Some("application/merge-patch+json"),
                change(body)?,
            ),
        };
        let mut request = Request::builder().method(head.method.clone()).uri(uri);
        request = request.header(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        request.body(body).map_err(|error| Problem::defect(&error))
    }
}

/// The body of a change, read and written again.
fn change(body: &[u8]) -> Result<Vec<u8>, Problem> {
    let refused = |why: String| Problem::new(StatusCode::BAD_REQUEST, format!("the body: {why}"));
    let change: Change = serde_json::from_slice(body).map_err(|error| refused(error.to_string()))?;
    if !identifier::is_uid(&change.metadata.uid) {
        return Err(refused("metadata.uid is not the uid of an object".to_owned()));
    }
    match change.spec.desired_state {
        DesiredState::Running | DesiredState::Paused => {
            serde_json::to_vec(&change).map_err(|error| Problem::defect(&error))
        }
        DesiredState::Stopped => Err(refused("use the relay's route to stop a process".to_owned())),
    }
}

/// Makes a call of the page.
pub(super) async fn call(cluster: &Cluster, head: &Parts, body: &Bytes) -> Result<Response<Body>, Problem> {
    let call = Call::of(&head.method, head.uri.path())
        .ok_or_else(|| Problem::no_route("the page uses only a few calls of the API server"))?;
    let request = call.request(head, body)?.map(ApiBody::from);
    let answer = cluster.client.send(request).await.map_err(|error| {
        let rule = Rule::process("list, watch", "remoteprocess-view");
        let why = cluster.explain(&error, &rule, "reach the API server");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)
    })?;
    let (head, body) = answer.into_parts();
    let mut passed = Response::new(body.map_err(Into::into).boxed_unsync());
    *passed.status_mut() = head.status;
    for name in [CONTENT_TYPE, HeaderName::from_static("retry-after")] {
        if let Some(value) = head.headers.get(&name) {
            passed.headers_mut().insert(name, value.clone());
        }
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calls_of_the_page_pass() {
        let group = "/apis/remoteprocess.dev/v1alpha1";
        for (method, path, expected) in [
            (Method::GET, format!("{group}/remoteprocesses"), Some(Call::Read)),
            (
                Method::GET,
                format!("{group}/namespaces/a/remoteprocesses"),
                Some(Call::Read),
            ),
            (
                Method::PATCH,
                format!("{group}/namespaces/a/remoteprocesses/b"),
                Some(Call::Change),
            ),
            (Method::GET, "/api/v1/namespaces".to_owned(), Some(Call::Read)),
            (Method::GET, "/api/v1/namespaces/a/events".to_owned(), Some(Call::Read)),
            (
                Method::POST,
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".to_owned(),
                Some(Call::Review),
            ),
            (Method::POST, format!("{group}/namespaces/a/remoteprocesses"), None),
            (Method::DELETE, format!("{group}/namespaces/a/remoteprocesses/b"), None),
            (
                Method::PATCH,
                format!("{group}/namespaces/a/remoteprocesses/b/status"),
                None,
            ),
            (Method::PATCH, format!("{group}/namespaces/a/remoteprocesses/.."), None),
            (Method::GET, "/api/v1/namespaces/../secrets".to_owned(), None),
            (Method::GET, "/api/v1/namespaces/%2e%2e/events".to_owned(), None),
            (Method::GET, "/api/v1/namespaces/a/secrets".to_owned(), None),
            (Method::GET, "/api/v1/secrets".to_owned(), None),
            (Method::GET, "//api/v1/namespaces".to_owned(), None),
        ] {
            assert_eq!(Call::of(&method, &path), expected, "{method} {path}");
        }
    }

    #[test]
    fn a_change_pauses_or_resumes_and_does_nothing_else() {
        let body = |state: &str, more: &str| {
            format!(
                r#"{{"metadata":{{"uid":"a-1","annotations":{{"remoteprocess.dev/reason":"why"}}}},"spec":{{"desiredState":"{state}"{more}}}}}"#
            )
        };
        for state in ["Paused", "Running"] {
            let written = change(body(state, "").as_bytes()).unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), body(state, ""));
        }
        for (state, more) in [("Stopped", ""), ("Gone", ""), ("Paused", r#","command":["x"]"#)] {
            assert!(change(body(state, more).as_bytes()).is_err(), "{state} {more}");
        }
        assert!(change(br#"{"spec":{"desiredState":"Paused"}}"#).is_err(), "no uid");
    }
}
