//! All existing processes: every `RemoteProcess` of the watched namespaces, by name and by uid. This is the only watch
//! and the only cache of a replica: the controller reads it, too.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::{DesiredState, RemoteProcess, requester};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::backoff::{Backoff, WATCH_PAGE};

/// What `kubectl apply` stores for itself: a second copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The objects as the watches have reported them. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    objects: Arc<Mutex<Objects>>,
    store: Store<RemoteProcess>,
    changed: watch::Sender<u64>,
    told: Arc<Mutex<Vec<mpsc::UnboundedSender<Change>>>>,
}

/// What happened to an object.
#[derive(Clone, Debug)]
pub enum Change {
    /// Its current form.
    Is(Arc<RemoteProcess>),
    /// It is gone; this was its last known form.
    Gone(Arc<RemoteProcess>),
}

struct Objects {
    by_name: Writer<RemoteProcess>,
    by_uid: HashMap<String, Arc<RemoteProcess>>,
}

/// Where to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The whole cluster, with one watch.
    All,
    /// One namespace: permissions in it are sufficient.
    Namespace(String),
}

impl Scope {
    /// One scope for each namespace; no namespaces: the whole cluster.
    pub(crate) fn of(namespaces: &[String]) -> Vec<Self> {
        match namespaces {
            [] => vec![Self::All],
            some => some.iter().cloned().map(Self::Namespace).collect(),
        }
    }

    /// The namespace; empty for the whole cluster.
    pub(crate) fn namespace(&self) -> &str {
        match self {
            Self::All => "",
            Self::Namespace(own) => own,
        }
    }

    pub(crate) fn covers(&self, namespace: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(own) => namespace == Some(own),
        }
    }

    pub(crate) fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match self {
            Self::All => Api::all(client.clone()),
            Self::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
        }
    }
}

/// One watch.
struct Watcher {
    directory: Directory,
    scope: Scope,
    listed: HashSet<String>,
}

impl Default for Directory {
    fn default() -> Self {
        let mut by_name = Writer::default();
        // Readers of the store do not wait for a list: each object that arrives is a change.
        by_name.apply_watcher_event(&Event::Init);
        by_name.apply_watcher_event(&Event::InitDone);
        Self {
            store: by_name.as_reader(),
            objects: Arc::new(Mutex::new(Objects {
                by_name,
                by_uid: HashMap::new(),
            })),
            changed: watch::Sender::new(0),
            told: Arc::default(),
        }
    }
}

