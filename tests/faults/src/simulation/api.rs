//! An API server with one object, and a minimal controller: attempt 1 with its pod, and the phase.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use rand::Rng;
use rand::rngs::StdRng;
use remoteprocess_api::RemoteProcess;
use remoteprocess_operator::directory::Directory;
use serde_json::{Value, json};
use tower::service_fn;

use super::plan::Plan;
use super::{NAME, NAMESPACE, POD_UID, UID};

/// How often a watch delivers changes.
const WATCH: Duration = Duration::from_millis(50);

/// How the API server behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Works normally.
    #[default]
    Works,
    /// Answers everything with 503.
    Refuses,
    /// Answers nothing until it works again.
    Hangs,
    /// Carries out each request, and answers that it failed.
    Lies,
}

impl Mode {
    pub(super) fn choose(rng: &mut StdRng) -> Self {
        [Self::Refuses, Self::Hangs, Self::Lies][rng.random_range(0..3)]
    }
}

/// The API server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api(Arc<Mutex<State>>);

struct State {
    object: Value,
    version: u64,
    mode: Mode,
}

impl Api {
    pub(super) fn new(plan: &Plan) -> Self {
        let output = json!({"whenFull": format!("{:?}", plan.spool.when_full)});
        let object = json!({
            "apiVersion": "remoteprocess.dev/v1alpha1",
            "kind": "RemoteProcess",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": UID, "generation": 1, "resourceVersion": "1"},
            "spec": {"image": "simulated", "command": ["program", plan.seed.to_string()], "output": output},
            "status": {
                "phase": "Pending",
                "attempt": 1,
                "attempts": [{"number": 1, "podName": "job-1", "podUid": POD_UID, "node": "node-1"}],
            },
        });
        Self(Arc::new(Mutex::new(State {
            object,
            version: 1,
            mode: Mode::Works,
        })))
    }

    pub(super) fn set(&self, mode: Mode) {
        self.lock().mode = mode;
    }

    pub(super) fn status(&self) -> Value {
        self.lock().object["status"].clone()
    }

    /// Whether the end and the seal are recorded.
    pub(super) fn has_output(&self) -> bool {
        !self.status()["attempts"][0]["output"].is_null()
    }

    /// Keeps a relay's directory up to date; never returns. `listed` is called after the first list.
    pub(super) async fn watch(&self, directory: &Directory, listed: impl FnOnce()) {
        let (mut listed, mut seen) = (Some(listed), 0);
        loop {
            let news = {
                let state = self.lock();
                let can_watch = matches!(state.mode, Mode::Works | Mode::Lies);
                (can_watch && state.version != seen).then(|| (state.version, state.object.clone()))
            };
            if let Some((version, object)) = news {
                seen = version;
                let process: RemoteProcess = serde_json::from_value(object).expect("an object of ours");
                directory.apply(process);
                if let Some(listed) = listed.take() {
                    listed();
                }
            }
            tokio::time::sleep(WATCH).await;
        }
    }

    /// A client; create it on the host that uses it.
    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        Client::new(service, "default")
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect_bytes().await.unwrap_or_default();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        tokio::time::sleep(Duration::from_millis(5)).await;
        while self.lock().mode == Mode::Hangs {
            tokio::time::sleep(WATCH).await;
        }
        let mode = self.lock().mode;
        if mode == Mode::Refuses {
            return respond(refusal(503, "ServiceUnavailable"));
        }
        let answer = self.answer(&parts.method, parts.uri.path(), body);
        if mode == Mode::Lies {
            return respond(refusal(500, "InternalError"));
        }
        respond(answer)
    }

    fn answer(&self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        if path.ends_with("/subjectaccessreviews") {
            let mut review = body;
            review["status"] = json!({"allowed": true});
            return (201, review);
        }
        if path.contains("/pods/") {
            let pod = json!({
                "metadata": {"name": "job-1", "uid": POD_UID, "ownerReferences": [
                    {"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "name": NAME, "uid": UID},
                ]},
                "spec": {"nodeName": "node-1", "containers": []},
                "status": {"phase": "Running"},
            });
            return (200, pod);
        }
        if path.ends_with("/events") {
            return (201, body);
        }
        let mut state = self.lock();
        if *method == Method::PUT {
            return state.replace_status(&body);
        }
        (200, state.object.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A write of the status by the relay.
    fn replace_status(&mut self, object: &Value) -> (u16, Value) {
        if object["metadata"]["resourceVersion"] != self.object["metadata"]["resourceVersion"] {
            return refusal(409, "Conflict");
        }
        self.object["status"] = object["status"].clone();
        self.version += 1;
        self.object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        (200, self.object.clone())
    }
}

fn respond((code, object): (u16, Value)) -> Response<Body> {
    let mut response = Response::new(Body::from(object.to_string().into_bytes()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code,
    });
    (code, status)
}
