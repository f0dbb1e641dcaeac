//! Which processes exist: every `RemoteProcess` of the watched namespaces, by name and by uid.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::RemoteProcess;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::backoff::WatchBackoff;

/// The objects as the watches have told them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Directory {
    maps: Arc<Mutex<Maps>>,
    changed: watch::Sender<u64>,
    told: Arc<Mutex<Vec<mpsc::UnboundedSender<Change>>>>,
}

/// What happened to an object.
#[derive(Clone, Debug)]
pub enum Change {
    /// It is so now.
    Is(Arc<RemoteProcess>),
    /// It is gone; this was its last known form.
    Gone(Arc<RemoteProcess>),
}

#[derive(Default)]
struct Maps {
    by_uid: HashMap<String, Arc<RemoteProcess>>,
    by_name: HashMap<(String, String), String>,
}

/// One watch: of a namespace, or of all.
struct Scope {
    directory: Directory,
    namespace: Option<String>,
    listed: HashSet<String>,
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
        let scopes: Vec<Option<String>> = match namespaces {
            [] => vec![None],
            some => some.iter().cloned().map(Some).collect(),
        };
        let delivered = watch::Sender::new(0);
        let watches = scopes.iter().map(|namespace| {
            let scope = Scope {
                directory: self.clone(),
                namespace: namespace.clone(),
                listed: HashSet::new(),
            };
            scope.watch(client.clone(), &delivered)
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
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<RemoteProcess>> {
        let maps = self.lock();
        let uid = maps.by_name.get(&(namespace.to_owned(), name.to_owned()))?;
        maps.by_uid.get(uid).cloned()
    }

    /// The object with this uid.
    #[must_use]
    pub fn by_uid(&self, uid: &str) -> Option<Arc<RemoteProcess>> {
        self.lock().by_uid.get(uid).cloned()
    }

    /// The objects of a namespace (empty: of all), by namespace and name.
    #[must_use]
    pub fn list(&self, namespace: &str) -> Vec<Arc<RemoteProcess>> {
        let mut found: Vec<_> = {
            let maps = self.lock();
            let fits = |process: &&Arc<RemoteProcess>| {
                namespace.is_empty() || process.metadata.namespace.as_deref() == Some(namespace)
            };
            maps.by_uid.values().filter(fits).cloned().collect()
        };
        found.sort_by_cached_key(|process| (process.namespace(), process.name_any()));
        found
    }

    /// Fires when any object changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Each change from now on.
    #[must_use]
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// Takes an object as it is now.
    pub fn apply(&self, process: RemoteProcess) {
        let process = Arc::new(process);
        let (Some(uid), Some(namespace)) = (process.uid(), process.namespace()) else {
            return;
        };
        {
            let mut maps = self.lock();
            let former = maps.by_name.insert((namespace, process.name_any()), uid.clone());
            if let Some(former) = former.filter(|former| *former != uid)
                && let Some(gone) = maps.by_uid.remove(&former)
            {
                self.tell(&Change::Gone(gone));
            }
            maps.by_uid.insert(uid, process.clone());
        }
        self.tell(&Change::Is(process));
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Forgets an object.
    pub fn remove(&self, uid: &str) {
        let gone = {
            let mut maps = self.lock();
            let gone = maps.by_uid.remove(uid);
            if let Some(process) = &gone {
                let key = (process.namespace().unwrap_or_default(), process.name_any());
                if maps.by_name.get(&key).is_some_and(|current| current == uid) {
                    maps.by_name.remove(&key);
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

    fn lock(&self) -> MutexGuard<'_, Maps> {
        // Both maps are whole whenever the lock is let go.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scope {
    async fn watch(mut self, client: Client, delivered: &watch::Sender<usize>) {
        let api: Api<DeserializeGuard<RemoteProcess>> = match &self.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let mut events = watch_objects(api, watcher::Config::default())
            .backoff(WatchBackoff::default())
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
                let namespace = self.namespace.clone().unwrap_or_default();
                for process in self.directory.list(&namespace) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut scope = Scope {
            directory: directory.clone(),
            namespace: None,
            listed: HashSet::new(),
        };
        let object = |name, uid| DeserializeGuard(Ok(process(name, uid)));
        scope.take(Event::Init);
        scope.take(Event::InitApply(object("a", "1")));
        scope.take(Event::InitApply(object("b", "2")));
        scope.take(Event::InitDone);
        assert_eq!(directory.list("").len(), 2);
        scope.take(Event::Init);
        scope.take(Event::InitApply(object("b", "2")));
        scope.take(Event::InitDone);
        assert_eq!(directory.list("default").len(), 1);
        assert!(directory.by_uid("1").is_none());
    }
}
