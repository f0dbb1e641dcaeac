//! What a message says: its id, its payload and its CloudEvents attributes. Pure.

mod cloud_event;

use std::collections::BTreeMap;

use bytes::Bytes;
use remoteprocess_api::ProcessTriggerSpec;
use remoteprocess_api::trigger::{MessageId, Payload};
use sha2::{Digest, Sha256};

use cloud_event::{Attributes, Event};

/// Most headers of a message that are kept.
pub const MAX_HEADERS: usize = 64;
/// Longest name of a header that is kept, in bytes.
pub const MAX_HEADER_NAME: usize = 256;
/// Longest value of a header that is kept, in bytes.
pub const MAX_HEADER_VALUE: usize = 4096;
/// Most bytes of all headers together that are kept.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Longest id of a message, in bytes.
pub const MAX_ID: usize = 1024;
/// Longest address for a result, in bytes.
pub const MAX_REPLY_TO: usize = 1024;
/// Most environment variables from a message.
pub const MAX_VARIABLES: usize = 32;
/// Longest value of such a variable, in bytes.
pub const MAX_VARIABLE: usize = 1024;

/// Header of a dead letter: a sentence that says why.
pub const DEAD_LETTER_REASON: &str = "rproc-dead-letter-reason";
/// Header of a dead letter: namespace and name of its trigger.
pub const DEAD_LETTER_TRIGGER: &str = "rproc-dead-letter-trigger";
/// Header of a dead letter of NATS: the id that the message had.
pub const DEAD_LETTER_ID: &str = "rproc-dead-letter-message-id";
/// Header of a replayed message of NATS: the place of its dead letter.
pub const DEAD_LETTER_PLACE: &str = "rproc-dead-letter-place";
/// Header of a dead letter that the replay of another trigger has moved to the end of its queue: which replay.
pub const DEAD_LETTER_MOVED: &str = "rproc-dead-letter-moved";
/// Header of a message of NATS: its subject, to which it is sent again.
pub const SUBJECT: &str = "rproc-subject";
/// Header of a dead letter, and of the message that is made of it again: the uid of the process that failed. With this
/// header, the message is another one than that of the process.
pub const REPLAY_OF: &str = "rproc-replay-of";
/// Headers of our own. They are kept in addition to [`MAX_HEADERS`] others.
const OWN_HEADERS: [&str; 6] = [
    DEAD_LETTER_REASON,
    DEAD_LETTER_TRIGGER,
    DEAD_LETTER_ID,
    DEAD_LETTER_PLACE,
    SUBJECT,
    REPLAY_OF,
];
/// Longest uid in a header, in bytes. Those of Kubernetes have 36.
const MAX_UID: usize = 64;

/// The header with the id that the signature of a webhook covers.
pub const SIGNED_ID: &str = "webhook-id";

/// A message as a source hands it over. Everything in it may come from an enemy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The id that the broker or the sender gives.
    pub id: Option<String>,
    /// The body.
    pub payload: Bytes,
    /// Headers: names in lower case, within the limits of [`Message::insert`].
    pub headers: BTreeMap<String, String>,
    /// Media type of the body.
    pub content_type: Option<String>,
    /// Where the result goes, in a form that the source's publisher understands; at most [`MAX_REPLY_TO`] bytes.
    pub reply_to: Option<String>,
    /// Whether a signature covers `id` and the payload, and nothing else. An attacker who repeats the message could change
    /// its headers, so they must not make it a new one.
    pub is_signed: bool,
}

/// What a process is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// What makes two messages the same one: 1 to [`MAX_ID`] bytes without control characters.
    pub id: String,
    /// The process that failed with this message before, if it is a replay: with it, the message is another one.
    pub replay_of: Option<String>,
    /// The message; its payload is what the program gets. A CloudEvent in structured mode is one in binary mode here.
    pub message: Message,
    /// Environment variables: at most [`MAX_VARIABLES`], each value at most [`MAX_VARIABLE`] bytes without NUL.
    pub variables: Vec<(String, String)>,
}

/// A message that can never become a process, with the reason as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Poison(pub String);

impl Message {
    /// Keeps a header, its name in lower case. Returns whether it was kept: one that is too long, one too many, and one
    /// whose name or value has control characters are not. A header that comes again replaces the one before.
    pub fn insert(&mut self, name: &str, value: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let fits = (1..=MAX_HEADER_NAME).contains(&name.len()) && value.len() <= MAX_HEADER_VALUE;
        if !fits || name.contains(char::is_control) || value.contains(|c: char| c.is_control() && c != '\t') {
            return false;
        }
        if OWN_HEADERS.contains(&name.as_str()) {
            self.headers.insert(name, value.to_owned());
            return true;
        }
        let is_counted = |other: &str| other != name && !OWN_HEADERS.contains(&other);
        let others = self.headers.iter().filter(|(other, _)| is_counted(other));
        let (count, bytes) = others.fold((0, 0), |(count, bytes), (name, value)| {
            (count + 1, bytes + name.len() + value.len())
        });
        if count >= MAX_HEADERS || bytes + name.len() + value.len() > MAX_HEADER_BYTES {
            return false;
        }
        self.headers.insert(name, value.to_owned());
        true
    }

    /// The value of a header. `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The message as a dead letter of this trigger (`NAMESPACE/NAME`), and of the process that failed with it, if one did.
    pub fn into_dead_letter(mut self, trigger: &str, process_uid: Option<&str>) -> Self {
        self.insert(DEAD_LETTER_TRIGGER, trigger);
        if let Some(uid) = process_uid {
            self.insert(REPLAY_OF, uid);
        }
        self
    }

