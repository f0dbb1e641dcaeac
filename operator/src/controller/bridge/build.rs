//! Builds the objects of a bridge. Pure: the same input gives the same objects.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EnvVar, HTTPGetAction, LocalObjectReference, PodAffinityTerm,
    PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile,
    SecretVolumeSource, SecurityContext, Service, ServicePort, ServiceSpec, Volume, VolumeMount,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use remoteprocess_api::names;
use remoteprocess_api::trigger::WEBHOOK_PORT;
use remoteprocess_proto::pod::{self, env};
use sha2::{Digest, Sha256};

use super::super::build::{build_token, field, mount, variable};
use super::kind::Bridged;

/// Name of the bridge's program in `app.kubernetes.io/name`.
const BRIDGE: &str = "remoteprocess-bridge";
/// Name of the bridge's container.
pub(super) const CONTAINER: &str = "bridge";
/// Names of its ports.
const ADMIN: &str = "admin";
const WEBHOOK: &str = "webhook";
/// `nonroot` of the images. Numeric, so that `runAsNonRoot` can be checked without inspecting the image.
const UID: i64 = 65532;
/// Everyone may read the files of a Secret: only the bridge is in its container.
const SECRET_MODE: i32 = 0o444;
/// Seconds in which the bridge settles the messages that it holds.
const GRACE_SECONDS: i64 = 30;
/// Ports of the Service, with and without TLS.
const HTTPS: i32 = 443;
const HTTP: i32 = 80;

/// The installation's settings for bridges.
#[derive(Clone, Debug, PartialEq)]
pub struct BridgeSettings {
    /// Image with `/bridge`.
    pub image: String,
    /// Pull policy of that image; if absent, the default of Kubernetes.
    pub image_pull_policy: Option<String>,
    /// Pull secrets of that image, in the namespace of the object.
    pub image_pull_secrets: Vec<String>,
    /// Requests and limits of the bridge's container.
    pub resources: ResourceRequirements,
    /// How a bridge that reads output reaches the relay.
    pub relay: RelaySettings,
}

/// How a client in the cluster reaches the relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelaySettings {
    /// `host:port` of the relay's main listener.
    pub server: String,
    /// Namespace of the operator: there is the ConfigMap that says what to trust and where to log in.
    pub namespace: String,
}

/// Name of the Deployment and the Service of a bridge.
pub(super) fn object_name<K: Bridged>(object: &K) -> String {
    names::bridge_object(&object.name_any(), K::WORD)
}

/// Builds the Deployment of the bridge.
pub(super) fn build_deployment(object: &impl Bridged, settings: &BridgeSettings) -> Deployment {
    let labels = build_labels(object);
    let spec = DeploymentSpec {
        replicas: i32::try_from(object.replicas()).ok(),
        revision_history_limit: Some(1),
        selector: LabelSelector {
            match_labels: Some(build_selector(object)),
            ..LabelSelector::default()
        },
        strategy: Some(build_strategy()),
        template: PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(labels),
                annotations: Some(build_scrape_annotations()),
                ..ObjectMeta::default()
            }),
            spec: Some(build_pod_spec(object, settings)),
        },
        progress_deadline_seconds: build_deadline(object),
        ..DeploymentSpec::default()
    };
    let annotation = (names::ANNOTATION_MADE_FROM.to_owned(), digest(&spec));
    Deployment {
        metadata: ObjectMeta {
            annotations: Some(BTreeMap::from([annotation])),
            ..build_metadata(object)
        },
        spec: Some(spec),
        ..Deployment::default()
    }
}

/// The stand-by of a webhook is never ready: its Deployment is never complete, and must not count as stuck for that.
/// Kubernetes takes the largest number as no deadline (`HasProgressDeadline` of its Deployment controller).
fn build_deadline(object: &impl Bridged) -> Option<i32> {
    (object.webhook().is_some() && object.replicas() > 1).then_some(i32::MAX)
}

/// Former pods end at once, because their Secrets may be former ones, and new ones start in the meantime: the lease keeps
/// two from working at the same time. A pod on a lost node does not hold up the others.
fn build_strategy() -> DeploymentStrategy {
    let all = || Some(IntOrString::String("100%".to_owned()));
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: all(),
            max_unavailable: all(),
        }),
    }
}

