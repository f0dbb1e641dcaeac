//! A fake API server for tests: a closure that answers each request of a real client.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tower::service_fn;

/// One request, as the API server sees it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub method: Method,
    /// Path without the query.
    pub path: String,
    /// The query after `?`; empty if there is none.
    pub query: String,
    /// `null` if there is none.
    pub body: Value,
}

/// A client whose requests are answered by `answer`, with a status code and an object.
pub(crate) fn client(answer: impl FnMut(Call) -> (u16, Value) + Send + 'static) -> Client {
    let answer = Arc::new(Mutex::new(answer));
    let service = service_fn(move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await.expect("a whole body");
            let call = Call {
                method: parts.method,
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            };
            let (code, object) = (answer.lock().expect("no panic before"))(call);
            let body = serde_json::to_vec(&object).expect("JSON");
            Ok::<_, Infallible>(
                Response::builder()
                    .status(code)
                    .body(Body::from(body))
                    .expect("a response"),
            )
        }
    });
    Client::new(service, "default")
}

/// The API server's way to refuse: a `Status` with a code and a reason, for example `(404, "NotFound")`.
pub(crate) fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code,
    });
    (code, status)
}
