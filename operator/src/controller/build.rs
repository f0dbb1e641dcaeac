//! Builds the pod of one attempt from a validated process. Pure: the same input gives the same pod.

mod agent;
mod program;
mod resources;
mod security;
mod volumes;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use remoteprocess_api::{RemoteProcess, names};

use super::validate::Validated;
use crate::phase::pod::pod_name;

pub(super) use agent::{field, variable};
pub(super) use volumes::{build_token, mount};

/// Seconds of the pod's grace period for what follows KILL: reap, read the pipes to their end, report.
const REPORT_SECONDS: u32 = 5;

/// Annotation that names the default container of `kubectl logs` and `kubectl exec`.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Annotation that lists the volumes that do not prevent a node from being scaled down.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";
/// Node label and selector of the operating system.
const OS_LABEL: &str = "kubernetes.io/os";

/// How the entrypoint gets into the user's container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// A postStart hook of the agent's container copies it into a volume. Works everywhere.
    #[default]
    Hook,
    /// The agent's image is mounted as a volume. No extra process is needed.
    ImageVolume,
}

/// The installation's settings for agents.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentSettings {
    /// Image with `/agent` and `/entrypoint`.
    pub image: String,
    /// Pull policy of that image; if absent, the default of Kubernetes.
    pub image_pull_policy: Option<String>,
    /// Pull secrets of that image, in the pod's namespace.
    pub image_pull_secrets: Vec<String>,
    /// `host:port` of the relay's main listener.
    pub relay: String,
    /// `host:port` of the relay's enrollment listener.
    pub relay_enroll: String,
    /// Certificates of the CAs that agents trust, PEM.
    pub ca_bundle: String,
    /// Trust domain of the identities.
    pub trust_domain: String,
    /// Seconds that an agent has to hand over its output after the program's end.
    pub drain_seconds: u32,
    /// Port of the agent's executor.
    pub listen_port: u16,
    /// Requests and limits of the agent's container, unless the object sets them.
    pub resources: ResourceRequirements,
    /// How the entrypoint gets into the user's container. Determined for each pod.
    pub handover: Handover,
    /// Whether the agent's container requests the spool's size as ephemeral storage. Nodes whose kubelet does not
    /// isolate local storage have none to offer, and such a pod would never be scheduled there.
    pub request_ephemeral_storage: bool,
    /// The variable `TRACEPARENT` of the program; none without traces. Determined for each pod.
    pub traceparent: Option<String>,
}

/// How strict the security context of the user's container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Only settings that break no ordinary image.
    Ordinary,
    /// Everything that Pod Security `restricted` requires, unless the user sets it.
    Restricted,
}

/// Builds the pod of attempt `attempt`.
pub(crate) fn build_pod(process: &Validated<'_>, attempt: u32, settings: &AgentSettings, profile: Profile) -> Pod {
    Pod {
        metadata: build_metadata(process, attempt),
        spec: Some(build_spec(process, attempt, settings, profile)),
        ..Pod::default()
    }
}

fn build_metadata(process: &Validated<'_>, attempt: u32) -> ObjectMeta {
    ObjectMeta {
        name: Some(pod_name(process.name, process.uid, attempt)),
        namespace: Some(process.namespace.to_owned()),
        labels: Some(build_labels(process, attempt)),
        annotations: Some(build_annotations(process)),
        owner_references: Some(vec![OwnerReference {
            api_version: RemoteProcess::api_version(&()).into_owned(),
            kind: RemoteProcess::kind(&()).into_owned(),
            name: process.name.to_owned(),
            uid: process.uid.to_owned(),
            controller: Some(true),
            // Would require rights on finalizers where owner references are enforced.
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

fn build_labels(process: &Validated<'_>, attempt: u32) -> BTreeMap<String, String> {
    // The user's own `app.kubernetes.io` labels win: they describe the program.
    let mut labels = BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), process.name.to_owned()),
        ("app.kubernetes.io/component".to_owned(), "process".to_owned()),
    ]);
    labels.extend(process.pod.labels.clone());
    labels.extend([
        ("app.kubernetes.io/managed-by".to_owned(), names::MANAGED_BY.to_owned()),
        (names::LABEL_NAME.to_owned(), process.name.to_owned()),
        (names::LABEL_UID.to_owned(), process.uid.to_owned()),
        (names::LABEL_ATTEMPT.to_owned(), attempt.to_string()),
    ]);
    labels
}

fn build_annotations(process: &Validated<'_>) -> BTreeMap<String, String> {
    let volumes = format!("{},{}", names::VOLUME_HANDOVER, names::VOLUME_SPOOL);
    let mut annotations = BTreeMap::from([
        (DEFAULT_CONTAINER.to_owned(), names::CONTAINER_MAIN.to_owned()),
        (SAFE_TO_EVICT.to_owned(), volumes),
    ]);
    annotations.extend(process.pod.annotations.clone());
    annotations
}

fn build_spec(process: &Validated<'_>, attempt: u32, settings: &AgentSettings, profile: Profile) -> PodSpec {
    // Destructured without `..`: a new field of the spec does not compile until it is handled here.
    let remoteprocess_api::PodSpec {
        service_account_name,
        automount_service_account_token,
        enable_service_links,
        image_pull_secrets,
        node_selector,
        tolerations,
        affinity,
        priority_class_name,
        runtime_class_name,
        scheduling_gates,
        security_context,
        volumes: _,
        labels: _,
        annotations: _,
    } = process.pod.clone();
    let grace = process
        .stop_grace_seconds
        .saturating_add(REPORT_SECONDS)
        .saturating_add(settings.drain_seconds);
    let linux = (OS_LABEL.to_owned(), "linux".to_owned());
    let agent_secrets = settings
        .image_pull_secrets
        .iter()
        .map(|name| LocalObjectReference { name: name.clone() });
    PodSpec {
        init_containers: Some(vec![agent::build(process, attempt, settings)]),
        containers: vec![program::build(process, settings, profile)],
        volumes: Some(volumes::build(process, settings)),
        restart_policy: Some("Never".into()),
        termination_grace_period_seconds: Some(grace.into()),
        automount_service_account_token: Some(automount_service_account_token.unwrap_or(false)),
        enable_service_links: Some(enable_service_links.unwrap_or(false)),
        service_account_name,
        image_pull_secrets: Some(image_pull_secrets.into_iter().chain(agent_secrets).collect()).filter(is_filled),
        node_selector: Some(node_selector.into_iter().chain([linux]).collect()),
        tolerations: Some(tolerations).filter(is_filled),
        affinity,
        priority_class_name,
        runtime_class_name,
        scheduling_gates: Some(scheduling_gates).filter(is_filled),
        security_context: security::pod(security_context, profile),
        ..PodSpec::default()
    }
}

/// Empty lists are left out of a pod, as a person would do.
#[allow(clippy::ptr_arg, reason = "the signature that Option::filter asks for")]
fn is_filled<T>(list: &Vec<T>) -> bool {
    !list.is_empty()
}

#[cfg(test)]
mod tests;