/// Builds the Service of a webhook; none for other sources.
pub(super) fn build_service(object: &impl Bridged) -> Option<Service> {
    let http = object.webhook()?;
    let port = http.tls_secret_name.as_ref().map_or(HTTP, |_| HTTPS);
    let spec = ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        selector: Some(build_selector(object)),
        ports: Some(vec![ServicePort {
            name: Some(WEBHOOK.to_owned()),
            port,
            protocol: Some("TCP".to_owned()),
            target_port: Some(IntOrString::String(WEBHOOK.to_owned())),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    };
    let annotation = (names::ANNOTATION_MADE_FROM.to_owned(), digest(&spec));
    Some(Service {
        metadata: ObjectMeta {
            annotations: Some(BTreeMap::from([annotation])),
            ..build_metadata(object)
        },
        spec: Some(spec),
        ..Service::default()
    })
}

/// Changes with everything that is wanted: what is wanted no longer is noticed by it.
fn digest<T: serde::Serialize>(spec: &T) -> String {
    // What cannot be written as JSON cannot be sent either.
    hex::encode(Sha256::digest(serde_json::to_vec(spec).unwrap_or_default()))
}

fn build_metadata<K: Bridged>(object: &K) -> ObjectMeta {
    ObjectMeta {
        name: Some(object_name(object)),
        namespace: object.namespace(),
        labels: Some(build_labels(object)),
        owner_references: Some(vec![OwnerReference {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            controller: Some(true),
            // Would require rights on finalizers where owner references are enforced.
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

fn build_labels<K: Bridged>(object: &K) -> BTreeMap<String, String> {
    let mut labels = build_selector(object);
    labels.extend([
        ("app.kubernetes.io/name".to_owned(), BRIDGE.to_owned()),
        ("app.kubernetes.io/instance".to_owned(), object.name_any()),
        ("app.kubernetes.io/part-of".to_owned(), "remoteprocess".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), names::MANAGED_BY.to_owned()),
        (K::LABEL.to_owned(), object.name_any()),
    ]);
    labels
}

/// Labels that no other pod has, and that never change.
fn build_selector<K: Bridged>(object: &K) -> BTreeMap<String, String> {
    BTreeMap::from([
        (
            "app.kubernetes.io/component".to_owned(),
            names::BRIDGE_COMPONENT.to_owned(),
        ),
        (K::LABEL_UID.to_owned(), object.uid().unwrap_or_default()),
    ])
}

fn build_scrape_annotations() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("prometheus.io/scrape".to_owned(), "true".to_owned()),
        ("prometheus.io/port".to_owned(), names::ADMIN_PORT.to_string()),
    ])
}

fn build_pod_spec<K: Bridged>(object: &K, settings: &BridgeSettings) -> PodSpec {
    let secrets = object.secrets();
    let volumes = secrets.iter().map(|(directory, secret)| Volume {
        name: volume_name(directory).to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some((*secret).to_owned()),
            default_mode: Some(SECRET_MODE),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
    let pull_secrets = settings.image_pull_secrets.iter();
    let pull_secrets = pull_secrets.map(|name| LocalObjectReference { name: name.clone() });
    let volumes = volumes.chain(object.reads_output().then(|| build_token(names::LOGIN_AUDIENCE)));
    let (volumes, pull_secrets): (Vec<_>, Vec<_>) = (volumes.collect(), pull_secrets.collect());
    PodSpec {
        containers: vec![build_container(object, settings)],
        volumes: (!volumes.is_empty()).then_some(volumes),
        image_pull_secrets: (!pull_secrets.is_empty()).then_some(pull_secrets),
        service_account_name: Some(object.account().to_owned()),
        // It calls the API server as this account.
        automount_service_account_token: Some(true),
        enable_service_links: Some(false),
        affinity: (object.replicas() > 1).then(|| build_affinity(object)),
        node_selector: Some(BTreeMap::from([("kubernetes.io/os".to_owned(), "linux".to_owned())])),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(UID),
            run_as_group: Some(UID),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}

/// A stand-by is of most use on another node. A cluster of one node has one all the same.
fn build_affinity(object: &impl Bridged) -> Affinity {
    let term = WeightedPodAffinityTerm {
        weight: 100,
        pod_affinity_term: PodAffinityTerm {
            label_selector: Some(LabelSelector {
                match_labels: Some(build_selector(object)),
                ..LabelSelector::default()
            }),
            topology_key: "kubernetes.io/hostname".to_owned(),
            ..PodAffinityTerm::default()
        },
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![term]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn build_container<K: Bridged>(object: &K, settings: &BridgeSettings) -> Container {
    let port = |name: &str, port: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: port.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let mut ports = vec![port(ADMIN, names::ADMIN_PORT)];
    ports.extend(object.webhook().map(|_| port(WEBHOOK, WEBHOOK_PORT)));
    let secrets = object.secrets();
    let mounts = secrets.iter().map(|(directory, _)| VolumeMount {
        name: volume_name(directory).to_owned(),
        mount_path: (*directory).to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
    let token = object
        .reads_output()
        .then(|| mount(names::VOLUME_TOKEN, pod::TOKEN_PATH, true));
    let mounts: Vec<_> = mounts.chain(token).collect();
    Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: settings.image_pull_policy.clone(),
        args: Some(vec![
            format!("--namespace={}", object.namespace().unwrap_or_default()),
            format!("--{}={}", K::WORD, object.name_any()),
        ]),
        env: Some(build_env(object, &settings.relay)),
        ports: Some(ports),
        // Neither depends on the broker or the API server: their outage must not restart the bridge.
        liveness_probe: Some(build_probe("/healthz", 10, 6)),
        readiness_probe: Some(build_probe("/readyz", 2, 3)),
        resources: Some(settings.resources.clone()),
        volume_mounts: (!mounts.is_empty()).then_some(mounts),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// The name of the pod, under which it holds the lease. And how a bridge that reads output logs in at the relay: what a
/// program of the library `client/` reads.
fn build_env(object: &impl Bridged, relay: &RelaySettings) -> Vec<EnvVar> {
    let mut variables = vec![field("POD_NAME", "metadata.name")];
    if object.reads_output() {
        variables.extend([
            variable("RPROC_SERVER", &relay.server),
            variable("RPROC_OPERATOR_NAMESPACE", &relay.namespace),
            variable(env::TOKEN_FILE, pod::TOKEN_FILE),
        ]);
    }
    variables
}

fn build_probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN.to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// The volume for a directory: its last part.
fn volume_name(directory: &str) -> &str {
    directory.rsplit('/').next().unwrap_or(directory)
}

#[cfg(test)]
mod tests;
