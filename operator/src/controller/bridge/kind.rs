//! What the operator must know about an object that has a bridge: a ProcessTrigger or a ProcessSink. Pure.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use kube::core::NamespaceResourceScope;
use remoteprocess_api::bridge::BridgeSpec;
use remoteprocess_api::trigger::HttpSource;
use remoteprocess_api::{ProcessSink, ProcessTrigger, names};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// An object for which the operator makes a bridge.
pub(crate) trait Bridged:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Default
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// The word for it: in the names of its objects, in the arguments of its bridge, and in sentences.
    const WORD: &'static str;
    /// Label of what belongs to it: its name.
    const LABEL: &'static str;
    /// Label of what belongs to it: its uid.
    const LABEL_UID: &'static str;
    /// The field of the spec that names Secrets.
    const PEER: &'static str;

    /// ServiceAccount of its bridge.
    fn account(&self) -> &str;

    /// Names of the Secrets that its bridge reads, each with the directory in which it finds it.
    fn secrets(&self) -> Vec<(&'static str, &str)>;

    /// The webhook that its bridge serves, if it serves one.
    fn webhook(&self) -> Option<&HttpSource>;

    /// Whether its bridge reads output from the relay.
    fn reads_output(&self) -> bool;

    /// Number of pods of its bridge. One works, another waits as a stand-by.
    fn replicas(&self) -> u32;

    /// The conditions of its status.
    fn conditions(&self) -> &[Condition];
}

impl Bridged for ProcessTrigger {
    const WORD: &'static str = "trigger";
    const LABEL: &'static str = names::LABEL_TRIGGER;
    const LABEL_UID: &'static str = names::LABEL_TRIGGER_UID;
    const PEER: &'static str = "spec.source";

    fn account(&self) -> &str {
        &self.spec.service_account_name
    }

    fn secrets(&self) -> Vec<(&'static str, &str)> {
        self.spec.source.secrets()
    }

    fn webhook(&self) -> Option<&HttpSource> {
        self.spec.source.http.as_ref()
    }

    fn reads_output(&self) -> bool {
        false
    }

    fn replicas(&self) -> u32 {
        BridgeSpec::replicas(self.spec.bridge.as_ref())
    }

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map_or(&[], |status| &status.conditions)
    }
}

impl Bridged for ProcessSink {
    const WORD: &'static str = "sink";
    const LABEL: &'static str = names::LABEL_SINK;
    const LABEL_UID: &'static str = names::LABEL_SINK_UID;
    const PEER: &'static str = "spec.destination";

    fn account(&self) -> &str {
        &self.spec.service_account_name
    }

    fn secrets(&self) -> Vec<(&'static str, &str)> {
        self.spec.destination.secrets()
    }

    fn webhook(&self) -> Option<&HttpSource> {
        None
    }

    fn reads_output(&self) -> bool {
        self.spec.output.is_some()
    }

    fn replicas(&self) -> u32 {
        BridgeSpec::replicas(self.spec.bridge.as_ref())
    }

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map_or(&[], |status| &status.conditions)
    }
}
