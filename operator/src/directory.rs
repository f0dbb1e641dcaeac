//! All existing processes: every `RemoteProcess` of the watched namespaces, by name and by uid. This is the only watch
//! and the only cache of a replica: the controller reads it, too.

mod kept;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::{DesiredState, RemoteProcess, requester};
use tokio::sync::{mpsc, watch};
use tokio::task::consume_budget;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::backoff::{Backoff, WATCH_PAGE};
use kept::Kept;

/// What `kubectl apply` stores for itself: a second copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The objects as the watches have reported them. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    objects: Arc<Mutex<Objects>>,
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

/// Namespace and name.
type Name = (String, String);

#[derive(Default)]
struct Objects {
    /// The uid of each.
    by_name: BTreeMap<Arc<Name>, Arc<str>>,
    by_uid: HashMap<Arc<str>, (Arc<Name>, Kept)>,
}

impl Objects {
    /// The objects of a namespace (empty: of all), by namespace and name.
    fn of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a Name, &'a Arc<str>)> {
        let first = (namespace.to_owned(), String::new());
        let rest = self.by_name.range(first..).map(|(name, uid)| (&**name, uid));
        rest.take_while(move |((of, _), _)| namespace.is_empty() || of == namespace)
    }
}

/// Objects at one moment. Each is whole only when it is taken from here: all at once could be very large. To take one can
/// cost 50 µs, so that gives way to other tasks.
pub struct Listed(std::vec::IntoIter<(Arc<Name>, Kept)>);

impl Listed {
    /// Without those up to this name, which is much faster than to take them. For the objects of one namespace.
    #[must_use]
    pub fn after(mut self, last: &str) -> Self {
        let count = self.0.as_slice().partition_point(|(name, _)| name.1.as_str() <= last);
        if let Some(skipped) = count.checked_sub(1) {
            self.0.nth(skipped);
        }
        self
    }

    /// The next object. Cancel-safe.
    pub async fn next(&mut self) -> Option<Arc<RemoteProcess>> {
        loop {
            consume_budget().await;
            let (_, kept) = self.0.next()?;
            if let Some(process) = kept.whole() {
                return Some(process);
            }
        }
    }
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
        Self {
            objects: Arc::default(),
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
        let kept = {
            let objects = self.lock();
            let uid = objects.by_name.get(&(namespace.to_owned(), name.to_owned()))?;
            objects.by_uid.get(uid)?.1.clone()
        };
        kept.whole()
    }

