//! A fake API server that keeps what it is given, for tests in which controller and relay work on the same object:
//! resourceVersions, writes of the status, preconditions of deletions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Method;
use kube::Client;
use remoteprocess_api::RemoteProcess;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::fake_api::{self, Call, refusal};

/// Kind by its plural, and name; everything is in one namespace.
type Key = (String, String);

/// Cheap to clone: all clones are the same cluster.
#[derive(Clone, Default)]
pub(crate) struct FakeCluster(Arc<Mutex<State>>);

/// How many calls that change something a client has made, and after which of them it is dead.
#[derive(Clone, Default)]
pub(crate) struct Life(Arc<Mutex<(usize, Option<usize>)>>);

impl Life {
    /// Dead after this many calls that change something.
    pub(crate) fn ends_after(calls: usize) -> Self {
        Self(Arc::new(Mutex::new((0, Some(calls)))))
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn is_over(&self) -> bool {
        let (calls, end) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        end.is_some_and(|end| calls >= end)
    }

    fn count(&self, call: &Call) {
        if call.method != Method::GET {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
        }
    }
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    status_writes: Vec<(String, Value)>,
    events: Vec<Value>,
}

impl FakeCluster {
    /// A client of this cluster.
    pub(crate) fn client(&self) -> Client {
        let cluster = self.clone();
        fake_api::client(move |call| cluster.state().answer(&call))
    }

    /// A client that may die: its calls count in `life`.
    pub(crate) fn mortal_client(&self, life: Life) -> Client {
        let cluster = self.clone();
        fake_api::client(move |call| {
            if life.is_over() {
                return refusal(503, "Dead");
            }
            let answer = cluster.state().answer(&call);
            life.count(&call);
            // The call was carried out, and the caller never learns that.
            if life.is_over() { refusal(503, "Dead") } else { answer }
        })
    }

    /// Stores an object as another client would; its resourceVersion and uid are set here.
    pub(crate) fn put(&self, kind: &str, object: &impl serde::Serialize) {
        let object = serde_json::to_value(object).expect("JSON");
        self.state().store(kind, object);
    }

    /// The object of this kind (plural) and name.
    pub(crate) fn get<K: DeserializeOwned>(&self, kind: &str, name: &str) -> Option<K> {
        let state = self.state();
        let object = state.objects.get(&(kind.to_owned(), name.to_owned()))?;
        Some(serde_json::from_value(object.clone()).expect("the kind"))
    }

    /// Changes an object, as another client would.
    pub(crate) fn edit<K: DeserializeOwned + serde::Serialize>(
        &self,
        kind: &str,
        name: &str,
        act: impl FnOnce(&mut K),
    ) {
        let mut object: K = self.get(kind, name).expect("the object");
        act(&mut object);
        self.put(kind, &object);
    }

    /// Removes an object.
    pub(crate) fn remove(&self, kind: &str, name: &str) {
        self.state().objects.remove(&(kind.to_owned(), name.to_owned()));
    }

    /// The process of this name.
    pub(crate) fn process(&self, name: &str) -> RemoteProcess {
        self.get("remoteprocesses", name).expect("the process")
    }

    /// Changes with every change of an object.
    pub(crate) fn version(&self) -> u64 {
        self.state().version
    }

    /// Each write of a status that changed it: the field manager and the whole status afterwards.
    pub(crate) fn status_writes(&self) -> Vec<(String, Value)> {
        self.state().status_writes.clone()
    }

