//! `rproc trigger test`: sends a message to the source of a trigger, through its bridge.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use remoteprocess_api::names::{ANNOTATION_MESSAGE_ID, ANNOTATION_TEST_MESSAGE, LABEL_TRIGGER_UID};
use remoteprocess_api::trigger::{MAX_TEST_MESSAGE_BYTES, MessageId, TestMessage};
use remoteprocess_api::{Phase, ProcessTrigger, ProcessTriggerSpec, RemoteProcess};
use remoteprocess_client::observe::Seen;
use remoteprocess_client::retry::Backoff;
use remoteprocess_client::{Cluster, Rule};
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, timeout_at};

use super::super::{update, wait};
use super::{found, triggers};
use crate::args::{GlobalArgs, duration, trigger_name};
use crate::failure::Failure;
use crate::print::{print, resource};
use crate::render::trigger::state;

/// Flags of `trigger test`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct TestArgs {
    /// Name of the trigger
    #[arg(value_parser = trigger_name, value_name = "NAME")]
    name: String,
    /// Payload of the message
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    data: Option<String>,
    /// Take the payload from this file; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Id of the message; default: a new one. A second message with the same id is a duplicate
    #[arg(long, value_parser = id)]
    id: Option<String>,
    /// Header of the message, or attribute; can be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Wait until the process has ended; the exit code is 0 if it succeeded, and 1 if not
    #[arg(long)]
    wait: bool,
    /// Maximum time to wait; 0 for no limit
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    timeout: Duration,
}

const EXAMPLES: &str = "Examples:
  # Send a message, and follow the output of its process
  rproc attach $(rproc trigger test orders --data '{\"order\": 7}')

  # Twice the same id: the second message is a duplicate
  rproc trigger test orders --id order-7 -f order.json

The message goes through the bridge and the broker. You need the right to patch
the trigger. Payload and headers have at most about 48 KiB.";

/// Longest id that can be set, in bytes.
const MAX_ID: usize = 256;

/// The id of a message on the command line.
fn id(text: &str) -> Result<String, String> {
    let fits = (1..=MAX_ID).contains(&text.len()) && !text.contains(char::is_control);
    let refused = || format!("an id has 1 to {MAX_ID} bytes without control characters");
    fits.then(|| text.to_owned()).ok_or_else(refused)
}

/// A header on the command line. Names are tokens, as in HTTP (RFC 9110, section 5.6.2), in lower case.
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("no header can have the name {name:?}"));
    }
    if value.contains(|character: char| character.is_control() && character != '\t') {
        return Err(format!("the value of {name} has control characters"));
    }
    Ok((name.to_ascii_lowercase(), value.to_owned()))
}

/// Sends the message, waits for its process, and prints its name.
pub(super) async fn run(global: &GlobalArgs, args: TestArgs) -> Result<u8, Failure> {
    let payload = payload(&args)?;
    let cluster = global.open().await?;
    let name = &args.name;
    let trigger = found(&cluster, name, triggers(&cluster).get_opt(name).await)?;
    let message = message(&args, &payload, &trigger.spec, Timestamp::now(), &nonce()?)?;
    let deadline = update::deadline(args.timeout);
    send(&cluster, &trigger, &message).await?;
    let process = process(&cluster, &trigger, &message, deadline).await?;
    print(&format!("{}\n", resource(&process)))?;
    match args.wait {
        true => end(&cluster, &process, deadline).await,
        false => Ok(0),
    }
}

/// The payload. One that is too large is not read to its end.
fn payload(args: &TestArgs) -> Result<Vec<u8>, Failure> {
    let Some(path) = &args.file else {
        return Ok(args.data.clone().unwrap_or_default().into_bytes());
    };
    let failed = |error: std::io::Error| Failure::new(format!("cannot read {}: {error}", path.display()));
    let source: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(path).map_err(failed)?),
    };
    let mut payload = Vec::new();
    let limit = u64::try_from(MAX_TEST_MESSAGE_BYTES).unwrap_or(u64::MAX);
    source.take(limit + 1).read_to_end(&mut payload).map_err(failed)?;
    Ok(payload)
}

/// 64 random bits.
pub(super) fn nonce() -> Result<String, Failure> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes[..], GetRandomFlags::empty()).map_err(std::io::Error::from)?;
    Ok(hex::encode(bytes))
}

fn message(
    args: &TestArgs,
    payload: &[u8],
    spec: &ProcessTriggerSpec,
    time: Timestamp,
    nonce: &str,
) -> Result<TestMessage, Failure> {
    let id = args.id.clone().unwrap_or_else(|| format!("test-{nonce}"));
    let mut headers: BTreeMap<String, String> = args.headers.iter().cloned().collect();
    if let Some(name) = id_header(spec) {
        headers.entry(name).or_insert_with(|| id.clone());
    }
    let message = TestMessage {
        nonce: nonce.to_owned(),
        time,
        id,
        headers,
        data: STANDARD.encode(payload),
    };
    let size = serde_json::to_string(&message).map_or(usize::MAX, |text| text.len());
    match size <= MAX_TEST_MESSAGE_BYTES {
        true => Ok(message),
        false => Err(Failure::new(format!(
            "the message is too large for a test: in base64, payload and headers may have {MAX_TEST_MESSAGE_BYTES} bytes. \
             Send it to the broker itself"
        ))),
    }
}

