//! Messages, addresses and errors in AMQP's terms. Pure.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Acker, BasicProperties, ErrorKind};
use remoteprocess_api::bridge::BridgeReason;
use serde::{Deserialize, Serialize};

use super::super::{DEAD_LETTER_REASON, SourceError};
use crate::message::{DEAD_LETTER_MOVED, MAX_REPLY_TO, Message};
use crate::outcome::{CONTENT_TYPE, CloudEvent};

/// Longest name of a queue, key or header, in bytes.
const MAX_SHORT: usize = 255;
/// A message that survives a restart of the server.
const PERSISTENT: u8 = 2;
/// Longest reason in the header of a dead letter, in bytes.
const MAX_REASON: usize = 1024;

/// Where the result of a message goes: [`Message::reply_to`], in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReplyTo {
    /// Name of a queue.
    pub(super) reply_to: String,
    /// What the requester calls its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) correlation_id: Option<String>,
}

impl ReplyTo {
    /// Reads it; `None` if it is none, or cannot be an address.
    pub(super) fn read(text: &str) -> Option<Self> {
        let found: Self = serde_json::from_str(text).ok()?;
        let fits = |text: &str| text.len() <= MAX_SHORT;
        let is_address = !found.reply_to.is_empty() && fits(&found.reply_to);
        (is_address && found.correlation_id.as_deref().is_none_or(fits)).then_some(found)
    }

    /// Whether a requester waits at this address only as long as it is connected ("Direct Reply-to").
    pub(super) fn is_direct(&self) -> bool {
        self.reply_to.starts_with("amq.rabbitmq.reply-to")
    }

    fn of(properties: &BasicProperties) -> Option<String> {
        let reply_to = properties
            .reply_to()
            .as_ref()
            .filter(|name| !name.as_str().is_empty())?;
        let address = Self {
            reply_to: reply_to.to_string(),
            correlation_id: properties.correlation_id().as_ref().map(ToString::to_string),
        };
        let text = serde_json::to_string(&address).ok()?;
        (text.len() <= MAX_REPLY_TO).then_some(text)
    }
}

/// What arrived, and what settles it.
pub(super) fn message(delivery: lapin::message::Delivery) -> (Message, Acker) {
    let properties = &delivery.properties;
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string).filter(|text| !text.is_empty());
    let mut message = Message {
        id: text(properties.message_id()),
        content_type: text(properties.content_type()),
        reply_to: ReplyTo::of(properties),
        ..Message::default()
    };
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if let Some(value) = header(value) {
            message.insert(name.as_str(), &value);
        }
    }
    message.payload = delivery.data.into();
    (message, delivery.acker)
}

/// A value as text; tables and arrays, as in `x-death`, have none.
fn header(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::Boolean(value) => Some(value.to_string()),
        AMQPValue::ShortShortInt(value) => Some(value.to_string()),
        AMQPValue::ShortShortUInt(value) => Some(value.to_string()),
        AMQPValue::ShortInt(value) => Some(value.to_string()),
        AMQPValue::ShortUInt(value) => Some(value.to_string()),
        AMQPValue::LongInt(value) => Some(value.to_string()),
        AMQPValue::LongUInt(value) => Some(value.to_string()),
        AMQPValue::LongLongInt(value) => Some(value.to_string()),
        AMQPValue::Timestamp(value) => Some(value.to_string()),
        AMQPValue::ShortString(value) => Some(value.to_string()),
        AMQPValue::LongString(value) => std::str::from_utf8(value.as_bytes()).ok().map(str::to_owned),
        _ => None,
    }
}

/// The properties of a result.
pub(super) fn of_result(event: &CloudEvent, to: &ReplyTo) -> BasicProperties {
    let correlation = to.correlation_id.as_deref().and_then(fitting);
    let properties = BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(PERSISTENT);
    let properties = match fitting(&event.id) {
        Some(id) => properties.with_message_id(id),
        None => properties,
    };
    match correlation {
        Some(id) => properties.with_correlation_id(id),
        None => properties,
    }
}

