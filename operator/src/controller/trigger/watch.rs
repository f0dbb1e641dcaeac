//! The caches of triggers, Deployments and Services, and the triggers to reconcile.

use std::future::ready;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, reflector as reflect, watcher as watch};
use kube::{Client, Resource, ResourceExt};
use remoteprocess_api::{ProcessTrigger, names};
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::backoff::{Backoff, WATCH_PAGE};
use crate::directory::Scope;

/// What `kubectl apply` stores for itself: a second copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The caches, and the triggers that may need a reconcile.
pub(super) struct Watches {
    pub(super) triggers: Store<ProcessTrigger>,
    pub(super) deployments: Store<Deployment>,
    pub(super) services: Store<Service>,
    pub(super) changes: BoxStream<'static, ObjectRef<ProcessTrigger>>,
}

/// Starts to watch. Nothing happens until `changes` is polled; triggers come only when the caches of Deployments and
/// Services are complete, because otherwise each bridge would seem to be missing.
pub(super) fn start(client: &Client, scope: &Scope) -> Watches {
    let (triggers, writer) = reflector::store();
    let config = watcher::Config::default().page_size(WATCH_PAGE);
    let events = watch(scope.api::<DeserializeGuard<ProcessTrigger>>(client), config).backoff(Backoff::WATCH);
    let events = events.map(|event| event.map(decoded)).modify(strip);
    let of_triggers =
        reflect(writer, events).flat_map(|event| stream::iter(or_warn(event).and_then(|event| changed(&event))));
    let (deployments, of_deployments) = children::<Deployment>(client, scope, &triggers);
    let (services, of_services) = children::<Service>(client, scope, &triggers);
    let (all_deployments, all_services) = (deployments.clone(), services.clone());
    let complete = stream::once(async move {
        // Without a writer there will be no changes either.
        let _ = all_deployments.wait_until_ready().await;
        let _ = all_services.wait_until_ready().await;
    });
    let of_triggers = complete.filter_map(|()| ready(None)).chain(of_triggers);
    let changes = stream::select(of_triggers, stream::select(of_deployments, of_services)).boxed();
    Watches {
        triggers,
        deployments,
        services,
        changes,
    }
}

/// The cache of what triggers own, and the triggers whose objects changed.
fn children<K>(
    client: &Client,
    scope: &Scope,
    triggers: &Store<ProcessTrigger>,
) -> (Store<K>, impl Stream<Item = ObjectRef<ProcessTrigger>> + use<K>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let config = watcher::Config::default()
        .labels(names::LABEL_TRIGGER_UID)
        .page_size(WATCH_PAGE);
    let events = watch(scope.api::<K>(client), config)
        .backoff(Backoff::WATCH)
        .modify(strip);
    let triggers = triggers.clone();
    let touched = reflect(writer, events)
        .flat_map(move |event| stream::iter(or_warn(event).map_or_else(Vec::new, |event| touched(&event, &triggers))));
    (store, touched)
}

/// The trigger that an event names. One that is deleted needs nothing: the garbage collector deletes what it owns.
fn changed(event: &Event<ProcessTrigger>) -> Option<ObjectRef<ProcessTrigger>> {
    match event {
        Event::Apply(trigger) | Event::InitApply(trigger) => Some(ObjectRef::from_obj(trigger)),
        Event::Delete(_) | Event::Init | Event::InitDone => None,
    }
}

/// The triggers that an event of an object may affect. An object that was deleted while its watch was interrupted has no
/// event of its own: all triggers are reconciled when the new list is complete.
fn touched<K: Resource>(event: &Event<K>, triggers: &Store<ProcessTrigger>) -> Vec<ObjectRef<ProcessTrigger>> {
    match event {
        Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => owner(object).into_iter().collect(),
        Event::InitDone => triggers
            .state()
            .iter()
            .map(|known| ObjectRef::from_obj(&**known))
            .collect(),
        Event::Init => Vec::new(),
    }
}

/// The trigger for which an object was made.
fn owner<K: Resource>(object: &K) -> Option<ObjectRef<ProcessTrigger>> {
    let name = object.labels().get(names::LABEL_TRIGGER)?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}

/// A trigger that does not decode counts as deleted: nothing is made for it, and what is there stays.
fn decoded(event: Event<DeserializeGuard<ProcessTrigger>>) -> Event<ProcessTrigger> {
    let known: fn(ProcessTrigger) -> Event<ProcessTrigger> = match &event {
        Event::InitApply(_) => Event::InitApply,
        Event::Apply(_) => Event::Apply,
        Event::Delete(_) | Event::Init | Event::InitDone => Event::Delete,
    };
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(guard) | Event::Apply(guard) | Event::Delete(guard) => match guard.0 {
            Ok(trigger) => known(trigger),
            Err(invalid) => {
                let (namespace, name) = (&invalid.metadata.namespace, &invalid.metadata.name);
                warn!(
                    ?namespace,
                    ?name,
                    error = invalid.error,
                    "skipping a trigger that does not decode"
                );
                Event::Delete(ProcessTrigger {
                    metadata: invalid.metadata,
                    ..ProcessTrigger::default()
                })
            }
        },
    }
}

/// Removes what no code reads.
fn strip<K: Resource>(object: &mut K) {
    let metadata = object.meta_mut();
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

fn or_warn<K>(event: watcher::Result<K>) -> Option<K> {
    event
        .inspect_err(|error| warn!(%error, "a watch was interrupted and starts again"))
        .ok()
}