/// The header with the id, in lower case, if the trigger takes the id from one.
fn id_header(spec: &ProcessTriggerSpec) -> Option<String> {
    let message = spec
        .message
        .as_ref()
        .filter(|message| message.id == Some(MessageId::Header))?;
    message.id_header.as_ref().map(|name| name.to_ascii_lowercase())
}

async fn send(cluster: &Cluster, trigger: &ProcessTrigger, message: &TestMessage) -> Result<(), Failure> {
    let text = serde_json::to_string(message).map_err(|error| Failure::new(error.to_string()))?;
    let patch = json!({"metadata": {"uid": trigger.metadata.uid, "annotations": {ANNOTATION_TEST_MESSAGE: text}}});
    let name = trigger.metadata.name.as_deref().unwrap_or_default();
    let sent = triggers(cluster)
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    let rule = Rule::trigger("patch", "remoteprocess-edit");
    sent.map_err(|error| cluster.error(&error, &rule, &format!("test trigger {name}")))?;
    Ok(())
}

/// Whether this id, of a process of the trigger, is the one that the bridge finds in the message.
fn is_id_of(message: &TestMessage, spec: &ProcessTriggerSpec, id: &str) -> bool {
    let payload = STANDARD.decode(&message.data).unwrap_or_default();
    let header = |name: &str| message.headers.get(name).map(String::as_str);
    match spec.message.as_ref().and_then(|message| message.id).unwrap_or_default() {
        MessageId::Header => id_header(spec).and_then(|name| header(&name).map(|value| value == id)) == Some(true),
        MessageId::Body => id.ends_with(&hex::encode(Sha256::digest(&payload))),
        // The id of a CloudEvent has its source in front.
        MessageId::Auto => {
            let event = match header("content-type").is_some_and(|kind| kind.starts_with("application/cloudevents")) {
                true => serde_json::from_slice::<Value>(&payload)
                    .ok()
                    .and_then(|event| Some(event.get("id")?.as_str()?.to_owned())),
                false => header("ce-id").map(str::to_owned),
            };
            id == message.id || event.is_some_and(|event| id.ends_with(&format!(" {event}")))
        }
    }
}

/// Waits for the process of the message; its name.
async fn process(
    cluster: &Cluster,
    trigger: &ProcessTrigger,
    message: &TestMessage,
    deadline: Option<Instant>,
) -> Result<String, Failure> {
    let found = watch(cluster, trigger, message);
    let Some(deadline) = deadline else {
        return found.await;
    };
    if let Ok(found) = timeout_at(deadline, found).await {
        return found;
    }
    let name = trigger.metadata.name.as_deref().unwrap_or_default();
    let now = triggers(cluster).get_opt(name).await.ok().flatten();
    let state = now.as_ref().map_or_else(|| "it is gone".to_owned(), state);
    Err(Failure::no(format!(
        "no process for message {} in time; the trigger: {state}. See: rproc trigger describe {name}",
        message.id
    )))
}

async fn watch(cluster: &Cluster, trigger: &ProcessTrigger, message: &TestMessage) -> Result<String, Failure> {
    let uid = trigger.metadata.uid.as_deref().unwrap_or_default();
    let config = watcher::Config::default().labels(&format!("{LABEL_TRIGGER_UID}={uid}"));
    let processes: Api<PartialObjectMeta<RemoteProcess>> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let mut events = std::pin::pin!(watcher(processes, config));
    let mut backoff = Backoff::default();
    loop {
        match events.next().await {
            Some(Ok(Event::Apply(object) | Event::InitApply(object))) => {
                backoff = Backoff::default();
                if let Some(name) = name_of(&object, message, &trigger.spec) {
                    return Ok(name);
                }
            }
            Some(Ok(Event::Delete(_) | Event::Init | Event::InitDone)) => {}
            Some(Err(error)) => {
                refused(cluster, &error)?;
                sleep(backoff.wait()).await;
            }
            None => return Err(Failure::new("the watch of the processes has ended")),
        }
    }
}

/// The failure, if another try is no use.
fn refused(cluster: &Cluster, error: &watcher::Error) -> Result<(), Failure> {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) = error else {
        return Ok(());
    };
    match error {
        kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
            let rule = Rule::process("list, watch", "remoteprocess-view");
            Err(cluster.error(error, &rule, "watch the processes").into())
        }
        _ => Ok(()),
    }
}