/// The properties of a message that is passed on: as a dead letter, with the reason.
pub(super) fn of_message(message: &Message, reason: Option<&str>) -> BasicProperties {
    let mut headers = FieldTable::default();
    let mut insert = |name: &str, value: &str| {
        if let Some(name) = fitting(name) {
            headers.insert(name, AMQPValue::LongString(LongString::from(value)));
        }
    };
    message.headers.iter().for_each(|(name, value)| insert(name, value));
    if let Some(reason) = reason {
        insert(DEAD_LETTER_REASON, &reason[..reason.floor_char_boundary(MAX_REASON)]);
    }
    let mut properties = BasicProperties::default()
        .with_headers(headers)
        .with_delivery_mode(PERSISTENT);
    if let Some(id) = message.id.as_deref().and_then(fitting) {
        properties = properties.with_message_id(id);
    }
    if let Some(kind) = message.content_type.as_deref().and_then(fitting) {
        properties = properties.with_content_type(kind);
    }
    let Some(reply) = message.reply_to.as_deref().and_then(ReplyTo::read) else {
        return properties;
    };
    if let Some(id) = reply.correlation_id.as_deref().and_then(fitting) {
        properties = properties.with_correlation_id(id);
    }
    match fitting(&reply.reply_to) {
        Some(to) => properties.with_reply_to(to),
        None => properties,
    }
}

/// The properties of a letter of another trigger that is moved to the end of its queue, with a mark. Without the user who sent
/// it, whom the broker compares with the user of the bridge, and without other addresses, which would get it once more. And
/// without its priority, with which it would not be the last one; a replay sends messages without one anyway.
pub(super) fn of_moved(properties: &BasicProperties, mark: &str) -> BasicProperties {
    type Set<T> = fn(BasicProperties, T) -> BasicProperties;
    fn copy<T: Clone>(to: BasicProperties, value: &Option<T>, set: Set<T>) -> BasicProperties {
        match value {
            Some(value) => set(to, value.clone()),
            None => to,
        }
    }
    let addresses = |name: &ShortString| ["CC", "BCC"].contains(&name.as_str());
    let kept = properties.headers().iter().flat_map(|headers| headers.inner());
    let kept = kept.filter(|(name, _)| !addresses(name));
    let mut headers: BTreeMap<_, _> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    headers.insert(DEAD_LETTER_MOVED.into(), AMQPValue::LongString(LongString::from(mark)));
    let headers = Some(FieldTable::from(headers));
    let to = copy(BasicProperties::default(), &headers, BasicProperties::with_headers);
    let to = copy(to, properties.content_type(), BasicProperties::with_content_type);
    let to = copy(
        to,
        properties.content_encoding(),
        BasicProperties::with_content_encoding,
    );
    let to = copy(to, properties.delivery_mode(), BasicProperties::with_delivery_mode);
    let to = copy(to, properties.correlation_id(), BasicProperties::with_correlation_id);
    let to = copy(to, properties.reply_to(), BasicProperties::with_reply_to);
    let to = copy(to, properties.expiration(), BasicProperties::with_expiration);
    let to = copy(to, properties.message_id(), BasicProperties::with_message_id);
    let to = copy(to, properties.timestamp(), BasicProperties::with_timestamp);
    let to = copy(to, properties.kind(), BasicProperties::with_type);
    copy(to, properties.app_id(), BasicProperties::with_app_id)
}

/// A short string of AMQP; `None` if the text is too long.
fn fitting(text: &str) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}

/// A name of the spec as a short string of AMQP.
///
/// # Errors
/// It is too long.
pub(super) fn short(text: &str, what: &str) -> Result<ShortString, SourceError> {
    let long = || {
        SourceError::new(
            BridgeReason::NotFound,
            format!("{what} has more than {MAX_SHORT} bytes"),
        )
    };
    fitting(text).ok_or_else(long)
}

/// What a failure means, with the words of the server.
pub(super) fn error(what: &str, error: &lapin::Error) -> SourceError {
    let ErrorKind::ProtocolError(refusal) = error.kind() else {
        let reason = match error.kind() {
            ErrorKind::AuthProviderError(_) => BridgeReason::Unauthorized,
            _ => BridgeReason::Unreachable,
        };
        return SourceError::new(reason, format!("{what}: {error}"));
    };
    let text = refusal.get_message().as_str();
    SourceError::new(refused(refusal.get_id(), text), format!("{what}: {text}"))
}

