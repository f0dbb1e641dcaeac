//! Publishes results, dead letters and tests, each with the answer of the service.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use jiff::Timestamp;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::trigger::PubSubSource;
use serde_json::{Value, json};

use super::super::receiver::settled;
use super::super::{DEAD_LETTER_REASON, DeadLetters, Publisher, SourceError, no_dead_letters};
use super::letters::SubscriptionLetters;
use super::{ATTRIBUTE_CONTENT_TYPE, ATTRIBUTE_ID, Subscription};
use crate::message::Message;
use crate::outcome::{CONTENT_TYPE, CloudEvent};

/// Longest value of an attribute, in bytes, that the service takes.
const MAX_ATTRIBUTE: usize = 1024;
/// Longest name of an attribute, in bytes.
const MAX_ATTRIBUTE_NAME: usize = 256;

/// What publishes to topics of a project.
pub(super) struct Outlet {
    subscription: Arc<Subscription>,
    project: String,
    results: Option<String>,
    dead_letters: Option<String>,
    dead_letter_subscription: Option<String>,
}

/// What a replay needs.
const NO_SUBSCRIPTION: &str = "the trigger does not know where its dead letters are: set \
                               spec.source.pubsub.deadLetterSubscription to a subscription of the topic that gets them";

impl Outlet {
    pub(super) fn new(subscription: Arc<Subscription>, source: &PubSubSource) -> Self {
        Self {
            subscription,
            project: source.project.clone(),
            results: source.result_topic.clone(),
            dead_letters: source.dead_letter_topic.clone(),
            dead_letter_subscription: source.dead_letter_subscription.clone(),
        }
    }

    fn topic(&self, name: &str) -> String {
        format!("projects/{}/topics/{name}", self.project)
    }

    async fn publish(
        &self,
        topic: &str,
        payload: &[u8],
        attributes: &BTreeMap<String, String>,
    ) -> Result<(), SourceError> {
        let body = json!({"messages": [{"data": STANDARD.encode(payload), "attributes": attributes}]});
        self.subscription
            .service
            .post(&format!("{topic}:publish"), &body)
            .await?;
        Ok(())
    }
}

/// Whether a topic can have this name. A sender chooses it, and it becomes a part of a path.
fn is_topic(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+%".contains(&byte);
    (3..=255).contains(&name.len()) && name.as_bytes()[0].is_ascii_alphabetic() && name.bytes().all(is_allowed)
}

/// The attributes of a message that is passed on: as a dead letter, with the reason. Names that Google reserves, and what is
/// too long for an attribute, are left out.
fn attributes(message: &Message, reason: Option<&str>) -> BTreeMap<String, String> {
    let fits = |name: &str, value: &str| name.len() <= MAX_ATTRIBUTE_NAME && value.len() <= MAX_ATTRIBUTE;
    let kept = message.headers.iter();
    let kept = kept.filter(|(name, value)| !name.starts_with("goog") && fits(name, value));
    let mut attributes: BTreeMap<String, String> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    let of_message = [
        (ATTRIBUTE_ID, message.id.as_deref()),
        (ATTRIBUTE_CONTENT_TYPE, message.content_type.as_deref()),
        (DEAD_LETTER_REASON, reason),
    ];
    for (name, value) in of_message {
        if let Some(value) = value {
            let value = &value[..value.floor_char_boundary(MAX_ATTRIBUTE)];
            attributes.insert(name.to_owned(), value.to_owned());
        }
    }
    attributes
}

impl Publisher for Outlet {
    fn reply<'a>(&'a self, to: &'a str, event: &'a CloudEvent) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            if !is_topic(to) {
                return Ok(());
            }
            let attributes = [
                (ATTRIBUTE_CONTENT_TYPE, CONTENT_TYPE),
                (ATTRIBUTE_ID, event.id.as_str()),
            ];
            let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let sent = self
                .publish(&self.topic(to), &event.to_json(), &attributes.into())
                .await;
            match self.results.as_deref() == Some(to) {
                true => sent,
                false => settled(sent, event, Timestamp::now()),
            }
        })
    }

    fn dead_letter<'a>(&'a self, message: &'a Message, reason: &'a str) -> BoxFuture<'a, Result<bool, SourceError>> {
        Box::pin(async move {
            let Some(topic) = &self.dead_letters else {
                return Ok(false);
            };
            let attributes = attributes(message, Some(reason));
            self.publish(&self.topic(topic), &message.payload, &attributes).await?;
            Ok(true)
        })
    }

    fn default_reply(&self) -> Option<String> {
        self.results.clone()
    }

    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let found = self.subscription.service.get(&self.subscription.path).await?;
            let topic = found.get("topic").and_then(Value::as_str).unwrap_or_default();
            if !topic.starts_with("projects/") {
                let message = format!("{} has no topic any more", self.subscription.path);
                return Err(SourceError::new(BridgeReason::NotFound, message));
            }
            self.publish(topic, &message.payload, &attributes(message, None)).await
        })
    }

    fn dead_letters<'a>(&'a self, trigger: &'a str) -> BoxFuture<'a, Result<Box<dyn DeadLetters>, SourceError>> {
        Box::pin(async move {
            let name = self.dead_letter_subscription.as_deref();
            let name = name.ok_or_else(|| no_dead_letters(NO_SUBSCRIPTION))?;
            let subscription = Subscription {
                path: format!("projects/{}/subscriptions/{name}", self.project),
                service: self.subscription.service.clone(),
                is_kept: false,
            };
            if subscription.path == self.subscription.path {
                let sentence = "spec.source.pubsub.deadLetterSubscription is the subscription of the messages itself";
                return Err(no_dead_letters(sentence));
            }
            let letters = SubscriptionLetters::open(subscription, trigger).await?;
            Ok(Box::new(letters) as Box<dyn DeadLetters>)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_cannot_choose_another_path() {
        for topic in ["answers", "a-._~+%0", &"x".repeat(255)] {
            assert!(is_topic(topic), "{topic}");
        }
        for wrong in [
            "",
            "ab",
            "1abc",
            "a/b",
            "../x",
            "a:publish",
            "a?b",
            "a#b",
            "a b",
            "\u{e4}bc",
            &"x".repeat(256),
        ] {
            assert!(!is_topic(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_dead_letter_has_its_attributes_and_the_reason() {
        let mut message = Message {
            id: Some("17".into()),
            content_type: Some("text/plain".into()),
            ..Message::default()
        };
        message.insert("x", "y");
        message.insert("googclient_x", "y");
        let reason = "\u{e4}".repeat(1000);
        let found = attributes(&message, Some(&reason));
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[DEAD_LETTER_REASON].len(), MAX_ATTRIBUTE);
        assert_eq!((found["message-id"].as_str(), found["x"].as_str()), ("17", "y"));
        assert!(!attributes(&message, None).contains_key(DEAD_LETTER_REASON));
    }
}
