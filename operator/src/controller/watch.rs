//! The caches, and what wakes the controller.

use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, reflector as reflect, watcher as watch};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::{DesiredState, RemoteProcess, asked, names};
use tracing::warn;

use super::remember::Remembered;

/// The caches and the stream of processes to look at.
pub(super) struct Watches {
    pub(super) pods: Store<Pod>,
    pub(super) processes: Store<RemoteProcess>,
    pub(super) triggers: BoxStream<'static, ObjectRef<RemoteProcess>>,
}

/// Where to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The whole cluster, with one watch.
    All,
    /// One namespace: rights in it are enough.
    Namespace(String),
}

impl Scope {
    fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match self {
            Self::All => Api::all(client.clone()),
            Self::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
        }
    }
}

/// Begins to watch. Nothing happens until `triggers` is polled; processes come only
/// when the cache of pods is whole, or each pod would look as if it were missing.
pub(super) fn start(client: &Client, scope: &Scope, remembered: Remembered) -> Watches {
    let (pods, pod_writer) = reflector::store();
    let (processes, process_writer) = reflector::store();

    let labelled = watcher::Config::default().labels(names::LABEL_UID);
    let pod_events = watch(scope.api::<Pod>(client), labelled).backoff(WatchBackoff::default());
    let known = processes.clone();
    let pod_triggers = reflect(pod_writer, pod_events.modify(strip))
        .flat_map(move |event| stream::iter(or_warn(event).map_or_else(Vec::new, |event| touched(&event, &known))));

    let api = scope.api::<DeserializeGuard<RemoteProcess>>(client);
    let process_events = watch(api, watcher::Config::default())
        .backoff(WatchBackoff::default())
        .filter_map(|event| std::future::ready(decoded(event)))
        .inspect(move |event| {
            if let Ok(Event::Delete(process)) = event {
                remembered.forget(process);
            }
        });
    let process_triggers = reflect(process_writer, process_events.modify(keep_setter))
        .applied_objects()
        .filter_map(|process| std::future::ready(or_warn(process).map(|process| ObjectRef::from_obj(&process))));

    let ready = pods.clone();
    let pods_known = stream::once(async move {
        // Without a writer there will be no triggers either.
        let _ = ready.wait_until_ready().await;
    });
    let process_triggers = pods_known
        .filter_map(|()| std::future::ready(None))
        .chain(process_triggers);
    let triggers = stream::select(pod_triggers, process_triggers).boxed();
    Watches {
        pods,
        processes,
        triggers,
    }
}

/// The processes that an event of a pod may change. A pod that went while its watch was cut has no event of its own: it is
/// missing from the new list, and so all processes are looked at when that is whole.
fn touched(event: &Event<Pod>, processes: &Store<RemoteProcess>) -> Vec<ObjectRef<RemoteProcess>> {
    match event {
        Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod) => owner(pod).into_iter().collect(),
        Event::InitDone => {
            let known = processes.state();
            known.iter().map(|process| ObjectRef::from_obj(&**process)).collect()
        }
        Event::Init => Vec::new(),
    }
}

/// The process that a pod belongs to.
fn owner(pod: &Pod) -> Option<ObjectRef<RemoteProcess>> {
    let name = pod.labels().get(names::LABEL_NAME)?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

/// An object that does not decode is left out with a warning: it must not hide all others.
fn decoded(
    event: watcher::Result<Event<DeserializeGuard<RemoteProcess>>>,
) -> Option<watcher::Result<Event<RemoteProcess>>> {
    let decode = |DeserializeGuard(object): DeserializeGuard<RemoteProcess>| match object {
        Ok(process) => Some(process),
        Err(invalid) => {
            let (namespace, name) = (&invalid.metadata.namespace, &invalid.metadata.name);
            warn!(?namespace, ?name, error = %invalid.error, "left out: a RemoteProcess that cannot be read");
            None
        }
    };
    Some(match event {
        Ok(Event::Apply(object)) => Ok(Event::Apply(decode(object)?)),
        Ok(Event::InitApply(object)) => Ok(Event::InitApply(decode(object)?)),
        Ok(Event::Delete(object)) => Ok(Event::Delete(decode(object)?)),
        Ok(Event::Init) => Ok(Event::Init),
        Ok(Event::InitDone) => Ok(Event::InitDone),
        Err(error) => Err(error),
    })
}

/// What nobody reads need not be kept.
fn strip<K: kube::Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// The same of a process: where it is not simply to run, who wants it otherwise is told.
fn keep_setter(process: &mut RemoteProcess) {
    if process.spec.desired_state == DesiredState::Running {
        strip(process);
    } else if let Some(entries) = &mut process.metadata.managed_fields {
        entries.retain(asked::sets_desired_state);
    }
}

fn or_warn<K>(event: watcher::Result<K>) -> Option<K> {
    event
        .inspect_err(|error| warn!(%error, "a watch was cut and begins anew"))
        .ok()
}

/// Doubles up to two seconds; kube's own grows to thirty, which a user would notice.
#[derive(Clone, Debug)]
struct WatchBackoff {
    next: Duration,
}

impl WatchBackoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(2);
}

impl Default for WatchBackoff {
    fn default() -> Self {
        Self { next: Self::FIRST }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let current = self.next;
        self.next = (current * 2).min(Self::LONGEST);
        Some(current)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_went_while_nobody_watched_is_noticed() {
        let (processes, mut writer) = reflector::store();
        let process: RemoteProcess = serde_saphyr::from_str(
            "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
             metadata: {name: hello, namespace: team}\nspec: {image: busybox, command: [id]}\n",
        )
        .unwrap();
        let reference = ObjectRef::from_obj(&process);
        writer.apply_watcher_event(&Event::Apply(process));
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("team".into());
        assert!(
            touched(&Event::Delete(pod.clone()), &processes).is_empty(),
            "it is nobody's"
        );
        pod.labels_mut().insert(names::LABEL_NAME.into(), "hello".into());
        assert_eq!(
            touched(&Event::Delete(pod), &processes),
            std::slice::from_ref(&reference)
        );
        assert!(
            touched(&Event::Init, &processes).is_empty(),
            "the list is not whole yet"
        );
        assert_eq!(touched(&Event::InitDone, &processes), [reference]);
    }

    #[test]
    fn a_watch_never_waits_longer_than_two_seconds() {
        let waits: Vec<_> = WatchBackoff::default().take(10).collect();
        assert_eq!(waits[0], Duration::from_millis(100));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(2)));
    }
}
