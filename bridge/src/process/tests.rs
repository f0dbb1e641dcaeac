use proptest::prelude::*;
use remoteprocess_api::ProcessTriggerSpec;
use remoteprocess_api::names::MAX_NAME;
use remoteprocess_api::trigger::MAX_TRIGGER_NAME;
use serde_json::{Value, json};

use super::*;
use crate::message::read;

fn trigger(message: Value, template: Value) -> ProcessTrigger {
    let mut template_spec = json!({"image": "worker", "command": ["work", "--fast"]});
    let fields = template.as_object().unwrap().clone();
    template_spec.as_object_mut().unwrap().extend(fields);
    let spec: ProcessTriggerSpec = serde_json::from_value(json!({
        "serviceAccountName": "sa", "source": {"http": {"secretName": "s"}}, "message": message,
        "template": {"metadata": {"labels": {"app": "shop"}}, "spec": template_spec},
    }))
    .unwrap();
    let mut trigger = ProcessTrigger::new("orders", spec);
    trigger.metadata.namespace = Some("shop".into());
    trigger.metadata.uid = Some("trigger-uid".into());
    trigger
}

fn build(trigger: &ProcessTrigger, message: &Message) -> RemoteProcess {
    let work = read(message, "orders", &trigger.spec).unwrap();
    build_process(trigger, &work)
}

fn message(payload: &[u8]) -> Message {
    Message {
        id: Some("m1".into()),
        payload: Bytes::copy_from_slice(payload),
        ..Message::default()
    }
}

#[test]
fn a_process_belongs_to_its_trigger_and_says_which_message_it_is_for() {
    let mut message = message(b"hello");
    message.reply_to = Some("answers".into());
    let process = build(&trigger(json!({}), json!({})), &message);
    assert_eq!(process.name_any(), process_name("orders", "trigger-uid", "m1", None));
    assert_eq!(process.namespace().as_deref(), Some("shop"));
    let labels = process.labels();
    assert_eq!(labels["app"], "shop");
    assert_eq!(
        (labels[LABEL_TRIGGER].as_str(), labels[LABEL_TRIGGER_UID].as_str()),
        ("orders", "trigger-uid")
    );
    assert_eq!(process.annotations()[ANNOTATION_MESSAGE_ID], "m1");
    assert_eq!(process.annotations()[ANNOTATION_REPLY_TO], "answers");
    assert_eq!(process.annotations()[ANNOTATION_MADE_FROM].len(), 64);
    assert_eq!(process.metadata.owner_references, None, "it outlives the trigger");
}

#[test]
fn a_replay_has_a_process_of_its_own_for_each_one_that_failed() {
    let trigger = trigger(json!({}), json!({}));
    let of = |uid| {
        build(
            &trigger,
            &message(b"hello").into_dead_letter("shop/orders", uid).into_replay(),
        )
    };
    let (first, second, third) = (of(None), of(Some("uid-1")), of(Some("uid-2")));
    assert_eq!(first.name_any(), process_name("orders", "trigger-uid", "m1", None));
    assert_eq!(second.name_any(), of(Some("uid-1")).name_any(), "no chance in it");
    assert!(first.name_any() != second.name_any() && second.name_any() != third.name_any());
    assert_eq!(second.annotations()[ANNOTATION_MESSAGE_ID], "m1");
    assert_eq!(second.annotations()[ANNOTATION_REPLAY_OF], "uid-1");
    assert_eq!(first.annotations().get(ANNOTATION_REPLAY_OF), None);
}

#[test]
fn the_payload_comes_as_a_file() {
    let taken = json!({"pod": {"volumes": [{"name": "message-payload", "emptyDir": {}}]}});
    let process = build(&trigger(json!({}), taken), &message(b"hello"));
    let volume = &process.spec.pod.as_ref().unwrap().volumes[1];
    assert_eq!(volume.name, "message-payload-2", "the template has the other");
    assert_eq!(volume.config_map.as_ref().unwrap().name, process.name_any());
    let mount = &process.spec.volume_mounts[0];
    assert_eq!(
        (mount.name.as_str(), mount.mount_path.as_str()),
        ("message-payload-2", "/var/run/rproc-message")
    );
    let env = &process.spec.env[0];
    assert_eq!(
        (env.name.as_str(), env.value.as_deref()),
        ("MESSAGE", Some("/var/run/rproc-message/payload"))
    );
}

#[test]
fn the_payload_comes_as_a_variable_or_as_the_input_or_not() {
    let process = build(
        &trigger(json!({"payload": "Env", "payloadEnv": "ORDER"}), json!({})),
        &message(b"hello"),
    );
    let env = &process.spec.env[0];
    let from = env.value_from.as_ref().unwrap().config_map_key_ref.as_ref().unwrap();
    assert_eq!((env.name.as_str(), from.key.as_str()), ("ORDER", "payload"));
    assert_eq!(from.name, process.name_any());
    assert!(process.spec.pod.is_none());

    let process = build(&trigger(json!({"payload": "Stdin"}), json!({})), &message(b"hello"));
    let from = process
        .spec
        .stdin_from
        .as_ref()
        .unwrap()
        .config_map_key_ref
        .as_ref()
        .unwrap();
    assert_eq!(
        (from.name.as_str(), from.key.as_str()),
        (process.name_any().as_str(), "payload")
    );

    let process = build(&trigger(json!({"payload": "None"}), json!({})), &message(b"hello"));
    assert!(process.spec.env.iter().all(|env| env.name != "MESSAGE"));
}