impl Directory {
    /// Watches until `shutdown`; `ready` is called when the first list of every namespace has been delivered. No
    /// namespaces: all.
    pub async fn run(
        &self,
        client: Client,
        namespaces: &[String],
        ready: impl FnOnce() + Send,
        shutdown: &CancellationToken,
    ) {
        let scopes = Scope::of(namespaces);
        let delivered = watch::Sender::new(0);
        let watches = scopes.iter().map(|scope| {
            let watcher = Watcher {
                directory: self.clone(),
                scope: scope.clone(),
                listed: HashSet::new(),
            };
            watcher.run(&client, &delivered)
        });
        let all = futures::future::join_all(watches);
        let mut seen = delivered.subscribe();
        let ready = async {
            if seen.wait_for(|count| *count >= scopes.len()).await.is_ok() {
                ready();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = all => {}
            () = ready => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// The object that has this name now.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<RemoteProcess>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
    }

    /// The objects by name, for a reader that uses this kind of store.
    pub fn store(&self) -> Store<RemoteProcess> {
        self.store.clone()
    }

    /// The object with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<Arc<RemoteProcess>> {
        self.lock().by_uid.get(uid).cloned()
    }

    /// The objects of a namespace (empty: of all), by namespace and name.
    pub fn list(&self, namespace: &str) -> Vec<Arc<RemoteProcess>> {
        let mut found: Vec<_> = {
            let objects = self.lock();
            let fits = |process: &&Arc<RemoteProcess>| {
                namespace.is_empty() || process.metadata.namespace.as_deref() == Some(namespace)
            };
            objects.by_uid.values().filter(fits).cloned().collect()
        };
        found.sort_by_cached_key(|process| (process.namespace(), process.name_any()));
        found
    }

    /// Fires when any object changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Each change from now on.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change> {
        #[allow(
            clippy::disallowed_methods,
            reason = "it holds pointers into the cache, at most one for each change"
        )]
        let (sender, receiver) = mpsc::unbounded_channel();
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// Adds or updates an object.
    pub fn apply(&self, mut process: RemoteProcess) {
        let (Some(uid), Some(_)) = (process.uid(), process.namespace()) else {
            return;
        };
        strip(&mut process);
        let reference = ObjectRef::from_obj(&process);
        let (replaced, process) = {
            let mut objects = self.lock();
            let former = self.store.get(&reference).and_then(|former| former.uid());
            objects.by_name.apply_watcher_event(&Event::Apply(process));
            let Some(process) = self.store.get(&reference) else {
                return;
            };
            objects.by_uid.insert(uid.clone(), process.clone());
            let replaced = former.filter(|former| *former != uid);
            (replaced.and_then(|former| objects.by_uid.remove(&former)), process)
        };
        if let Some(replaced) = replaced {
            self.tell(&Change::Gone(replaced));
        }
        self.tell(&Change::Is(process));
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Forgets an object.
    pub fn remove(&self, uid: &str) {
        let gone = {
            let mut objects = self.lock();
            let gone = objects.by_uid.remove(uid);
            if let Some(process) = &gone {
                let current = self.store.get(&ObjectRef::from_obj(&**process));
                if current.is_some_and(|current| current.metadata.uid == process.metadata.uid) {
                    objects.by_name.apply_watcher_event(&Event::Delete((**process).clone()));
                }
            }
            gone
        };
        if let Some(process) = gone {
            self.tell(&Change::Gone(process));
            self.changed.send_modify(|version| *version = version.wrapping_add(1));
        }
    }

    fn tell(&self, change: &Change) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|sender| sender.send(change.clone()).is_ok());
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        // Both maps are complete whenever the lock is released.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    async fn run(mut self, client: &Client, delivered: &watch::Sender<usize>) {
        let api: Api<DeserializeGuard<RemoteProcess>> = self.scope.api(client);
        let mut events = watch_objects(api, watcher::Config::default().page_size(WATCH_PAGE))
            .backoff(Backoff::WATCH)
            .boxed();
        let mut is_first = true;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    let is_done = matches!(event, Event::InitDone);
                    self.take(event);
                    if is_done && std::mem::take(&mut is_first) {
                        delivered.send_modify(|count| *count += 1);
                    }
                }
                Err(error) => warn!(%error, "the watch of the processes broke, will try again"),
            }
        }
    }

    fn take(&mut self, event: Event<DeserializeGuard<RemoteProcess>>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => self.apply(object, true),
            Event::Apply(object) => self.apply(object, false),
            Event::Delete(object) => {
                if let Some(uid) = object.uid() {
                    self.directory.remove(&uid);
                }
            }
            Event::InitDone => {
                for process in self.directory.list(self.scope.namespace()) {
                    if let Some(uid) = process.uid().filter(|uid| !self.listed.contains(uid)) {
                        self.directory.remove(&uid);
                    }
                }
                self.listed.clear();
            }
        }
    }

    fn apply(&mut self, object: DeserializeGuard<RemoteProcess>, is_listed: bool) {
        if is_listed && let Some(uid) = object.uid() {
            self.listed.insert(uid);
        }
        match object.0 {
            Ok(process) => self.directory.apply(process),
            Err(invalid) => {
                let (namespace, name) = (invalid.metadata.namespace, invalid.metadata.name);
                warn!(
                    ?namespace,
                    ?name,
                    error = invalid.error,
                    "skipping an object that does not decode"
                );
            }
        }
    }
}

