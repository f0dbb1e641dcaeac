//! The agent's container: a native sidecar that starts before the program and outlives it.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, EnvVarSource, ExecAction, Lifecycle, LifecycleHandler, ObjectFieldSelector,
    VolumeMount,
};
use remoteprocess_api::names;
use remoteprocess_proto::pod::{self, env};

use super::super::validate::Validated;
use super::{AgentSettings, Handover, resources, security, volumes};

pub(super) fn build(process: &Validated<'_>, attempt: u32, settings: &AgentSettings) -> Container {
    // The kubelet starts the user's container only when this hook has returned.
    let install = (settings.handover == Handover::Hook).then(|| Lifecycle {
        post_start: Some(LifecycleHandler {
            exec: Some(ExecAction {
                command: Some(vec!["/agent".into(), "install".into()]),
            }),
            ..LifecycleHandler::default()
        }),
        ..Lifecycle::default()
    });
    Container {
        name: names::CONTAINER_AGENT.into(),
        image: Some(settings.image.clone()),
        image_pull_policy: settings.image_pull_policy.clone(),
        command: Some(vec!["/agent".into()]),
        restart_policy: Some("Always".into()),
        env: Some(build_env(process, attempt, settings)),
        lifecycle: install,
        ports: Some(vec![ContainerPort {
            name: Some("rproc-agent".into()),
            container_port: settings.listen_port.into(),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        resources: Some(resources::agent(process, settings)),
        security_context: Some(security::agent()),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(build_mounts(process, settings)),
        ..Container::default()
    }
}

fn build_mounts(process: &Validated<'_>, settings: &AgentSettings) -> Vec<VolumeMount> {
    let mut mounts = vec![
        volumes::mount(names::VOLUME_HANDOVER, pod::HANDOVER_PATH, false),
        volumes::mount(names::VOLUME_SPOOL, pod::SPOOL_PATH, false),
        volumes::mount(names::VOLUME_TOKEN, pod::TOKEN_PATH, true),
    ];
    // The runtime makes the folder for it on the handover volume, which the user's container mounts read-only.
    mounts.extend(volumes::mount_image(settings));
    if !process.mask.is_empty() {
        mounts.push(volumes::mount(names::VOLUME_MASK, pod::MASK_PATH, true));
    }
    mounts
}

/// The identity of the agent and its paths. How the program is launched comes with the grant of the start. The
/// environment of the agent is built only here.
fn build_env(process: &Validated<'_>, attempt: u32, settings: &AgentSettings) -> Vec<EnvVar> {
    let mask = (!process.mask.is_empty()).then(|| variable(env::MASK_DIR, pod::MASK_PATH));
    let always = [
        variable(env::RELAY, &settings.relay),
        variable(env::RELAY_ENROLL, &settings.relay_enroll),
        variable(env::CA_BUNDLE, &settings.ca_bundle),
        variable(env::TRUST_DOMAIN, &settings.trust_domain),
        variable(env::PROCESS_NAMESPACE, process.namespace),
        variable(env::PROCESS_NAME, process.name),
        variable(env::PROCESS_UID, process.uid),
        variable(env::ATTEMPT, attempt),
        field(env::POD_UID, "metadata.uid"),
        field(env::POD_IP, "status.podIP"),
        variable(env::LISTEN_PORT, settings.listen_port),
        variable(env::SPOOL_SIZE, process.spool_bytes),
        variable(env::DRAIN_SECONDS, settings.drain_seconds),
        variable(env::TOKEN_FILE, pod::TOKEN_FILE),
        variable(env::HANDOVER, pod::HANDOVER_PATH),
        variable(env::SPOOL, pod::SPOOL_PATH),
    ];
    always.into_iter().chain(mask).collect()
}

/// A variable whose value is given here. `$` is doubled, because Kubernetes expands `$(NAME)`.
pub(in crate::controller) fn variable(name: &str, value: impl ToString) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: Some(value.to_string().replace('$', "$$")),
        value_from: None,
    }
}

/// A variable from the downward API.
pub(in crate::controller) fn field(name: &str, path: &str) -> EnvVar {
    let field_ref = ObjectFieldSelector {
        api_version: Some("v1".into()),
        field_path: path.into(),
    };
    EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(field_ref),
            ..EnvVarSource::default()
        }),
    }
}