    /// The Events that were written, each once, with its series.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.state().events.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn answer(&mut self, call: &Call) -> (u16, Value) {
        let parts: Vec<&str> = call.path.trim_matches('/').split('/').collect();
        let at = parts.iter().position(|part| *part == "namespaces").map_or_else(
            || parts.iter().position(|part| *part == "nodes"),
            |namespaces| Some(namespaces + 2),
        );
        let Some(at) = at else { return refusal(404, "NotFound") };
        let kind = parts[at].to_owned();
        let name = parts.get(at + 1).map(|name| (*name).to_owned());
        match (&call.method, name, parts.get(at + 2).copied()) {
            (&Method::POST, None, _) => self.create(&kind, call.body.clone()),
            (&Method::PATCH, Some(name), None) if kind == "events" => self.renew_event(&name, &call.body),
            (&Method::GET, Some(name), _) => self.read(&(kind, name)),
            (&Method::PUT, Some(name), Some("status")) => self.replace_status((kind, name), call),
            (&Method::DELETE, Some(name), _) => self.delete(&(kind, name), &call.body),
            _ => panic!("not expected: {call:?}"),
        }
    }

    fn read(&self, key: &Key) -> (u16, Value) {
        let found = self.objects.get(key);
        found.map_or_else(|| refusal(404, "NotFound"), |object| (200, object.clone()))
    }

    fn create(&mut self, kind: &str, object: Value) -> (u16, Value) {
        if kind == "events" {
            return self.create_event(object);
        }
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        if self.objects.contains_key(&(kind.to_owned(), name)) {
            return refusal(409, "AlreadyExists");
        }
        (201, self.store(kind, object))
    }

    /// Events do not change the version, because nothing waits for them.
    fn create_event(&mut self, event: Value) -> (u16, Value) {
        if self.event(&event["metadata"]["name"]).is_some() {
            return refusal(409, "AlreadyExists");
        }
        self.events.push(event.clone());
        (201, event)
    }

    fn renew_event(&mut self, name: &str, patch: &Value) -> (u16, Value) {
        let Some(event) = self.event(&json!(name)) else {
            return refusal(404, "NotFound");
        };
        event["series"] = patch["series"].clone();
        (200, event.clone())
    }

    fn event(&mut self, name: &Value) -> Option<&mut Value> {
        let mut events = self.events.iter_mut();
        events.find(|event| event["metadata"]["name"] == *name)
    }

    fn store(&mut self, kind: &str, mut object: Value) -> Value {
        self.version += 1;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(self.version.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
        }
        let name = metadata["name"].as_str().expect("a name").to_owned();
        self.objects.insert((kind.to_owned(), name), object.clone());
        object
    }

    /// Marks a pod as being deleted (a real kubelet would end it first, then the test removes it); removes any other
    /// object at once.
    fn delete(&mut self, key: &Key, options: &Value) -> (u16, Value) {
        let Some(object) = self.objects.get_mut(key) else {
            return refusal(404, "NotFound");
        };
        for (condition, field) in [("uid", "uid"), ("resourceVersion", "resourceVersion")] {
            let wanted = &options["preconditions"][condition];
            if !wanted.is_null() && *wanted != object["metadata"][field] {
                return refusal(409, "Conflict");
            }
        }
        self.version += 1;
        let deleted = if key.0 == "pods" {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let metadata = object["metadata"].as_object_mut().expect("metadata");
            metadata.entry("deletionTimestamp").or_insert(json!(now));
            object.clone()
        } else {
            self.objects.remove(key).unwrap_or_default()
        };
        (200, deleted)
    }

    fn replace_status(&mut self, key: Key, call: &Call) -> (u16, Value) {
        let Some(object) = self.objects.get(&key).cloned() else {
            return refusal(404, "NotFound");
        };
        let metadata = &call.body["metadata"];
        for field in ["uid", "resourceVersion"] {
            if !metadata[field].is_null() && metadata[field] != object["metadata"][field] {
                return refusal(409, "Conflict");
            }
        }
        let manager = call
            .query
            .split('&')
            .find_map(|pair| pair.strip_prefix("fieldManager="))
            .expect("a field manager")
            .to_owned();
        let status = call.body["status"].clone();
        if object["status"] == status {
            return (200, object);
        }
        let mut next = object;
        next["status"] = status.clone();
        self.status_writes.push((manager, status));
        (200, self.store(&key.0, next))
    }
}
