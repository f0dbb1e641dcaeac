//! What `rproc trigger` and `rproc sink` have in common: `ls` and `describe` of objects for which a bridge works.

mod describe;
mod list;

use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::core::{ApiResource, DynamicObject, NamespaceResourceScope};
use kube::{Api, Resource};
use remoteprocess_api::{ProcessSink, ProcessTrigger};
use remoteprocess_client::{Cluster, Rule};
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::render::bridged::Row;
use crate::render::{sink, trigger};

pub(super) use describe::describe;
pub(super) use list::{ListFlags, list};

/// The ClusterRole of users who look at them.
const ROLE: &str = "remoteprocess-view";

/// An object for which a bridge works.
pub(super) trait Bridged:
    Row + Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned
{
    /// The word for it in messages.
    const WORD: &'static str;

    /// A rule on objects of this kind, of the role `role`.
    fn rule(verb: &'static str, role: &'static str) -> Rule;

    /// The text of `describe`. `events`: absent if the user may not read them.
    fn description(&self, events: Option<&[Event]>, now: Timestamp) -> String;
}

impl Bridged for ProcessTrigger {
    const WORD: &'static str = "trigger";

    fn rule(verb: &'static str, role: &'static str) -> Rule {
        Rule::trigger(verb, role)
    }

    fn description(&self, events: Option<&[Event]>, now: Timestamp) -> String {
        trigger::describe(self, events, now)
    }
}

impl Bridged for ProcessSink {
    const WORD: &'static str = "sink";

    fn rule(verb: &'static str, role: &'static str) -> Rule {
        Rule::sink(verb, role)
    }

    fn description(&self, events: Option<&[Event]>, now: Timestamp) -> String {
        sink::describe(self, events, now)
    }
}

/// The objects of the namespace.
pub(super) fn typed<K: Bridged>(cluster: &Cluster) -> Api<K> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

/// The same without a type: unknown fields of a newer operator are kept.
fn untyped<K: Bridged>(cluster: &Cluster, is_everywhere: bool) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<K>(&());
    if is_everywhere {
        Api::all_with(cluster.client.clone(), &resource)
    } else {
        Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource)
    }
}

/// What was found, or the failure.
pub(super) fn found<K: Bridged, T>(
    cluster: &Cluster,
    name: &str,
    found: kube::Result<Option<T>>,
) -> Result<T, Failure> {
    let (word, namespace) = (K::WORD, &cluster.namespace);
    let found = found.map_err(|error| cluster.error(&error, &K::rule("get", ROLE), &format!("read {word} {name}")))?;
    found.ok_or_else(|| Failure::new(format!("there is no {word} {name} in namespace {namespace}")))
}