/// Drops what no reader needs. The managed-fields entry of the manager that set a desired state other than Running is
/// read, so it stays.
fn strip(process: &mut RemoteProcess) {
    let metadata = &mut process.metadata;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    if process.spec.desired_state == DesiredState::Running {
        metadata.managed_fields = None;
    } else if let Some(entries) = &mut metadata.managed_fields {
        entries.retain(requester::sets_desired_state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn process(name: &str, uid: &str) -> RemoteProcess {
        let mut process = RemoteProcess::new(name, remoteprocess_api::RemoteProcessSpec::default());
        process.metadata.namespace = Some("default".to_owned());
        process.metadata.uid = Some(uid.to_owned());
        process
    }

    #[test]
    fn a_new_object_of_the_same_name_replaces_the_old() {
        let directory = Directory::default();
        let mut changes = directory.subscribe();
        directory.apply(process("hello", "1"));
        directory.apply(process("hello", "2"));
        assert_eq!(directory.get("default", "hello").unwrap().uid().as_deref(), Some("2"));
        assert!(directory.by_uid("1").is_none());
        directory.remove("1");
        assert!(directory.get("default", "hello").is_some());
        assert!(matches!(changes.try_recv(), Ok(Change::Is(_))));
        assert!(matches!(changes.try_recv(), Ok(Change::Gone(_))));
    }

    #[test]
    fn what_a_new_list_no_longer_names_is_gone() {
        let directory = Directory::default();
        let mut watcher = Watcher {
            directory: directory.clone(),
            scope: Scope::All,
            listed: HashSet::new(),
        };
        let object = |name, uid| DeserializeGuard(Ok(process(name, uid)));
        watcher.take(Event::Init);
        watcher.take(Event::InitApply(object("a", "1")));
        watcher.take(Event::InitApply(object("b", "2")));
        watcher.take(Event::InitDone);
        assert_eq!(directory.list("").len(), 2);
        watcher.take(Event::Init);
        watcher.take(Event::InitApply(object("b", "2")));
        watcher.take(Event::InitDone);
        assert_eq!(directory.list("default").len(), 1);
        assert!(directory.by_uid("1").is_none());
    }

    #[test]
    fn the_cache_holds_only_what_is_read() {
        let manager = |name: &str, fields| json!({"manager": name, "fieldsType": "FieldsV1", "fieldsV1": fields});
        let object = |desired: &str| {
            let object = json!({
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
                "metadata": {
                    "name": "hello", "namespace": "default", "uid": "1",
                    "annotations": {LAST_APPLIED: "{}", "remoteprocess.dev/reason": "maintenance"},
                    "managedFields": [
                        manager("kubectl", json!({"f:spec": {"f:desiredState": {}}})),
                        manager("other", json!({"f:spec": {"f:command": {}}})),
                    ],
                },
                "spec": {"image": "busybox", "command": ["id"], "desiredState": desired},
            });
            serde_json::from_value::<RemoteProcess>(object).unwrap()
        };
        let directory = Directory::default();
        directory.apply(object("Paused"));
        let kept = directory.get("default", "hello").unwrap();
        let managers: Vec<_> = kept
            .managed_fields()
            .iter()
            .map(|entry| entry.manager.as_deref())
            .collect();
        assert_eq!(managers, [Some("kubectl")]);
        assert_eq!(
            kept.annotations().keys().collect::<Vec<_>>(),
            ["remoteprocess.dev/reason"]
        );
        directory.apply(object("Running"));
        assert!(directory.by_uid("1").unwrap().managed_fields().is_empty());
    }

    #[test]
    fn both_ways_lead_to_the_same_copy() {
        let directory = Directory::default();
        directory.apply(process("hello", "1"));
        let (by_name, by_uid) = (
            directory.get("default", "hello").unwrap(),
            directory.by_uid("1").unwrap(),
        );
        assert!(Arc::ptr_eq(&by_name, &by_uid));
        directory.remove("1");
        assert!(directory.get("default", "hello").is_none());
    }
}
