//! CloudEvents 1.0 in binary and structured mode ("Modes" of the HTTP, NATS, AMQP and Pub/Sub bindings).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

use super::Message;

/// Prefixes of the headers with attributes: HTTP, NATS and Pub/Sub; the two of AMQP.
const PREFIXES: [&str; 3] = ["ce-", "cloudevents:", "cloudevents_"];
/// The media type of structured mode.
const STRUCTURED: &str = "application/cloudevents+json";
/// The media type of data without one.
const JSON: &str = "application/json";
/// Longest name of an attribute, in bytes.
const MAX_ATTRIBUTE: usize = 64;

/// A message that is a CloudEvent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) attributes: Attributes,
    /// The payload, if it is a part of the body: in structured mode.
    pub(super) data: Option<Bytes>,
}

/// The attributes of a CloudEvent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) id: String,
    /// A URI reference: it has no white space.
    pub(super) source: String,
    /// Of the others, `subject`, `time` and so on.
    others: BTreeMap<String, String>,
}

impl Event {
    /// The same event with its attributes in headers and its data as the payload.
    pub(super) fn in_binary_mode(self, message: &Message) -> Message {
        let mut message = message.clone();
        let Some(data) = self.data else { return message };
        message.payload = data;
        message.content_type = Some(JSON.to_owned());
        message.insert("ce-specversion", "1.0");
        message.insert("ce-id", &self.attributes.id);
        message.insert("ce-source", &self.attributes.source);
        for (name, value) in self.attributes.others {
            if name == "datacontenttype" && !value.contains(char::is_control) {
                message.content_type = Some(value);
            } else {
                // One that does not fit is left out: an extension, which nothing depends on.
                message.insert(&format!("ce-{name}"), &value);
            }
        }
        message
    }
}

/// The event that the message is; `None` if it is none.
///
/// # Errors
/// A message that says that it is a CloudEvent in structured mode, and is none.
pub(super) fn read(message: &Message) -> Result<Option<Event>, String> {
    let media_type = message.content_type.as_deref().unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case(STRUCTURED) {
        return structured(&message.payload).map(Some);
    }
    Ok(PREFIXES.iter().find_map(|prefix| binary(message, prefix)))
}

fn binary(message: &Message, prefix: &str) -> Option<Event> {
    let headers = message.headers.iter();
    let mut found: BTreeMap<String, String> = headers
        .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone())))
        .collect();
    if let Some(media_type) = &message.content_type {
        found.insert("datacontenttype".to_owned(), media_type.clone());
    }
    let attributes = Attributes::new(found)?;
    Some(Event { attributes, data: None })
}

fn structured(body: &[u8]) -> Result<Event, String> {
    let object: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| format!("the message is not a CloudEvent in JSON: {error}"))?;
    let texts = object
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), text(value)?)));
    let texts = texts.filter(|(name, _)| !matches!(name.as_str(), "data" | "data_base64"));
    let attributes = Attributes::new(texts.collect());
    let attributes = attributes.ok_or(
        "the message says that it is a CloudEvent, but lacks specversion 1.0, id, type or a source without spaces",
    )?;
    let data = data(&object, attributes.others.get("datacontenttype").map(String::as_str))?;
    Ok(Event {
        attributes,
        data: Some(data),
    })
}

/// An attribute as text: attributes are strings, booleans and integers.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The payload: text of a media type other than JSON as it is, everything else as JSON.
fn data(object: &Map<String, Value>, media_type: Option<&str>) -> Result<Bytes, String> {
    if let Some(Value::String(encoded)) = object.get("data_base64") {
        let decoded = STANDARD.decode(encoded);
        return decoded
            .map(Bytes::from)
            .map_err(|error| format!("data_base64 of the CloudEvent is not base64: {error}"));
    }
    Ok(match object.get("data") {
        None | Some(Value::Null) => Bytes::new(),
        Some(Value::String(text)) if !media_type.is_none_or(is_json) => Bytes::from(text.clone()),
        Some(data) => Bytes::from(data.to_string()),
    })
}

fn is_json(media_type: &str) -> bool {
    let essence = media_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence.ends_with("/json") || essence.ends_with("+json")
}

impl Attributes {
    /// `None` if it is not a CloudEvent of version 1.0. Names that CloudEvents does not allow are left out.
    fn new(mut found: BTreeMap<String, String>) -> Option<Self> {
        found.retain(|name, _| is_attribute(name));
        let version = found.remove("specversion")?;
        let (id, source) = (found.remove("id")?, found.remove("source")?);
        let has_type = found.get("type").is_some_and(|kind| !kind.is_empty());
        let is_valid = version == "1.0" && has_type && !id.is_empty() && !source.is_empty();
        // Otherwise two events could have one `SOURCE ID`.
        (is_valid && !source.contains(char::is_whitespace)).then_some(Self {
            id,
            source,
            others: found,
        })
    }

    /// Environment variables: `CE_ID`, `CE_SOURCE`, `CE_TYPE`, and one for each other attribute.
    pub(super) fn variables(&self) -> impl Iterator<Item = (String, String)> {
        let kind = self
            .others
            .get("type")
            .into_iter()
            .map(|kind| ("CE_TYPE".to_owned(), kind.clone()));
        let others = self.others.iter().filter(|(name, _)| *name != "type");
        let others = others.map(|(name, value)| (format!("CE_{}", name.to_ascii_uppercase()), value.clone()));
        [
            ("CE_ID".to_owned(), self.id.clone()),
            ("CE_SOURCE".to_owned(), self.source.clone()),
        ]
        .into_iter()
        .chain(kind)
        .chain(others)
    }
}

/// Names of attributes are lower-case letters and digits ("Naming Conventions").
fn is_attribute(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=MAX_ATTRIBUTE).contains(&name.len()) && name.bytes().all(is_allowed)
}
