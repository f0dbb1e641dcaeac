//! What the API server gets for a message: a RemoteProcess, and a ConfigMap with the message. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapKeySelector, ConfigMapVolumeSource, EnvVar, EnvVarSource, KeyToPath, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource as _, ResourceExt as _};
use remoteprocess_api::names::{
    ANNOTATION_MADE_FROM, ANNOTATION_MESSAGE_ID, ANNOTATION_REPLAY_OF, ANNOTATION_REPLY_TO, LABEL_TRIGGER,
    LABEL_TRIGGER_UID,
};
use remoteprocess_api::trigger::{PAYLOAD_FILE, Payload};
use remoteprocess_api::{ConfigMapKey, ProcessTrigger, RemoteProcess, RemoteProcessSpec, StdinSource};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::message::{Message, Work};

/// Key of the ConfigMap with everything of the message but its payload, as JSON.
const MESSAGE: &str = "message";
/// Name of the volume with the payload, unless the template uses it.
const VOLUME: &str = "message-payload";
/// Bytes of the hash in the name of a process: two messages of 2^40 have the same name with a chance of 1 to 2.
const HASH_BYTES: usize = 10;

/// Everything of a message but its payload.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    id: Option<String>,
    content_type: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// The name of the process of a message: it follows from the trigger and the id, so there is one process for each id; and
/// one more for each replay after a process that failed (`replay_of` is its uid).
pub fn process_name(trigger: &str, trigger_uid: &str, id: &str, replay_of: Option<&str>) -> String {
    let mut digest = Sha256::new()
        .chain_update(trigger_uid)
        .chain_update([0])
        .chain_update(id);
    if let Some(uid) = replay_of {
        // No id has a control character in it.
        digest = digest.chain_update([0]).chain_update(uid);
    }
    format!("{trigger}-{}", hex::encode(&digest.finalize()[..HASH_BYTES]))
}

/// The name of the process of this message.
pub fn name_of(trigger: &ProcessTrigger, work: &Work) -> String {
    let uid = trigger.uid().unwrap_or_default();
    process_name(&trigger.name_any(), &uid, &work.id, work.replay_of.as_deref())
}

/// The process of a message, with its name.
pub fn build_process(trigger: &ProcessTrigger, work: &Work) -> RemoteProcess {
    let name = name_of(trigger, work);
    let template = &trigger.spec.template;
    let mut spec = template.spec.clone();
    add_variables(&mut spec, &work.variables);
    add_payload(&mut spec, trigger, &name);
    let metadata = template.metadata.clone().unwrap_or_default();
    let (mut labels, mut annotations) = (metadata.labels, metadata.annotations);
    labels.extend(own_labels(trigger));
    annotations.insert(ANNOTATION_MESSAGE_ID.to_owned(), work.id.clone());
    annotations.insert(ANNOTATION_MADE_FROM.to_owned(), made_from(trigger, work));
    if let Some(uid) = &work.replay_of {
        annotations.insert(ANNOTATION_REPLAY_OF.to_owned(), uid.clone());
    }
    if let Some(to) = &work.message.reply_to {
        annotations.insert(ANNOTATION_REPLY_TO.to_owned(), to.clone());
    }
    let mut process = RemoteProcess::new(&name, spec);
    process.metadata.namespace = trigger.namespace();
    process.metadata.labels = Some(labels);
    process.metadata.annotations = Some(annotations);
    process
}

fn own_labels(trigger: &ProcessTrigger) -> BTreeMap<String, String> {
    BTreeMap::from([
        (LABEL_TRIGGER.to_owned(), trigger.name_any()),
        (LABEL_TRIGGER_UID.to_owned(), trigger.uid().unwrap_or_default()),
    ])
}

fn made_from(trigger: &ProcessTrigger, work: &Work) -> String {
    let template = serde_json::to_vec(&trigger.spec.template).unwrap_or_default();
    let digest = Sha256::new()
        .chain_update(template)
        .chain_update([0])
        .chain_update(&work.id)
        .chain_update([0])
        .chain_update(&work.message.payload)
        .finalize();
    hex::encode(digest)
}

/// The variables of the message come first, so that those of the template can refer to them. One that the template sets
/// itself stays as it is there.
fn add_variables(spec: &mut RemoteProcessSpec, variables: &[(String, String)]) {
    let is_free = |name: &str| spec.env.iter().all(|other| other.name != name);
    let own: Vec<EnvVar> = variables
        .iter()
        .filter(|(name, _)| is_free(name))
        .map(|(name, value)| variable(name, &literal(value)))
        .collect();
    spec.env.splice(0..0, own);
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        value_from: None,
    }
}

/// The value for an environment variable whose text the program gets as it is: `$(NAME)` is not replaced in it, which
/// would show a secret of the environment to all who get the output.
fn literal(value: &str) -> String {
    value.replace('$', "$$")
}