    /// A dead letter as the message that it was. What tells it apart from its first run stays.
    pub fn into_replay(mut self) -> Self {
        self.headers.remove(DEAD_LETTER_REASON);
        self.headers.remove(DEAD_LETTER_TRIGGER);
        self.headers.remove(DEAD_LETTER_MOVED);
        self
    }

    /// The process that failed with this message before.
    pub fn replay_of(&self) -> Option<&str> {
        let is_uid = |uid: &&str| (1..=MAX_UID).contains(&uid.len()) && uid.bytes().all(|byte| byte.is_ascii_graphic());
        self.header(REPLAY_OF).filter(is_uid)
    }

    /// Whether it can be a dead letter of this trigger: one without a name has come there by the broker itself.
    pub fn is_of(&self, trigger: &str) -> bool {
        self.header(DEAD_LETTER_TRIGGER).is_none_or(|name| name == trigger)
    }
}

/// A trigger in the header [`DEAD_LETTER_TRIGGER`]: its namespace and its name, which the API server bounds.
pub fn full_name(namespace: Option<&str>, name: &str) -> String {
    format!("{}/{name}", namespace.unwrap_or_default())
}

/// Decides what is made from a message of this trigger.
///
/// # Errors
/// The message can never become a process.
pub fn read(message: &Message, trigger: &str, spec: &ProcessTriggerSpec) -> Result<Work, Poison> {
    check_size(message.payload.len(), spec)?;
    let event = cloud_event::read(message).map_err(Poison)?;
    let id = id(message, event.as_ref(), spec)?;
    let variables = variables(trigger, &id, event.as_ref().map(|event| &event.attributes));
    let mut message = event.map_or_else(|| message.clone(), |event| event.in_binary_mode(message));
    // Text in JSON can be shorter than its escapes, never longer; other values can change by white space.
    check_size(message.payload.len(), spec)?;
    if spec.payload() == Payload::Env {
        check_text(&message.payload)?;
    }
    message.reply_to.take_if(|to| !(1..=MAX_REPLY_TO).contains(&to.len()));
    Ok(Work {
        id,
        replay_of: message.replay_of().map(str::to_owned),
        message,
        variables,
    })
}

fn check_size(bytes: usize, spec: &ProcessTriggerSpec) -> Result<(), Poison> {
    let largest = spec.max_payload_bytes();
    if bytes > usize::try_from(largest).unwrap_or(usize::MAX) {
        return Err(Poison(format!(
            "the payload has {bytes} bytes; at most {largest} are accepted (spec.message.maxBytes)"
        )));
    }
    Ok(())
}

fn check_text(payload: &[u8]) -> Result<(), Poison> {
    let wrong = match std::str::from_utf8(payload) {
        Ok(text) if !text.contains('\0') => return Ok(()),
        Ok(_) => "contains a NUL byte",
        Err(_) => "is not UTF-8",
    };
    Err(Poison(format!(
        "the payload {wrong}, which an environment variable cannot hold (spec.message.payload: Env)"
    )))
}

fn id(message: &Message, event: Option<&Event>, spec: &ProcessTriggerSpec) -> Result<String, Poison> {
    let settings = spec.message.as_ref();
    let id = match settings.and_then(|settings| settings.id).unwrap_or_default() {
        MessageId::Auto if message.is_signed => message.id.clone().unwrap_or_default(),
        MessageId::Auto => {
            let of_event = event.map(|event| format!("{} {}", event.attributes.source, event.attributes.id));
            of_event
                .or_else(|| message.id.clone())
                .unwrap_or_else(|| digest(&message.payload))
        }
        MessageId::Header => {
            let name = settings
                .and_then(|settings| settings.id_header.as_deref())
                .unwrap_or_default();
            if message.is_signed && !name.eq_ignore_ascii_case(SIGNED_ID) {
                return Err(Poison(format!(
                    "the header {name} (spec.message.idHeader) is not covered by the signature; only {SIGNED_ID} is"
                )));
            }
            let found = message.header(&name.to_ascii_lowercase()).map(str::to_owned);
            found.ok_or_else(|| Poison(format!("the message has no header {name} (spec.message.idHeader)")))?
        }
        MessageId::Body => digest(&message.payload),
    };
    if !(1..=MAX_ID).contains(&id.len()) || id.contains(char::is_control) {
        return Err(Poison(format!(
            "the id of the message has {} bytes, or control characters; 1 to {MAX_ID} bytes are accepted",
            id.len()
        )));
    }
    Ok(id)
}

/// The text with `%XX` for everything but visible ASCII, and for `"` and `%`: the way of CloudEvents in headers.
pub fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'"' | b'%' | ..=b' ' | 0x7f.. => format!("%{byte:02X}"),
        _ => char::from(byte).to_string(),
    };
    text.bytes().map(encode).collect()
}

/// Text with its `%XX` replaced by the bytes that they stand for; as it is if these are not UTF-8.
pub fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let digits = others.get(..2).filter(|_| *first == b'%');
        let decoded = digits.and_then(|digits| hex::decode(digits).ok()?.first().copied());
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &others[2..] } else { others };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

fn digest(payload: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(payload)))
}

/// The environment variables, the most important ones first.
fn variables(trigger: &str, id: &str, attributes: Option<&Attributes>) -> Vec<(String, String)> {
    let own =
        [("RPROC_TRIGGER", trigger), ("RPROC_MESSAGE_ID", id)].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let of_event = attributes.into_iter().flat_map(Attributes::variables);
    own.into_iter()
        .chain(of_event)
        .filter(|(_, value)| value.len() <= MAX_VARIABLE && !value.contains('\0'))
        .take(MAX_VARIABLES)
        .collect()
}

#[cfg(test)]
mod tests;
