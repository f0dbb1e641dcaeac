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
    /// Whether this program was built with the page.
    pub fn is_built() -> bool {
        !FILES.is_empty()
    }

    /// The page of this cluster, for this user.
    pub fn new(cluster: Arc<Cluster>, user: Option<String>) -> Self {
        Self::of(cluster, FILES, user)
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
        Some((_, "txt")) => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    /// A page whose API server remembers what it is asked.
    fn page(asked: &Asked) -> Page {
        let asked = asked.clone();
        let api = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            asked.lock().unwrap().push(request.map(|_| ()));
            std::future::ready(Ok::<_, std::convert::Infallible>(Response::new(
                kube::client::Body::from(b"{}".to_vec()),
            )))
        });
        let cluster = Cluster {
            client: kube::Client::new(api, "default"),
            namespace: "team".into(),
            operator_namespace: "system".into(),
            url: "https://cluster".into(),
            account: Default::default(),
            connector: Default::default(),
            server: None,
            cache: None,
        };
        static FILES: &[File] = &[File {
            name: "index.html",
            bytes: b"<!doctype html>",
        }];
        Page::of(Arc::new(cluster), FILES, Some("alice".to_owned()))
    }

    type Asked = Arc<std::sync::Mutex<Vec<http::Request<()>>>>;

    async fn get(page: &Page, path: &str) -> Result<Response<Body>, Problem> {
        let request = http::Request::get(path)
            .header("cookie", "rproc-9=secret")
            .body(())
            .unwrap();
        page.answer(request.into_parts().0, Bytes::new()).await
    }

    #[tokio::test]
    async fn files_the_session_and_the_api_server_have_their_paths() {
        let asked = Asked::default();
        let page = page(&asked);
        let index = get(&page, "/").await.unwrap();
        assert_eq!(index.headers()[CONTENT_SECURITY_POLICY], POLICY.trim_ascii());
        assert_eq!(index.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        let session = get(&page, "/session.json").await.unwrap().into_body().collect().await;
        let session: Value = serde_json::from_slice(&session.unwrap().to_bytes()).unwrap();
        assert_eq!(
            (&session["namespace"], &session["user"]),
            (&json!("team"), &json!("alice"))
        );
        assert_eq!(
            get(&page, "/api/v1/secrets").await.unwrap_err().status(),
            StatusCode::NOT_FOUND
        );
        assert!(asked.lock().unwrap().is_empty());
        get(&page, "/api/v1/namespaces?limit=1").await.unwrap();
        let sent = asked.lock().unwrap().pop().unwrap();
        assert_eq!(
            sent.uri().path_and_query().unwrap().as_str(),
            "/api/v1/namespaces?limit=1"
        );
        assert!(!sent.headers().contains_key("cookie"), "{sent:?}");
    }

    #[test]
    fn the_policy_allows_no_inline_script_and_no_other_site() {
        assert!(POLICY.contains("default-src 'none'") && POLICY.contains("frame-ancestors 'none'"));
        assert!(!POLICY.contains("unsafe") && !POLICY.contains("http"), "{POLICY}");
        assert_eq!(POLICY.trim_ascii().lines().count(), 1);
    }
}