fn name_of(
    object: &PartialObjectMeta<RemoteProcess>,
    message: &TestMessage,
    spec: &ProcessTriggerSpec,
) -> Option<String> {
    let id = object.metadata.annotations.as_ref()?.get(ANNOTATION_MESSAGE_ID)?;
    is_id_of(message, spec, id).then(|| object.metadata.name.clone())?
}

/// Waits for the end of a process; our exit code.
async fn end(cluster: &Cluster, name: &str, deadline: Option<Instant>) -> Result<u8, Failure> {
    let check = |seen: &Seen| match seen {
        Seen::Gone => Some(Err("is not there anymore".to_owned())),
        Seen::There(object) if !object.is_final() => None,
        Seen::There(object) => {
            let phase = object.status.as_ref().and_then(|status| status.phase);
            Some(match phase == Some(Phase::Succeeded) {
                true => Ok(()),
                false => Err(wait::state(object)),
            })
        }
    };
    let late = |last| format!("timed out waiting for {name}{}", wait::and_it_is(last));
    update::until(cluster, (name, None), deadline, check, late).await?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        args: TestArgs,
    }

    fn args(words: &[&str]) -> TestArgs {
        Only::try_parse_from([&["test", "orders"], words].concat())
            .unwrap()
            .args
    }

    fn spec(message: Value) -> ProcessTriggerSpec {
        serde_json::from_value(json!({
            "serviceAccountName": "a", "source": {}, "message": message,
            "template": {"spec": {"image": "i", "command": ["x"]}},
        }))
        .unwrap()
    }

    fn sent(words: &[&str], spec: &ProcessTriggerSpec) -> TestMessage {
        let args = args(words);
        let payload = payload(&args).unwrap();
        message(&args, &payload, spec, Timestamp::UNIX_EPOCH, "0a1b").unwrap()
    }

    #[test]
    fn the_message_is_what_was_typed() {
        let sent = sent(
            &[
                "--data", "hi", "--id", "7", "--header", "X-A=b=c", "--header", "ce-type=",
            ],
            &spec(json!({})),
        );
        insta::assert_snapshot!(
            serde_json::to_string(&sent).unwrap(),
            @r#"{"nonce":"0a1b","time":"1970-01-01T00:00:00Z","id":"7","headers":{"ce-type":"","x-a":"b=c"},"data":"aGk="}"#
        );
    }

    #[test]
    fn what_cannot_be_a_message_is_refused() {
        for words in [
            &["--id", ""][..],
            &["--id", "a\nb"],
            &["--header", "novalue"],
            &["--header", "=x"],
            &["--header", "a b=x"],
            &["--header", "a=x\r\ny"],
            &["--data", "x", "-f", "-"],
        ] {
            let parsed = Only::try_parse_from([&["test", "orders"], words].concat());
            assert!(parsed.is_err(), "{words:?}");
        }
        for odd in ["#3", "?", "../x", "remoteprocess/x"] {
            assert!(Only::try_parse_from(["test", odd]).is_err(), "{odd}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        let args = args(&["-f", path.to_str().unwrap()]);
        let payload = payload(&args).unwrap();
        assert!(payload.len() <= MAX_TEST_MESSAGE_BYTES + 1, "{}", payload.len());
        let refused = message(&args, &payload, &spec(json!({})), Timestamp::UNIX_EPOCH, "0");
        assert!(refused.unwrap_err().text.contains("too large"));
    }

    #[test]
    fn the_process_is_found_by_the_id_that_the_bridge_finds() {
        let auto = spec(json!({}));
        let plain = sent(&["--id", "7"], &auto);
        assert!(is_id_of(&plain, &auto, "7") && !is_id_of(&plain, &auto, "17"));
        let fresh = sent(&[], &auto);
        assert!(is_id_of(&fresh, &auto, "test-0a1b"));
        let event = sent(&["--id", "7", "--header", "ce-id=e1"], &auto);
        assert!(is_id_of(&event, &auto, "/shop e1") && !is_id_of(&event, &auto, "/shop xe1"));
        let words = &[
            "--header",
            "content-type=application/cloudevents+json",
            "--data",
            r#"{"id":"e2"}"#,
        ];
        let structured = sent(words, &auto);
        assert!(is_id_of(&structured, &auto, "/shop e2") && !is_id_of(&structured, &auto, "/shop e1"));
        let header = spec(json!({"id": "Header", "idHeader": "X-Order"}));
        let of_header = sent(&["--id", "8"], &header);
        assert!(is_id_of(&of_header, &header, "8"), "the header is set");
        let of_header = sent(&["--id", "8", "--header", "x-order=9"], &header);
        assert!(is_id_of(&of_header, &header, "9") && !is_id_of(&of_header, &header, "8"));
        let body = spec(json!({"id": "Body"}));
        let of_body = sent(&["--data", "body"], &body);
        assert!(is_id_of(
            &of_body,
            &body,
            &format!("sha256:{}", hex::encode(Sha256::digest(b"body")))
        ));
        assert!(!is_id_of(&of_body, &body, &of_body.id));
    }
}
