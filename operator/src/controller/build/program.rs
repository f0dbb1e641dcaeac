//! The user's container: everything in it is the user's, except that the entrypoint runs first.

use k8s_openapi::api::core::v1::{Container, EnvVar};
use remoteprocess_api::{TailInStatus, names};
use remoteprocess_proto::pod;

use super::super::validate::Validated;
use super::{AgentSettings, Handover, Profile, is_filled, security, volumes};

pub(super) fn build(process: &Validated<'_>, settings: &AgentSettings, profile: Profile) -> Container {
    let spec = process.spec;
    let handover = volumes::mount(names::VOLUME_HANDOVER, pod::HANDOVER_PATH, true);
    let entrypoint = match settings.handover {
        Handover::Hook => pod::ENTRYPOINT,
        Handover::ImageVolume => pod::ENTRYPOINT_IN_IMAGE,
    };
    let input = (process.stdin_from).map(|_| volumes::mount(names::VOLUME_STDIN, pod::STDIN_PATH, true));
    let mounts = [handover]
        .into_iter()
        .chain(volumes::mount_image(settings))
        .chain(input);
    Container {
        name: names::CONTAINER_MAIN.into(),
        image: Some(spec.image.clone()),
        image_pull_policy: spec.image_pull_policy.clone(),
        command: Some(vec![entrypoint.into()]),
        // Everything after `--` is the user's, even if it looks like a flag.
        args: Some(
            ["--".to_owned()]
                .into_iter()
                .chain(process.argv.iter().cloned())
                .collect(),
        ),
        env: Some(build_env(process, settings)).filter(is_filled),
        env_from: Some(spec.env_from.clone()).filter(is_filled),
        working_dir: spec.working_dir.clone(),
        resources: spec.resources.clone(),
        volume_mounts: Some(spec.volume_mounts.iter().cloned().chain(mounts).collect()),
        security_context: Some(security::program(process, profile)),
        // If the runtime cannot execute a program, its message is only in the log, together with the echo of the
        // output.
        termination_message_policy: (spec.tail_in_status() != TailInStatus::Never)
            .then(|| "FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

/// The variables of the user, and `TRACEPARENT` unless it is one of them.
fn build_env(process: &Validated<'_>, settings: &AgentSettings) -> Vec<EnvVar> {
    let mut env = process.spec.env.clone();
    let is_set = env.iter().any(|variable| variable.name == TRACEPARENT);
    if let (Some(value), false) = (&settings.traceparent, is_set) {
        env.push(EnvVar {
            name: TRACEPARENT.into(),
            value: Some(value.clone()),
            value_from: None,
        });
    }
    env
}

/// The variable by which a program continues a trace (OpenTelemetry, "environment variables as context propagation
/// carriers").
const TRACEPARENT: &str = "TRACEPARENT";
