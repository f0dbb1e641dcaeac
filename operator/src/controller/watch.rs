//! The cache of pods, and the triggers of the controller. The processes are in the directory, which the relay also
//! uses.

use futures::stream::{self, BoxStream, Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, reflector as reflect, watcher as watch};
use kube::{Client, ResourceExt};
use remoteprocess_api::{RemoteProcess, names};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tracing::warn;

use super::in_memory::InMemory;
use crate::backoff::{Backoff, WATCH_PAGE};
use crate::directory::{Change, Directory, Scope};

/// The cache of pods and the stream of processes to reconcile.
pub(super) struct Watches {
    pub(super) pods: Store<Pod>,
    pub(super) triggers: BoxStream<'static, ObjectRef<RemoteProcess>>,
}

/// Starts to watch. Nothing happens until `triggers` is polled; processes come only when the cache of pods is complete,
/// because otherwise each pod would seem to be missing.
pub(super) fn start(client: &Client, scope: &Scope, directory: &Directory, in_memory: InMemory) -> Watches {
    let (pods, pod_writer) = reflector::store();
    let labelled = watcher::Config::default()
        .labels(names::LABEL_UID)
        .page_size(WATCH_PAGE);
    let pod_events = watch(scope.api::<Pod>(client), labelled).backoff(Backoff::WATCH);
    let (all, known) = (scope.clone(), directory.clone());
    let pod_triggers = reflect(pod_writer, pod_events.modify(strip)).flat_map(move |event| {
        stream::iter(or_warn(event).map_or_else(Vec::new, |event| touched(&event, &all, &known)))
    });
    let (ready, scope, directory) = (pods.clone(), scope.clone(), directory.clone());
    let pods_known = stream::once(async move {
        // Without a writer there will be no triggers either.
        let _ = ready.wait_until_ready().await;
    });
    let process_triggers =
        pods_known.flat_map(move |()| process_triggers(scope.clone(), &directory, in_memory.clone()));
    let triggers = stream::select(pod_triggers, process_triggers).boxed();
    Watches { pods, triggers }
}

/// Every existing process, then every one that changes.
fn process_triggers(
    scope: Scope,
    directory: &Directory,
    in_memory: InMemory,
) -> impl Stream<Item = ObjectRef<RemoteProcess>> + use<> {
    // Subscribed first: a change in between is delivered twice, and none is missed.
    let changes = UnboundedReceiverStream::new(directory.subscribe());
    let there = stream::iter(all(&scope, directory));
    let changed = changes.filter_map(move |change| {
        std::future::ready(match change {
            Change::Is(process) => scope
                .covers(process.metadata.namespace.as_deref())
                .then(|| ObjectRef::from_obj(&*process)),
            Change::Gone(process) => {
                in_memory.forget(&process);
                None
            }
        })
    });
    there.chain(changed)
}

fn all(scope: &Scope, directory: &Directory) -> Vec<ObjectRef<RemoteProcess>> {
    let known = directory.list(scope.namespace());
    known.iter().map(|process| ObjectRef::from_obj(&**process)).collect()
}

/// The processes that an event of a pod may affect. A pod that was deleted while its watch was interrupted has no event
/// of its own: it is missing from the new list, so all processes are reconciled when that is complete.
fn touched(event: &Event<Pod>, scope: &Scope, directory: &Directory) -> Vec<ObjectRef<RemoteProcess>> {
    match event {
        Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod) => owner(pod).into_iter().collect(),
        Event::InitDone => all(scope, directory),
        Event::Init => Vec::new(),
    }
}

/// The process that a pod belongs to.
fn owner(pod: &Pod) -> Option<ObjectRef<RemoteProcess>> {
    let name = pod.labels().get(names::LABEL_NAME)?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

/// Removes fields that no code reads.
fn strip<K: kube::Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

fn or_warn<K>(event: watcher::Result<K>) -> Option<K> {
    event
        .inspect_err(|error| warn!(%error, "a watch was interrupted and starts again"))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::fake_api;

    #[test]
    fn a_pod_that_vanished_during_a_watch_restart_is_noticed() {
        let directory = Directory::default();
        let process: RemoteProcess = serde_saphyr::from_str(
            "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
             metadata: {name: hello, namespace: team, uid: '1'}\nspec: {image: busybox, command: [id]}\n",
        )
        .unwrap();
        let reference = ObjectRef::from_obj(&process);
        directory.apply(process);
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("team".into());
        assert!(
            touched(&Event::Delete(pod.clone()), &Scope::All, &directory).is_empty(),
            "it is nobody's"
        );
        pod.labels_mut().insert(names::LABEL_NAME.into(), "hello".into());
        assert_eq!(
            touched(&Event::Delete(pod), &Scope::All, &directory),
            std::slice::from_ref(&reference)
        );
        assert!(
            touched(&Event::Init, &Scope::All, &directory).is_empty(),
            "the list is not whole yet"
        );
        assert_eq!(touched(&Event::InitDone, &Scope::All, &directory), [reference]);
    }

    #[tokio::test]
    async fn relay_and_controller_share_one_watch_of_the_processes() {
        let lists: Arc<Mutex<Vec<String>>> = Arc::default();
        let listed = lists.clone();
        let client = fake_api::client(move |call| {
            if call.query.contains("watch=") {
                return (200, serde_json::Value::Null);
            }
            assert!(
                call.query.contains(&format!("limit={WATCH_PAGE}")),
                "small pages: {}",
                call.query
            );
            let process = json!({
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
                "metadata": {"name": "hello", "namespace": "team", "uid": "1", "resourceVersion": "1"},
                "spec": {"image": "busybox", "command": ["id"]},
            });
            let items = if call.path.ends_with("/pods") {
                json!([])
            } else {
                json!([process])
            };
            listed.lock().unwrap().push(call.path);
            (200, json!({"metadata": {"resourceVersion": "1"}, "items": items}))
        });
        let (directory, never) = (Directory::default(), CancellationToken::new());
        let mut watches = start(&client, &Scope::All, &directory, InMemory::default());
        let first = tokio::select! {
            () = directory.run(client, &[], || {}, &never) => unreachable!("never ends"),
            first = watches.triggers.next() => first,
        };
        assert_eq!(first, Some(ObjectRef::new("hello").within("team")));
        let mut lists = lists.lock().unwrap().clone();
        lists.sort();
        assert_eq!(
            lists,
            ["/api/v1/pods", "/apis/remoteprocess.dev/v1alpha1/remoteprocesses"]
        );
    }
}
