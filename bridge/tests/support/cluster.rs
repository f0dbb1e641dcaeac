//! An API server in memory for the bridge: lists, watches, creations, patches, preconditions. And, in place of the
//! operator, something that runs processes.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::service_fn;

/// Namespace of everything.
pub(crate) const NAMESPACE: &str = "shop";
pub(crate) const PROCESSES: &str = "remoteprocesses";
pub(crate) const CONFIG_MAPS: &str = "configmaps";
pub(crate) const TRIGGERS: &str = "processtriggers";
pub(crate) const LEASES: &str = "leases";

/// Cheap to clone: all clones are the same cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<usize>,
}

/// The way of one bridge to the server. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Line {
    /// Name of the pod.
    pub(crate) identity: String,
    cut: Arc<AtomicU8>,
}

/// What of a line is cut: a call has no answer until that is over, and fails then.
#[derive(Clone, Copy)]
pub(crate) enum Cut {
    Nothing,
    /// Calls about the Lease.
    Lease,
    /// All calls. Watches that are open stay open.
    Everything,
}

impl Line {
    pub(crate) fn of(identity: &str) -> Self {
        Self {
            identity: identity.to_owned(),
            cut: Arc::default(),
        }
    }

    pub(crate) fn cut(&self, cut: Cut) {
        self.cut.store(cut as u8, Ordering::SeqCst);
    }

    fn is_cut_for(&self, path: &str) -> bool {
        let cut = self.cut.load(Ordering::SeqCst);
        cut == Cut::Everything as u8 || (cut == Cut::Lease as u8 && path.contains("/leases"))
    }
}

