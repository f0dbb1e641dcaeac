//! The volumes between agent and program, and the user's own.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, EmptyDirVolumeSource, ImageVolumeSource, KeyToPath, ProjectedVolumeSource, SecretProjection,
    SecretVolumeSource, ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use remoteprocess_api::{MaskSource, StdinSource, names};
use remoteprocess_proto::pod;

use super::super::validate::Validated;
use super::{AgentSettings, Handover};

/// Lifetime of a token of ours in seconds; the kubelet renews it after four fifths.
const TOKEN_SECONDS: i64 = 3600;
/// Space for the journal and file system overhead, in addition to the spool's own bytes.
const SPOOL_OVERHEAD: u64 = 16 * 1024 * 1024;
/// Room for the entrypoint's binary and the socket.
const HANDOVER_LIMIT: &str = "16Mi";

pub(super) fn build(process: &Validated<'_>, settings: &AgentSettings) -> Vec<Volume> {
    let ours = [
        Volume {
            name: names::VOLUME_HANDOVER.into(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity(HANDOVER_LIMIT.into())),
                medium: None,
            }),
            ..Volume::default()
        },
        Volume {
            name: names::VOLUME_SPOOL.into(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(spool_limit(process)),
                medium: None,
            }),
            ..Volume::default()
        },
        build_token(names::ENROLL_AUDIENCE),
    ];
    ours.into_iter()
        .chain(build_image(settings))
        .chain(build_mask(process.mask))
        .chain(process.stdin_from.map(build_stdin))
        .chain(process.pod.volumes.iter().cloned())
        .collect()
}

/// The agent's image, for its entrypoint.
fn build_image(settings: &AgentSettings) -> Option<Volume> {
    (settings.handover == Handover::ImageVolume).then(|| Volume {
        name: names::VOLUME_IMAGE.into(),
        image: Some(ImageVolumeSource {
            reference: Some(settings.image.clone()),
            pull_policy: settings.image_pull_policy.clone(),
        }),
        ..Volume::default()
    })
}

/// Where a container sees that image.
pub(super) fn mount_image(settings: &AgentSettings) -> Option<VolumeMount> {
    (settings.handover == Handover::ImageVolume).then(|| mount(names::VOLUME_IMAGE, pod::IMAGE_PATH, true))
}

/// The values to mask, for the agent. If a Secret is missing, the pod waits, as with any volume.
fn build_mask(mask: &[MaskSource]) -> Option<Volume> {
    let source = |(index, source): (usize, &MaskSource)| VolumeProjection {
        secret: Some(SecretProjection {
            name: source.secret_key_ref.name.clone(),
            items: Some(vec![KeyToPath {
                key: source.secret_key_ref.key.clone(),
                path: index.to_string(),
                mode: None,
            }]),
            optional: Some(false),
        }),
        ..VolumeProjection::default()
    };
    (!mask.is_empty()).then(|| Volume {
        name: names::VOLUME_MASK.into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(mask.iter().enumerate().map(source).collect()),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    })
}

/// The key that is the program's input, as one file that everyone in the container can read. If the object or the key is
/// missing, the pod waits, as with any volume.
fn build_stdin(source: &StdinSource) -> Volume {
    let item = |key: &str| {
        Some(vec![KeyToPath {
            key: key.to_owned(),
            path: pod::STDIN_NAME.into(),
            mode: None,
        }])
    };
    Volume {
        name: names::VOLUME_STDIN.into(),
        config_map: source.config_map_key_ref.as_ref().map(|of| ConfigMapVolumeSource {
            name: of.name.clone(),
            items: item(&of.key),
            optional: Some(false),
            ..ConfigMapVolumeSource::default()
        }),
        secret: source.secret_key_ref.as_ref().map(|of| SecretVolumeSource {
            secret_name: Some(of.name.clone()),
            items: item(&of.key),
            optional: Some(false),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// How much the spool may take on the node. The kubelet evicts the pod at once when a volume exceeds its limit, so the
/// limit is above the size at which the agent holds the program back.
pub(super) fn spool_limit(process: &Validated<'_>) -> Quantity {
    let spool = process.spool_bytes;
    Quantity(
        spool
            .saturating_add(spool.div_ceil(4))
            .saturating_add(SPOOL_OVERHEAD)
            .to_string(),
    )
}

pub(in crate::controller) fn build_token(audience: &str) -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(audience.into()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: pod::TOKEN_NAME.into(),
    };
    Volume {
        name: names::VOLUME_TOKEN.into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(token),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

pub(in crate::controller) fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
