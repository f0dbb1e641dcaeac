//! The caches of the objects of one kind, their Deployments and Services, and the objects to reconcile.

use std::future::ready;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, reflector as reflect, watcher as watch};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::kind::Bridged;
use crate::backoff::{Backoff, WATCH_PAGE};
use crate::directory::Scope;

/// What `kubectl apply` stores for itself: a second copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The caches, and the objects that may need a reconcile.
pub(super) struct Watches<B: Bridged> {
    pub(super) objects: Store<B>,
    pub(super) deployments: Store<Deployment>,
    pub(super) services: Store<Service>,
    pub(super) changes: BoxStream<'static, ObjectRef<B>>,
}

/// Starts to watch. Nothing happens until `changes` is polled; objects come only when the caches of Deployments and
/// Services are complete, because otherwise each bridge would seem to be missing.
pub(super) fn start<B: Bridged>(client: &Client, scope: &Scope) -> Watches<B> {
    let (objects, writer) = reflector::store();
    let config = watcher::Config::default().page_size(WATCH_PAGE);
    let events = watch(scope.api::<DeserializeGuard<B>>(client), config).backoff(Backoff::WATCH);
    let of_objects = references(
        objects.clone(),
        writer,
        events.map(|event| event.map(decoded)).modify(strip),
    );
    let (deployments, of_deployments) = children::<Deployment, B>(client, scope, &objects);
    let (services, of_services) = children::<Service, B>(client, scope, &objects);
    let (all_deployments, all_services) = (deployments.clone(), services.clone());
    let complete = stream::once(async move {
        // Without a writer there will be no changes either.
        let _ = all_deployments.wait_until_ready().await;
        let _ = all_services.wait_until_ready().await;
    });
    let of_objects = complete.filter_map(|()| ready(None)).chain(of_objects);
    let changes = stream::select(of_objects, stream::select(of_deployments, of_services)).boxed();
    Watches {
        objects,
        deployments,
        services,
        changes,
    }
}

/// The cache of what the objects own, and the objects whose children changed.
fn children<K, B>(
    client: &Client,
    scope: &Scope,
    owners: &Store<B>,
) -> (Store<K>, impl Stream<Item = ObjectRef<B>> + use<K, B>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    B: Bridged,
{
    let (store, writer) = reflector::store();
    let config = watcher::Config::default().labels(B::LABEL_UID).page_size(WATCH_PAGE);
    let events = watch(scope.api::<K>(client), config)
        .backoff(Backoff::WATCH)
        .modify(strip);
    let owners = owners.clone();
    let touched = reflect(writer, events)
        .flat_map(move |event| stream::iter(or_warn(event).map_or_else(Vec::new, |event| touched(&event, &owners))));
    (store, touched)
}

/// The objects to reconcile, each when the cache has it: the cache takes a list over only when that is complete.
pub(super) fn references<B: Bridged>(
    objects: Store<B>,
    writer: Writer<B>,
    events: impl Stream<Item = watcher::Result<Event<B>>>,
) -> impl Stream<Item = ObjectRef<B>> {
    reflect(writer, events)
        .flat_map(move |event| stream::iter(or_warn(event).map_or_else(Vec::new, |event| changed(&event, &objects))))
}

/// The objects that an event names. One that is deleted needs nothing: the garbage collector deletes what it owns.
fn changed<B: Bridged>(event: &Event<B>, objects: &Store<B>) -> Vec<ObjectRef<B>> {
    match event {
        Event::Apply(object) => vec![ObjectRef::from_obj(object)],
        Event::InitDone => all(objects),
        Event::Delete(_) | Event::Init | Event::InitApply(_) => Vec::new(),
    }
}

fn all<B: Bridged>(objects: &Store<B>) -> Vec<ObjectRef<B>> {
    objects
        .state()
        .iter()
        .map(|object| ObjectRef::from_obj(&**object))
        .collect()
}

/// The owners that an event of an object may affect. An object that was deleted while its watch was interrupted has no
/// event of its own: all owners are reconciled when the new list is complete.
fn touched<K: Resource, B: Bridged>(event: &Event<K>, owners: &Store<B>) -> Vec<ObjectRef<B>> {
    match event {
        Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => owner(object).into_iter().collect(),
        Event::InitDone => all(owners),
        Event::Init => Vec::new(),
    }
}

/// The trigger or the sink for which an object was made.
fn owner<K: Resource, B: Bridged>(object: &K) -> Option<ObjectRef<B>> {
    let name = object.labels().get(B::LABEL)?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}

/// An object that does not decode counts as deleted: nothing is made for it, and what is there stays.
fn decoded<B: Bridged>(event: Event<DeserializeGuard<B>>) -> Event<B> {
    let known: fn(B) -> Event<B> = match &event {
        Event::InitApply(_) => Event::InitApply,
        Event::Apply(_) => Event::Apply,
        Event::Delete(_) | Event::Init | Event::InitDone => Event::Delete,
    };
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(guard) | Event::Apply(guard) | Event::Delete(guard) => match guard.0 {
            Ok(object) => known(object),
            Err(invalid) => {
                let (namespace, name) = (&invalid.metadata.namespace, &invalid.metadata.name);
                warn!(
                    kind = B::WORD,
                    ?namespace,
                    ?name,
                    error = invalid.error,
                    "skipping an object that does not decode"
                );
                let mut unread = B::default();
                *unread.meta_mut() = invalid.metadata;
                Event::Delete(unread)
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