/// The body of an answer.
type Reply = UnsyncBoxBody<Bytes, Infallible>;
/// An answer of the server.
type Answer = (u16, Value);
/// Decides about a request before the server does: `None` lets it pass.
type Rule = Box<dyn FnMut(&Method, &str, &Value) -> Option<Answer> + Send>;

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    log: Vec<(String, &'static str, Value)>,
    rule: Option<Rule>,
    /// Every so many changes, the client does not learn that its change was carried out.
    lose_every: Option<usize>,
    changes: usize,
    /// Most processes that had not ended at the same time.
    most_running: usize,
    /// Message ids in the order in which their processes were created.
    created: Vec<String>,
    /// Message id and payload of each process that was run.
    journal: Vec<(String, String)>,
    /// Changes that a bridge made while it was not the holder of the Lease.
    strays: Vec<String>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }

    pub(crate) fn client(&self) -> Client {
        let cluster = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let cluster = cluster.clone();
            async move { Ok::<_, Infallible>(cluster.serve(request).await) }
        });
        Client::new(service, NAMESPACE)
    }

    /// The client of a bridge in an election.
    pub(crate) fn client_of(&self, line: &Line) -> Client {
        let (cluster, line) = (self.clone(), line.clone());
        let service = service_fn(move |request: Request<Body>| {
            let (cluster, line) = (cluster.clone(), line.clone());
            async move {
                let path = request.uri().path().to_owned();
                if !line.is_cut_for(&path) {
                    return Ok::<_, Infallible>(cluster.serve_to(request, Some(&line.identity)).await);
                }
                while line.is_cut_for(&path) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let (code, status) = refusal(503, "ServiceUnavailable");
                Ok(answer(code, &status))
            }
        });
        Client::new(service, NAMESPACE)
    }

    /// The holder of the Lease, of which there is one.
    pub(crate) fn holder(&self) -> Option<String> {
        self.state().holder()
    }

    /// Changes that a bridge made while it was not the holder of the Lease.
    pub(crate) fn strays(&self) -> Vec<String> {
        self.state().strays.clone()
    }

    async fn serve(&self, request: Request<Body>) -> Response<Reply> {
        self.serve_to(request, None).await
    }

    async fn serve_to(&self, request: Request<Body>, identity: Option<&str>) -> Response<Reply> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect_bytes().await.expect("a whole body");
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(pair)
            .collect();
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        let refusal = self
            .state()
            .rule
            .as_mut()
            .and_then(|rule| rule(&parts.method, parts.uri.path(), &body));
        if let Some((code, object)) = refusal {
            return answer(code, &object);
        }
        let Some(at) = path.iter().position(|part| *part == "namespaces") else {
            return answer(
                201,
                &json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                                       "spec": {}, "status": {"allowed": true}}),
            );
        };
        let (kind, name) = (path[at + 2].to_owned(), path.get(at + 3).map(|name| (*name).to_owned()));
        if query.contains_key("watch") {
            return self.watch(kind, &query);
        }
        let (code, object) = match (&parts.method, name) {
            (&Method::GET, None) => self.state().list(&kind, &query),
            (&Method::GET, Some(name)) => self.state().read(&kind, &name),
            (method, name) => {
                let mut state = self.state();
                state.note_stray(identity, method, &kind);
                let answer = state.change(method, &kind, name, &body, path.get(at + 4).is_some());
                drop(state);
                let length = self.state().log.len();
                self.changed.send_replace(length);
                answer
            }
        };
        answer(code, &object)
    }

    fn watch(&self, kind: String, query: &BTreeMap<String, String>) -> Response<Reply> {
        let from: u64 = query
            .get("resourceVersion")
            .and_then(|version| version.parse().ok())
            .unwrap_or_default();
        let (cluster, query, changed) = (self.clone(), query.clone(), self.changed.subscribe());
        let events = stream::unfold((0_usize, changed), move |(mut at, mut changed)| {
            let (cluster, query, kind) = (cluster.clone(), query.clone(), kind.clone());
            async move {
                loop {
                    changed.mark_unchanged();
                    let next = cluster.state().next_event(&mut at, &kind, from, &query);
                    if let Some(event) = next {
                        return Some((event, (at, changed)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        streamed(events)
    }

    pub(crate) fn state_of(&self, kind: &str, name: &str) -> Option<Value> {
        self.state().objects.get(&(kind.to_owned(), name.to_owned())).cloned()
    }

    /// All objects of a kind.
    pub(crate) fn all(&self, kind: &str) -> Vec<Value> {
        let state = self.state();
        let of_kind = state.objects.iter().filter(|((other, _), _)| other == kind);
        of_kind.map(|(_, object)| object.clone()).collect()
    }

    /// Stores an object as another client would.
    pub(crate) fn put(&self, kind: &str, object: Value) {
        self.state().store(kind, object);
        let length = self.state().log.len();
        self.changed.send_replace(length);
    }

    /// Changes an object as another client would.
    pub(crate) fn edit(&self, kind: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.state_of(kind, name).expect("the object");
        change(&mut object);
        self.put(kind, object);
    }

    pub(crate) fn remove(&self, kind: &str, name: &str) {
        self.state().remove(kind, name);
        let length = self.state().log.len();
        self.changed.send_replace(length);
    }

    /// Decides about requests from now on.
    pub(crate) fn rule(&self, rule: impl FnMut(&Method, &str, &Value) -> Option<Answer> + Send + 'static) {
        self.state().rule = Some(Box::new(rule));
    }

    pub(crate) fn no_rule(&self) {
        self.state().rule = None;
    }

    pub(crate) fn lose_every(&self, changes: usize) {
        self.state().lose_every = Some(changes);
    }

    pub(crate) fn most_running(&self) -> usize {
        self.state().most_running
    }

    pub(crate) fn created(&self) -> Vec<String> {
        self.state().created.clone()
    }

    pub(crate) fn journal(&self) -> Vec<(String, String)> {
        self.state().journal.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs each process that has its ConfigMap for this long; `exit` gives its exit code from its payload.
    pub(crate) async fn run_processes(self, duration: Duration, exit: fn(&str) -> i32) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let ready = self.state().start();
            for (name, payload) in ready {
                let cluster = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(duration).await;
                    cluster.end(&name, exit(&payload));
                });
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn end(&self, name: &str, code: i32) {
        let Some(mut process) = self.state_of(PROCESSES, name) else {
            return;
        };
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        let sealed = json!({"type": "OutputSealed", "status": "True", "reason": "Archived", "message": "",
                            "lastTransitionTime": now});
        let reason = if code == 0 { "Completed" } else { "NonZeroExit" };
        process["status"] = json!({
            "phase": phase, "reason": reason, "message": format!("exit code {code}"), "exitCode": code,
            "finishedAt": now, "conditions": [sealed],
        });
        self.put(PROCESSES, process);
    }

    /// The status of the trigger.
    pub(crate) fn status(&self) -> Value {
        self.all(TRIGGERS)[0]["status"].clone()
    }

    /// A condition of the trigger as `STATUS REASON: MESSAGE`.
    pub(crate) fn condition(&self, kind: &str) -> String {
        let status = self.status();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == kind);
        let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        found.map_or_else(String::new, |condition| {
            format!(
                "{} {}: {}",
                text(condition, "status"),
                text(condition, "reason"),
                text(condition, "message")
            )
        })
    }

    /// Waits until this is so; fails after 40 s.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !is_so(self) {
                changed.mark_unchanged();
                // What is asked for may not be an object.
                let _ = tokio::time::timeout(Duration::from_millis(50), changed.changed()).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(40), wait).await.is_err() {
            panic!("not in time: {what}; status: {:#}", self.status());
        }
    }
}

impl State {
    fn list(&self, kind: &str, query: &BTreeMap<String, String>) -> Answer {
        let of_kind = self
            .objects
            .iter()
            .filter(|((other, _), object)| other == kind && selects(query, object));
        let items: Vec<_> = of_kind.map(|(_, object)| object.clone()).collect();
        (
            200,
            json!({"metadata": {"resourceVersion": self.version.to_string()}, "items": items}),
        )
    }

    fn read(&self, kind: &str, name: &str) -> Answer {
        let found = self.objects.get(&(kind.to_owned(), name.to_owned()));
        found.map_or_else(|| refusal(404, "NotFound"), |object| (200, object.clone()))
    }

    fn next_event(&self, at: &mut usize, kind: &str, from: u64, query: &BTreeMap<String, String>) -> Option<Value> {
        while let Some((of, event, object)) = self.log.get(*at) {
            *at += 1;
            let version: u64 = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
            if of == kind && version > from && selects(query, object) {
                return Some(json!({"type": event, "object": object}));
            }
        }
        None
    }

    fn change(&mut self, method: &Method, kind: &str, name: Option<String>, body: &Value, is_status: bool) -> Answer {
        let answer = match (method, name) {
            (&Method::POST, None) => self.create(kind, body.clone()),
            (&Method::PATCH, Some(name)) => self.patch(kind, &name, body, is_status),
            (&Method::PUT, Some(name)) => self.replace(kind, &name, body.clone()),
            (&Method::DELETE, Some(name)) => self.delete(kind, &name, body),
            other => panic!("not expected: {other:?} {kind}"),
        };
        self.changes += 1;
        match self.lose_every {
            Some(every) if self.changes.is_multiple_of(every) => refusal(503, "ServiceUnavailable"),
            _ => answer,
        }
    }

    fn create(&mut self, kind: &str, mut object: Value) -> Answer {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        if self.objects.contains_key(&(kind.to_owned(), name)) {
            return refusal(409, "AlreadyExists");
        }
        if kind == PROCESSES {
            let id = object["metadata"]["annotations"]["remoteprocess.dev/message-id"].as_str();
            self.created.push(id.unwrap_or_default().to_owned());
        }
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        object["metadata"]["creationTimestamp"] = json!(now);
        let stored = self.store(kind, object);
        self.most_running = self.most_running.max(self.running());
        (201, stored)
    }

    fn replace(&mut self, kind: &str, name: &str, object: Value) -> Answer {
        let found = self.objects.get(&(kind.to_owned(), name.to_owned()));
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        match found.map(version) {
            None => refusal(404, "NotFound"),
            Some(found) if found != version(&object) => refusal(409, "Conflict"),
            Some(_) => (200, self.store(kind, object)),
        }
    }

    fn holder(&self) -> Option<String> {
        let (_, lease) = self.objects.iter().find(|((kind, _), _)| kind == LEASES)?;
        lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }

    /// Events are written beside the work, and say only what was so.
    fn note_stray(&mut self, identity: Option<&str>, method: &Method, kind: &str) {
        let Some(identity) = identity.filter(|_| kind != LEASES && kind != "events") else {
            return;
        };
        let holder = self.holder();
        if holder.as_deref() != Some(identity) {
            self.strays
                .push(format!("{identity}: {method} {kind}, while {holder:?} holds the lease"));
        }
    }

    fn running(&self) -> usize {
        let is_final = |object: &Value| matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let processes = self.objects.iter().filter(|((kind, _), _)| kind == PROCESSES);
        processes.filter(|(_, object)| !is_final(object)).count()
    }

    fn patch(&mut self, kind: &str, name: &str, patch: &Value, is_status: bool) -> Answer {
        let Some(mut object) = self.objects.get(&(kind.to_owned(), name.to_owned())).cloned() else {
            return refusal(404, "NotFound");
        };
        let uid = &patch["metadata"]["uid"];
        let version = &patch["metadata"]["resourceVersion"];
        let is_other = |wanted: &Value, field: &str| !wanted.is_null() && *wanted != object["metadata"][field];
        if is_other(uid, "uid") || is_other(version, "resourceVersion") {
            return refusal(409, "Conflict");
        }
        if is_status {
            object["status"] = patch["status"].clone();
        } else {
            let annotations = patch["metadata"]["annotations"]
                .as_object()
                .cloned()
                .unwrap_or_default();
            for (name, value) in annotations {
                object["metadata"]["annotations"][name] = value;
            }
        }
        (200, self.store(kind, object))
    }

    fn delete(&mut self, kind: &str, name: &str, options: &Value) -> Answer {
        let Some(object) = self.objects.get(&(kind.to_owned(), name.to_owned())) else {
            return refusal(404, "NotFound");
        };
        let uid = &options["preconditions"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return refusal(409, "Conflict");
        }
        self.remove(kind, name);
        (
            200,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
        )
    }

    fn remove(&mut self, kind: &str, name: &str) {
        let Some(mut object) = self.objects.remove(&(kind.to_owned(), name.to_owned())) else {
            return;
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if kind == PROCESSES {
            // The garbage collector.
            self.objects.remove(&(CONFIG_MAPS.to_owned(), name.to_owned()));
        }
        self.log.push((kind.to_owned(), "DELETED", object));
    }

    fn store(&mut self, kind: &str, mut object: Value) -> Value {
        self.version += 1;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(self.version.to_string());
        metadata["namespace"] = json!(NAMESPACE);
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
        }
        let key = (kind.to_owned(), metadata["name"].as_str().expect("a name").to_owned());
        let is_new = self.objects.insert(key, object.clone()).is_none();
        let event = if is_new { "ADDED" } else { "MODIFIED" };
        self.log.push((kind.to_owned(), event, object.clone()));
        object
    }

    /// Starts the processes that have their message; returns names and payloads.
    fn start(&mut self) -> Vec<(String, String)> {
        let mut started = Vec::new();
        let names: Vec<String> = self
            .objects
            .keys()
            .filter(|(kind, _)| kind == PROCESSES)
            .map(|(_, name)| name.clone())
            .collect();
        for name in names {
            let process = &self.objects[&(PROCESSES.to_owned(), name.clone())];
            let config_map = self.objects.get(&(CONFIG_MAPS.to_owned(), name.clone()));
            let (None, Some(config_map)) = (process["status"]["phase"].as_str(), config_map) else {
                continue;
            };
            assert_eq!(
                config_map["metadata"]["ownerReferences"][0]["uid"],
                process["metadata"]["uid"]
            );
            let payload = config_map["data"]["payload"].as_str().unwrap_or("(binary)").to_owned();
            let id = process["metadata"]["annotations"]["remoteprocess.dev/message-id"]
                .as_str()
                .unwrap_or_default();
            self.journal.push((id.to_owned(), payload.clone()));
            let mut running = process.clone();
            running["status"] = json!({"phase": "Running"});
            self.store(PROCESSES, running);
            started.push((name, payload));
        }
        started
    }
}

/// A refusal as of the API server.
pub(crate) fn refusal(code: u16, reason: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code,
    });
    (code, status)
}

fn pair(pair: &str) -> Option<(String, String)> {
    let (name, value) = pair.split_once('=')?;
    Some((
        name.to_owned(),
        value
            .replace("%3D", "=")
            .replace("%2F", "/")
            .replace("%2f", "/")
            .replace("%3d", "="),
    ))
}

fn selects(query: &BTreeMap<String, String>, object: &Value) -> bool {
    let label = query.get("labelSelector").and_then(|selector| selector.split_once('='));
    let field = query.get("fieldSelector").and_then(|selector| selector.split_once('='));
    label.is_none_or(|(name, value)| object["metadata"]["labels"][name] == value)
        && field.is_none_or(|(_, value)| object["metadata"]["name"] == value)
}

fn answer(code: u16, object: &Value) -> Response<Reply> {
    let body = serde_json::to_vec(object).expect("JSON");
    let body = Full::new(Bytes::from(body)).boxed_unsync();
    Response::builder().status(code).body(body).expect("a response")
}

fn streamed(events: impl Stream<Item = Value> + Send + 'static) -> Response<Reply> {
    let frames = events.map(|event| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n")))));
    let body = StreamBody::new(frames).boxed_unsync();
    Response::builder().status(200).body(body).expect("a response")
}

/// A trigger with this source and policy.
pub(crate) fn trigger(source: Value, policy: Value) -> Value {
    json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessTrigger",
        "metadata": {"name": "orders", "generation": 1},
        "spec": {
            "serviceAccountName": "orders", "source": source, "policy": policy,
            "template": {"spec": {"image": "worker", "command": ["work"]}},
        },
    })
}