#[test]
fn variables_of_the_template_win_and_may_refer_to_those_of_the_message() {
    let template =
        json!({"env": [{"name": "RPROC_TRIGGER", "value": "mine"}, {"name": "X", "value": "$(RPROC_MESSAGE_ID)"}]});
    let process = build(&trigger(json!({}), template), &message(b"hello"));
    let names: Vec<_> = process.spec.env.iter().map(|env| env.name.as_str()).collect();
    assert_eq!(names, ["MESSAGE", "RPROC_MESSAGE_ID", "RPROC_TRIGGER", "X"]);
}

#[test]
fn a_message_does_not_read_the_environment_of_the_program() {
    let mut message = message(b"x");
    message.id = Some("$(PASSWORD) $$(PASSWORD)".into());
    let process = build(&trigger(json!({}), json!({})), &message);
    let env = process
        .spec
        .env
        .iter()
        .find(|env| env.name == "RPROC_MESSAGE_ID")
        .unwrap();
    assert_eq!(env.value.as_deref(), Some("$$(PASSWORD) $$$$(PASSWORD)"));
}

#[test]
fn the_config_map_goes_with_the_process() {
    let mut process = build(&trigger(json!({}), json!({})), &message(b"hello"));
    process.metadata.uid = Some("process-uid".into());
    let config_map = build_config_map(&process, &message(b"hello"));
    assert_eq!(config_map.metadata.name, process.metadata.name);
    let owner = &config_map.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!(
        (owner.kind.as_str(), owner.uid.as_str()),
        ("RemoteProcess", "process-uid")
    );
    assert_eq!(
        (owner.controller, owner.block_owner_deletion),
        (Some(false), Some(false))
    );
    assert!(is_of(&config_map, "process-uid") && !is_of(&config_map, "other"));
    assert_eq!(config_map.data.unwrap()["payload"], "hello");
}

proptest! {
    #[test]
    fn names_follow_from_trigger_and_id_and_are_names(
        trigger in "[a-z0-9]{1,31}", uid in "[a-z0-9-]{1,36}", id in ".{1,300}", other in ".{1,300}",
    ) {
        let name = process_name(&trigger, &uid, &id, None);
        prop_assert!(trigger.len() <= MAX_TRIGGER_NAME && name.len() <= MAX_NAME);
        prop_assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'));
        prop_assert_eq!(&name, &process_name(&trigger, &uid, &id, None));
        prop_assert_eq!(name == process_name(&trigger, &uid, &other, None), id == other);
        prop_assert_ne!(name, process_name(&trigger, &format!("{uid}0"), &id, None));
    }

    #[test]
    fn nothing_of_a_message_reaches_the_arguments(
        id in ".{1,200}", payload in proptest::collection::vec(any::<u8>(), 0..300),
        headers in proptest::collection::vec(("[a-zA-Z0-9:_-]{1,40}", ".{0,100}"), 0..20),
        way in prop::sample::select(vec!["File", "Env", "Stdin", "None"]),
    ) {
        let trigger = trigger(json!({"payload": way}), json!({"args": ["$(MESSAGE)"]}));
        let mut message = Message { id: Some(id), payload: payload.into(), ..Message::default() };
        for (name, value) in &headers {
            message.insert(name, value);
        }
        let Ok(work) = read(&message, "orders", &trigger.spec) else { return Ok(()) };
        let process = build_process(&trigger, &work);
        let template = &trigger.spec.template.spec;
        prop_assert_eq!(&process.spec.command, &template.command);
        prop_assert_eq!(&process.spec.args, &template.args);
        prop_assert_eq!(&process.spec.image, &template.image);
        for env in &process.spec.env {
            let value = env.value.as_deref().unwrap_or_default();
            prop_assert!(!value.replace("$$", "").contains('$'), "{value} would be expanded");
        }
    }

    #[test]
    fn a_message_comes_back_as_it_was(
        payload in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,100}",
        headers in proptest::collection::vec(("[a-z0-9-]{1,40}", "[ -~]{0,100}"), 0..20), is_text in any::<bool>(),
    ) {
        let payload = if is_text { Bytes::from(text) } else { Bytes::from(payload) };
        let mut message = Message { id: Some("7".into()), payload, content_type: Some("a/b".into()), ..Message::default() };
        for (name, value) in &headers {
            message.insert(name, value);
        }
        let process = RemoteProcess::new("p", RemoteProcessSpec::default());
        prop_assert_eq!(stored_message(&build_config_map(&process, &message)), Some(message));
    }
}
