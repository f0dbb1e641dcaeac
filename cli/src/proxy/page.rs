//! The page of `rproc ui`: its files, which are part of this program if they were built before it, and what it asks.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use remoteprocess_client::Cluster;
use serde_json::{Value, json};

use super::problem::Problem;
use super::{Body, full, objects};

/// What the page may load and run: its own files, and nothing inline.
const POLICY: &str = include_str!("../../../page/policy.txt");

/// One file of the page.
#[derive(Debug)]
pub struct File {
    name: &'static str,
    bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/page.rs"));

/// The page of one cluster.
pub struct Page {
    cluster: Arc<Cluster>,
    files: &'static [File],
    session: Value,
}

impl Page {
    /// The page; `None` if this program was built without it.
    pub fn new(cluster: Arc<Cluster>, user: Option<String>) -> Option<Self> {
        let files = Some(FILES).filter(|files| !files.is_empty())?;
        Some(Self::of(cluster, files, user))
    }

    /// A page of these files.
    fn of(cluster: Arc<Cluster>, files: &'static [File], user: Option<String>) -> Self {
        let session = json!({
            "namespace": cluster.namespace,
            "cluster": cluster.url,
            "user": user,
            "version": env!("CARGO_PKG_VERSION"),
        });
        Self {
            cluster,
            files,
            session,
        }
    }

    /// Answers a request that is not for the relay.
    pub(super) async fn answer(&self, head: Parts, body: Bytes) -> Result<Response<Body>, Problem> {
        let path = head.uri.path();
        if path == "/session.json" {
            return Ok(with_type(full(self.session.to_string()), "application/json"));
        }
        let name = match path {
            "/" => "index.html",
            path => &path[1..],
        };
        let Some(file) = self.files.iter().find(|file| file.name == name) else {
            return objects::call(&self.cluster, &head, &body).await;
        };
        if ![Method::GET, Method::HEAD].contains(&head.method) {
            return Err(Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "a file of the page is read",
            ));
        }
        let mut answer = with_type(full(file.bytes), media_type(name));
        let policy = HeaderValue::from_static(POLICY.trim_ascii());
        answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        Ok(answer)
    }
}

fn with_type(body: Body, kind: &'static str) -> Response<Body> {
    let mut answer = Response::new(body);
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "html")) => "text/html; charset=utf-8",
        Some((_, "js")) => "text/javascript; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        Some((_, "svg")) => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_no_inline_script_and_no_other_site() {
        assert!(POLICY.contains("default-src 'none'") && POLICY.contains("frame-ancestors 'none'"));
        assert!(!POLICY.contains("unsafe") && !POLICY.contains("http"), "{POLICY}");
        assert_eq!(POLICY.trim_ascii().lines().count(), 1);
    }
}