/// Reply codes of AMQP 0-9-1, section 1.1. RabbitMQ answers 530 for a virtual host that does not exist, or that the user
/// may not enter.
fn refused(code: u16, text: &str) -> BridgeReason {
    match code {
        403 => BridgeReason::Unauthorized,
        402 | 404 => BridgeReason::NotFound,
        530 if text.contains("not found") => BridgeReason::NotFound,
        530 => BridgeReason::Unauthorized,
        _ => BridgeReason::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use lapin::message::Delivery;

    use super::*;

    fn delivery(properties: BasicProperties) -> Delivery {
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), false, b"body".to_vec());
        delivery.properties = properties;
        delivery
    }

    #[test]
    fn a_message_that_is_passed_on_is_the_same_message() {
        let mut headers = FieldTable::default();
        headers.insert("cloudEvents:id".into(), AMQPValue::LongString("e1".into()));
        headers.insert("Number".into(), AMQPValue::LongInt(-7));
        headers.insert("x-death".into(), AMQPValue::FieldArray(Vec::new().into()));
        headers.insert("bytes".into(), AMQPValue::LongString(vec![0xff].into()));
        headers.insert("line".into(), AMQPValue::LongString("a\nb".into()));
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_message_id("m1".into())
            .with_content_type("text/plain".into())
            .with_reply_to("answers".into())
            .with_correlation_id("c\"1".into());
        let (message, _) = self::message(delivery(properties));
        assert_eq!(
            (message.id.as_deref(), message.content_type.as_deref()),
            (Some("m1"), Some("text/plain"))
        );
        assert_eq!(
            (message.header("cloudevents:id"), message.header("number")),
            (Some("e1"), Some("-7"))
        );
        assert_eq!(message.headers.len(), 2, "{:?}", message.headers);
        let mut again = self::message(delivery(of_message(&message, Some(&"\u{e4}".repeat(2000))))).0;
        let reason = again.headers.remove(DEAD_LETTER_REASON);
        assert!(reason.is_some_and(|reason| (MAX_REASON - 1..=MAX_REASON).contains(&reason.len())));
        assert_eq!(again, message);
    }

    #[test]
    fn a_letter_that_is_moved_is_the_same_without_its_user_its_priority_and_other_addresses() {
        let headers = |names: &[&str]| {
            let mut headers = FieldTable::default();
            for name in names {
                headers.insert((*name).into(), AMQPValue::LongString("x".into()));
            }
            headers
        };
        let marked = |names: &[&str]| {
            let mut headers = headers(names);
            headers.insert(DEAD_LETTER_MOVED.into(), AMQPValue::LongString("this".into()));
            headers
        };
        let kept = BasicProperties::default()
            .with_headers(marked(&["cc", "x-death"]))
            .with_content_type("text/plain".into())
            .with_content_encoding("gzip".into())
            .with_delivery_mode(PERSISTENT)
            .with_correlation_id("c".into())
            .with_reply_to("answers".into())
            .with_expiration("60000".into())
            .with_message_id("m".into())
            .with_timestamp(7)
            .with_type("t".into())
            .with_app_id("a".into());
        let sent = kept.clone().with_user_id("sender".into());
        let mut moved_before = headers(&["CC", "BCC", "cc", "x-death"]);
        moved_before.insert(DEAD_LETTER_MOVED.into(), AMQPValue::LongString("former".into()));
        let sent = sent.with_priority(3).with_headers(moved_before);
        assert_eq!(of_moved(&sent, "this"), kept);
        let bare = BasicProperties::default();
        assert_eq!(of_moved(&bare, "this"), bare.with_headers(marked(&[])));
    }

    #[test]
    fn an_address_that_is_none_is_none() {
        for wrong in ["", "answers", "{}", r#"{"replyTo":""}"#, r#"{"replyTo":7}"#] {
            assert_eq!(ReplyTo::read(wrong), None, "{wrong}");
        }
        let long = format!(r#"{{"replyTo":"{}"}}"#, "x".repeat(256));
        assert_eq!(ReplyTo::read(&long), None);
        let reply = ReplyTo::read(r#"{"replyTo":"amq.rabbitmq.reply-to.g1","correlationId":"7"}"#).unwrap();
        assert!(reply.is_direct() && reply.correlation_id.as_deref() == Some("7"));
        let (message, _) = self::message(delivery(BasicProperties::default().with_reply_to("".into())));
        assert_eq!(message.reply_to, None);
    }

    #[test]
    fn refusals_are_told_apart() {
        for (code, text, reason) in [
            (403, "ACCESS_REFUSED - Login was refused", BridgeReason::Unauthorized),
            (404, "NOT_FOUND - no queue 'q' in vhost '/'", BridgeReason::NotFound),
            (530, "NOT_ALLOWED - vhost x not found", BridgeReason::NotFound),
            (
                530,
                "NOT_ALLOWED - access to vhost 'x' refused",
                BridgeReason::Unauthorized,
            ),
            (
                320,
                "CONNECTION_FORCED - broker forced connection closure",
                BridgeReason::Unreachable,
            ),
        ] {
            assert_eq!(refused(code, text), reason, "{text}");
        }
    }
}
