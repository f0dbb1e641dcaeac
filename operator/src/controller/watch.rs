//! The cache of pods, and the triggers of the controller. The processes are in the directory, which the relay also
//! uses.

use futures::stream::{self, BoxStream, Stream, StreamExt};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, Volume};
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
    let there = stream::iter(directory.references(scope.namespace()));
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

/// The processes that an event of a pod may affect. A pod that was deleted while its watch was interrupted has no event
/// of its own: it is missing from the new list, so all processes are reconciled when that is complete.
fn touched(event: &Event<Pod>, scope: &Scope, directory: &Directory) -> Vec<ObjectRef<RemoteProcess>> {
    match event {
        Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod) => owner(pod).into_iter().collect(),
        Event::InitDone => directory.references(scope.namespace()),
        Event::Init => Vec::new(),
    }
}

/// The process that a pod belongs to.
fn owner(pod: &Pod) -> Option<ObjectRef<RemoteProcess>> {
    let name = pod.labels().get(names::LABEL_NAME)?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

/// Removes what no code reads from a pod of the cache: most of it.
fn strip(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    if let Some(spec) = pod.spec.take() {
        let is_input = |volume: &Volume| volume.name == names::VOLUME_STDIN;
        let is_foreign = |container: &Container| container.name != names::CONTAINER_AGENT;
        let container = |container: Container| Container {
            name: container.name,
            restart_policy: container.restart_policy,
            ..Container::default()
        };
        let foreign = spec.init_containers.into_iter().flatten().filter(is_foreign);
        pod.spec = Some(PodSpec {
            node_name: spec.node_name,
            scheduling_gates: spec.scheduling_gates,
            termination_grace_period_seconds: spec.termination_grace_period_seconds,
            volumes: some(spec.volumes.into_iter().flatten().filter(is_input)),
            init_containers: some(foreign.map(container)),
            ..PodSpec::default()
        });
    }
    if let Some(status) = &mut pod.status {
        status.host_ips = None;
        status.pod_ips = None;
        let containers = [
            &mut status.init_container_statuses,
            &mut status.container_statuses,
            &mut status.ephemeral_container_statuses,
        ];
        containers.into_iter().flatten().for_each(strip_containers);
        // What was decoded has room for more.
        status.conditions.iter_mut().for_each(Vec::shrink_to_fit);
    }
}

fn strip_containers(containers: &mut Vec<ContainerStatus>) {
    for container in &mut *containers {
        *container = ContainerStatus {
            name: std::mem::take(&mut container.name),
            state: container.state.take(),
            last_state: container.last_state.take(),
            ready: container.ready,
            started: container.started,
            restart_count: container.restart_count,
            ..ContainerStatus::default()
        };
    }
    containers.shrink_to_fit();
}

/// The items, if there are any.
fn some<T>(items: impl Iterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<_> = items.collect();
    (!items.is_empty()).then_some(items)
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

    #[test]
    fn a_pod_of_the_cache_has_only_what_is_read() {
        let container =
            |name: &str| json!({"name": name, "image": "busybox", "restartPolicy": "Always", "command": ["id"]});
        let status = json!({
            "name": "main", "image": "busybox", "imageID": "sha256:1", "containerID": "containerd://1", "ready": true,
            "restartCount": 2, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            "lastState": {"terminated": {"exitCode": 1}},
        });
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": "hello-1", "namespace": "team", "uid": "1", "labels": {names::LABEL_NAME: "hello"},
                "annotations": {"a": "b"}, "ownerReferences": [],
            },
            "spec": {
                "nodeName": "n", "terminationGracePeriodSeconds": 40, "schedulingGates": [{"name": "g"}],
                "containers": [container("main")],
                "initContainers": [container(names::CONTAINER_AGENT), container("proxy")],
                "volumes": [{"name": names::VOLUME_STDIN, "configMap": {"name": "in"}}, {"name": "other"}],
            },
            "status": {
                "phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [status],
                "conditions": [{"type": "PodScheduled", "status": "True"}],
            },
        }))
        .unwrap();
        strip(&mut pod);
        let kept = serde_json::to_value(&pod).unwrap();
        assert_eq!(
            kept["spec"],
            json!({
                "nodeName": "n", "terminationGracePeriodSeconds": 40, "schedulingGates": [{"name": "g"}],
                "containers": [], "initContainers": [{"name": "proxy", "restartPolicy": "Always"}],
                "volumes": [{"name": names::VOLUME_STDIN, "configMap": {"name": "in"}}],
            })
        );
        let main = &kept["status"]["containerStatuses"][0];
        assert_eq!(main["lastState"]["terminated"]["exitCode"], 1);
        assert!(main["state"]["running"].is_object() && main["imageID"] == "", "{main}");
        assert!(kept["metadata"]["annotations"].is_null() && kept["status"]["conditions"].is_array());
        assert_eq!(owner(&pod), Some(ObjectRef::new("hello").within("team")));
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