fn add_payload(spec: &mut RemoteProcessSpec, trigger: &ProcessTrigger, config_map: &str) {
    let (env, directory) = (trigger.spec.payload_env(), trigger.spec.payload_directory());
    match trigger.spec.payload() {
        Payload::None => {}
        Payload::Stdin => {
            spec.stdin_from = Some(StdinSource {
                config_map_key_ref: Some(ConfigMapKey {
                    name: config_map.to_owned(),
                    key: PAYLOAD_FILE.to_owned(),
                }),
                secret_key_ref: None,
            });
        }
        Payload::Env => {
            let selector = ConfigMapKeySelector {
                name: config_map.to_owned(),
                key: PAYLOAD_FILE.to_owned(),
                optional: Some(false),
            };
            let from = EnvVarSource {
                config_map_key_ref: Some(selector),
                ..EnvVarSource::default()
            };
            spec.env.insert(
                0,
                EnvVar {
                    name: env.to_owned(),
                    value: None,
                    value_from: Some(from),
                },
            );
        }
        Payload::File => {
            let path = format!("{}/{PAYLOAD_FILE}", directory.trim_end_matches('/'));
            spec.env.insert(0, variable(env, &literal(&path)));
            mount(spec, config_map, directory);
        }
    }
}

fn mount(spec: &mut RemoteProcessSpec, config_map: &str, directory: &str) {
    let pod = spec.pod.get_or_insert_default();
    let is_free = |name: &String| pod.volumes.iter().all(|volume| volume.name != *name);
    let names = std::iter::once(VOLUME.to_owned()).chain((2_u32..).map(|number| format!("{VOLUME}-{number}")));
    let name = names.into_iter().find(is_free).unwrap_or_default();
    pod.volumes.push(Volume {
        name: name.clone(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map.to_owned(),
            items: Some(vec![KeyToPath {
                key: PAYLOAD_FILE.to_owned(),
                path: PAYLOAD_FILE.to_owned(),
                mode: None,
            }]),
            default_mode: Some(0o444),
            optional: Some(false),
        }),
        ..Volume::default()
    });
    spec.volume_mounts.push(VolumeMount {
        name,
        mount_path: directory.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
}

/// The ConfigMap with the message of a process that exists. It goes with the process.
pub fn build_config_map(process: &RemoteProcess, message: &Message) -> ConfigMap {
    let stored = Stored {
        id: message.id.clone(),
        content_type: message.content_type.clone(),
        headers: message.headers.clone(),
    };
    let mut data = BTreeMap::from([(MESSAGE.to_owned(), serde_json::to_string(&stored).unwrap_or_default())]);
    let mut binary = BTreeMap::new();
    match std::str::from_utf8(&message.payload) {
        Ok(text) => {
            data.insert(PAYLOAD_FILE.to_owned(), text.to_owned());
        }
        Err(_) => {
            binary.insert(PAYLOAD_FILE.to_owned(), ByteString(message.payload.to_vec()));
        }
    }
    let labels = process.labels().iter();
    let labels = labels.filter(|(name, _)| [LABEL_TRIGGER, LABEL_TRIGGER_UID].contains(&name.as_str()));
    ConfigMap {
        metadata: ObjectMeta {
            name: process.metadata.name.clone(),
            namespace: process.namespace(),
            labels: Some(labels.map(|(name, value)| (name.clone(), value.clone())).collect()),
            owner_references: Some(vec![OwnerReference {
                controller: Some(false),
                block_owner_deletion: Some(false),
                ..owner_reference(process)
            }]),
            ..ObjectMeta::default()
        },
        data: Some(data),
        binary_data: (!binary.is_empty()).then_some(binary),
        immutable: Some(true),
    }
}

fn owner_reference(process: &RemoteProcess) -> OwnerReference {
    process.owner_ref(&()).unwrap_or_default()
}

/// Whether the ConfigMap is the one of this process.
pub fn is_of(config_map: &ConfigMap, process_uid: &str) -> bool {
    let owners = config_map.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.uid == process_uid)
}

/// The message that such a ConfigMap holds.
pub fn stored_message(config_map: &ConfigMap) -> Option<Message> {
    let stored = config_map.data.as_ref()?.get(MESSAGE)?;
    let stored: Stored = serde_json::from_str(stored).ok()?;
    let text = config_map.data.as_ref().and_then(|data| data.get(PAYLOAD_FILE));
    let bytes = config_map.binary_data.as_ref().and_then(|data| data.get(PAYLOAD_FILE));
    let payload = text
        .map(|text| Bytes::from(text.clone()))
        .or_else(|| bytes.map(|bytes| Bytes::from(bytes.0.clone())))?;
    let mut message = Message {
        id: stored.id,
        payload,
        content_type: stored.content_type,
        ..Message::default()
    };
    for (name, value) in &stored.headers {
        message.insert(name, value);
    }
    Some(message)
}

/// When the process may be deleted: this long after its end.
pub fn forget_at(finished_at: Timestamp, remember_seconds: u32) -> Timestamp {
    let span = jiff::SignedDuration::from_secs(remember_seconds.into());
    finished_at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