    /// The object with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<Arc<RemoteProcess>> {
        let kept = self.lock().by_uid.get(uid)?.1.clone();
        kept.whole()
    }

    /// Whether there is an object with this uid.
    pub fn has(&self, uid: &str) -> bool {
        self.lock().by_uid.contains_key(uid)
    }

    /// The objects of a namespace (empty: of all), by namespace and name.
    pub fn list(&self, namespace: &str) -> Listed {
        let objects = self.lock();
        let found = objects.of(namespace).filter_map(|(_, uid)| objects.by_uid.get(uid));
        let found: Vec<_> = found.cloned().collect();
        Listed(found.into_iter())
    }

    /// References to them.
    pub(crate) fn references(&self, namespace: &str) -> Vec<ObjectRef<RemoteProcess>> {
        let objects = self.lock();
        let found = objects.of(namespace);
        found
            .map(|((namespace, name), _)| ObjectRef::new(name).within(namespace))
            .collect()
    }

    fn uids(&self, namespace: &str) -> Vec<Arc<str>> {
        self.lock().of(namespace).map(|(_, uid)| uid.clone()).collect()
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
        let (Some(uid), Some(namespace)) = (process.uid(), process.namespace()) else {
            return;
        };
        strip(&mut process);
        let name = Arc::new((namespace, process.name_any()));
        let (uid, process) = (Arc::<str>::from(uid), Arc::new(process));
        let kept = Kept::new(process.clone());
        let replaced = {
            let mut objects = self.lock();
            let former = objects.by_name.insert(name.clone(), uid.clone());
            objects.by_uid.insert(uid.clone(), (name, kept));
            let former = former.filter(|former| *former != uid);
            former.and_then(|former| objects.by_uid.remove(&former))
        };
        if let Some(replaced) = replaced.and_then(|(_, kept)| kept.whole()) {
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
            if let Some((name, _)) = &gone
                && objects.by_name.get(name).is_some_and(|current| **current == *uid)
            {
                objects.by_name.remove(name);
            }
            gone
        };
        if let Some(process) = gone.and_then(|(_, kept)| kept.whole()) {
            self.tell(&Change::Gone(process));
            self.changed.send_modify(|version| *version = version.wrapping_add(1));
        }
    }

    fn tell(&self, change: &Change) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|sender| sender.send(change.clone()).is_ok());
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        // Both maps fit each other whenever the lock is released.
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
                    self.take(event).await;
                    if is_done && std::mem::take(&mut is_first) {
                        delivered.send_modify(|count| *count += 1);
                    }
                }
                Err(error) => warn!(%error, "the watch of the processes broke, will try again"),
            }
        }
    }

    /// Gives way to other tasks: a list comes in pages, and each object is compressed here.
    async fn take(&mut self, event: Event<DeserializeGuard<RemoteProcess>>) {
        consume_budget().await;
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
                for uid in self.directory.uids(self.scope.namespace()) {
                    if !self.listed.contains(&*uid) {
                        consume_budget().await;
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
    // What was decoded has room for more.
    process.spec.env.shrink_to_fit();
    if let Some(status) = &mut process.status {
        status.conditions.shrink_to_fit();
        status.attempts.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use remoteprocess_api::{Phase, RemoteProcessStatus};
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

    async fn names(mut listed: Listed) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(process) = listed.next().await {
            names.push(process.name_any());
        }
        names
    }

    fn watcher(directory: &Directory) -> Watcher {
        Watcher {
            directory: directory.clone(),
            scope: Scope::All,
            listed: HashSet::new(),
        }
    }

    #[tokio::test]
    async fn what_a_new_list_no_longer_names_is_gone() {
        let directory = Directory::default();
        let mut watcher = watcher(&directory);
        let object = |name, uid| DeserializeGuard(Ok(process(name, uid)));
        watcher.take(Event::Init).await;
        watcher.take(Event::InitApply(object("a", "1"))).await;
        watcher.take(Event::InitApply(object("b", "2"))).await;
        watcher.take(Event::InitDone).await;
        assert_eq!(names(directory.list("")).await, ["a", "b"]);
        watcher.take(Event::Init).await;
        watcher.take(Event::InitApply(object("b", "2"))).await;
        watcher.take(Event::InitDone).await;
        assert_eq!(names(directory.list("default")).await, ["b"]);
        assert!(directory.by_uid("1").is_none());
    }

    /// On one thread: what does not give way holds up everything.
    #[tokio::test]
    async fn long_lists_give_way_to_other_tasks() {
        let directory = Directory::default();
        let mut watcher = watcher(&directory);
        let turns = Arc::new(AtomicUsize::new(0));
        let counter = turns.clone();
        let other = tokio::spawn(async move {
            loop {
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let had_turns = |what: &str| assert!(turns.swap(0, Ordering::Relaxed) >= 4, "{what} holds the thread");
        for number in 0..1000 {
            let mut process = process(&format!("p{number}"), &number.to_string());
            process.status = Some(RemoteProcessStatus {
                phase: Some(Phase::Succeeded),
                ..RemoteProcessStatus::default()
            });
            watcher.take(Event::InitApply(DeserializeGuard(Ok(process)))).await;
        }
        had_turns("to take a list");
        assert_eq!(names(directory.list("")).await.len(), 1000);
        had_turns("to read it");
        watcher.listed.clear();
        watcher.take(Event::InitDone).await;
        had_turns("to forget what is gone");
        assert!(names(directory.list("")).await.is_empty());
        other.abort();
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

    #[tokio::test]
    async fn each_namespace_has_its_objects_by_name() {
        let directory = Directory::default();
        for (namespace, name, uid) in [("b", "x", "1"), ("a", "z", "2"), ("a", "y", "3"), ("ab", "w", "4")] {
            let mut process = process(name, uid);
            process.metadata.namespace = Some(namespace.to_owned());
            process.status = Some(RemoteProcessStatus {
                phase: (name == "y").then_some(Phase::Succeeded),
                ..RemoteProcessStatus::default()
            });
            directory.apply(process);
        }
        assert_eq!(names(directory.list("a")).await, ["y", "z"]);
        assert_eq!(names(directory.list("")).await, ["y", "z", "w", "x"]);
        for (last, expected) in [("", &["y", "z"][..]), ("y", &["z"]), ("yy", &["z"]), ("z", &[])] {
            assert_eq!(names(directory.list("a").after(last)).await, expected, "after {last}");
        }
        let references = directory.references("a");
        assert_eq!(references, ["y", "z"].map(|name| ObjectRef::new(name).within("a")));
        assert!(directory.has("3"));
        directory.remove("3");
        assert!(directory.get("a", "y").is_none() && !directory.has("3"));
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
