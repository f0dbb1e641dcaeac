//! A subscription of Google Pub/Sub, by its REST API (`v1`): one message for each pull, acknowledged with an answer.
//!
//! The client library of Google is not used: it acknowledges without an answer, cannot put a message back for later, and
//! takes messages before they are wanted.

mod api;
mod credential;
mod letters;
mod publisher;
mod topic;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::trigger::{Acknowledge, PubSubSource};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{ANSWER_TIMEOUT, Delivery, Publisher, Receipt, Secrets, Source, SourceError};
use crate::message::Message;
pub(crate) use topic::open_topic;

use api::Service;
use publisher::Outlet;

/// Attribute with the sender's id. Without it, the id that the service gives counts: another one for each publication.
const ATTRIBUTE_ID: &str = "message-id";
/// Attribute with the media type of the payload, as in the CloudEvents binding.
const ATTRIBUTE_CONTENT_TYPE: &str = "content-type";
/// Attribute with the topic for the result.
const ATTRIBUTE_REPLY_TO: &str = "reply-to";
/// How long a message is leased while its process runs. It is extended every ten seconds.
const LEASE: Duration = Duration::from_secs(60);
/// The shortest lease that a subscription can have, less a margin. A message that has waited here for longer is given up.
const SHORTEST_LEASE: Duration = Duration::from_secs(8);
/// The longest time for which a message can be put back.
const LONGEST_DELAY: u64 = 600;
/// After how long a rejected message is delivered again, if the subscription has no dead-letter policy.
const REJECTED_DELAY: Duration = Duration::from_secs(10);
/// The service answers an empty pull after about a minute and a half.
const PULL_TIMEOUT: Duration = Duration::from_secs(120);
/// Least time from one empty pull to the next.
const PULL_INTERVAL: Duration = Duration::from_millis(250);

/// Looks at the subscription, and takes a message if there is one.
///
/// # Errors
/// The service cannot be used, or has no such subscription.
pub(super) async fn open(
    trigger: &ProcessTrigger,
    source: &PubSubSource,
    secrets: &Secrets,
) -> Result<Box<dyn Source>, SourceError> {
    let service = Service::new(source, secrets).await?;
    let subscription = Arc::new(Subscription {
        path: format!("projects/{}/subscriptions/{}", source.project, source.subscription),
        service: Arc::new(service),
        is_kept: trigger.spec.acknowledge() == Acknowledge::Finished,
    });
    let first = subscription.pull(true).await?;
    Ok(Box::new(PubSub {
        publisher: Arc::new(Outlet::new(subscription.clone(), source)),
        first: Box::new(first),
        subscription,
        pulling: None,
    }))
}

struct PubSub {
    subscription: Arc<Subscription>,
    publisher: Arc<Outlet>,
    /// What the first look has found.
    first: Box<Option<Pulled>>,
    /// What `next` began; it continues while nobody waits for it.
    pulling: Option<Pulling>,
}

/// A pull that continues without a caller.
struct Pulling(JoinHandle<Result<Pulled, SourceError>>);

impl Drop for Pulling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A message that is leased to us.
struct Pulled {
    message: Message,
    ack_id: String,
    /// When it has to be settled or extended.
    until: Instant,
}

impl PubSub {
    async fn take(&mut self) -> Result<Delivery, SourceError> {
        loop {
            let pulled = match self.first.take() {
                Some(pulled) => pulled,
                None => {
                    let subscription = self.subscription.clone();
                    let pulling = self
                        .pulling
                        .get_or_insert_with(|| Pulling(tokio::spawn(subscription.wait())));
                    let pulled = (&mut pulling.0).await;
                    self.pulling = None;
                    pulled.unwrap_or_else(|error| Err(SourceError::unreachable(error)))?
                }
            };
            let receipt = PubSubReceipt {
                subscription: self.subscription.clone(),
                ack_id: pulled.ack_id,
            };
            if pulled.until > Instant::now() {
                return Ok(Delivery {
                    message: pulled.message,
                    receipt: Box::new(receipt),
                });
            }
            // Nobody wanted it in time: the service delivers it again, and the old receipt would be worth nothing.
            receipt.delay(Duration::ZERO).await?;
        }
    }
}

impl Source for PubSub {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, SourceError>> {
        Box::pin(self.take())
    }

    /// The service does not tell: only Cloud Monitoring knows.
    fn lag(&mut self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(async { None })
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }
}

/// A subscription.
struct Subscription {
    /// `projects/PROJECT/subscriptions/NAME`.
    path: String,
    service: Arc<Service>,
    /// Whether messages are kept until their processes have ended.
    is_kept: bool,
}

impl Subscription {
    async fn wait(self: Arc<Self>) -> Result<Pulled, SourceError> {
        loop {
            let began = Instant::now();
            if let Some(pulled) = self.pull(false).await? {
                return Ok(pulled);
            }
            sleep(PULL_INTERVAL.saturating_sub(began.elapsed())).await;
        }
    }

    /// Pulls a message; waits for one, unless `is_look`.
    async fn pull(&self, is_look: bool) -> Result<Option<Pulled>, SourceError> {
        let mut body = json!({"maxMessages": 1});
        if is_look && let Some(body) = body.as_object_mut() {
            body.insert("returnImmediately".to_owned(), json!(true));
        }
        let limit = if is_look { ANSWER_TIMEOUT } else { PULL_TIMEOUT };
        let Some(answer) = self
            .service
            .post_within(&format!("{}:pull", self.path), &body, limit)
            .await?
        else {
            return Ok(None);
        };
        let Some(received) = received(answer)? else {
            return Ok(None);
        };
        if !self.is_kept {
            let until = Instant::now() + SHORTEST_LEASE;
            return Ok(Some(received.pulled(until)));
        }
        self.lease(&received.ack_id, LEASE).await?;
        let until = Instant::now() + LEASE.saturating_sub(Duration::from_secs(10));
        Ok(Some(received.pulled(until)))
    }

    async fn lease(&self, ack_id: &str, time: Duration) -> Result<(), SourceError> {
        let seconds = time.as_millis().div_ceil(1000).min(LONGEST_DELAY.into());
        let body = json!({"ackIds": [ack_id], "ackDeadlineSeconds": u64::try_from(seconds).unwrap_or(LONGEST_DELAY)});
        self.service
            .post(&format!("{}:modifyAckDeadline", self.path), &body)
            .await?;
        Ok(())
    }
}

/// What a pull returns.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Answer {
    received_messages: Vec<Received>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Received {
    ack_id: String,
    #[serde(default)]
    message: Published,
}

/// A message of the service (`PubsubMessage`).
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Published {
    data: String,
    attributes: std::collections::BTreeMap<String, String>,
    message_id: String,
}

fn received(answer: Value) -> Result<Option<Received>, SourceError> {
    let strange = |error: serde_json::Error| SourceError::unreachable(format!("a strange answer to a pull: {error}"));
    if !answer.is_object() {
        // As a struct, an empty list would be an answer without messages.
        return Err(SourceError::unreachable("a strange answer to a pull: no object"));
    }
    let answer: Answer = serde_json::from_value(answer).map_err(strange)?;
    if answer.received_messages.len() > 1 {
        warn!("the service has sent more messages than it was asked for; the others are delivered again");
    }
    Ok(answer.received_messages.into_iter().next())
}

impl Received {
    fn pulled(self, until: Instant) -> Pulled {
        Pulled {
            message: self.message.into(),
            ack_id: self.ack_id,
            until,
        }
    }
}

impl From<Published> for Message {
    fn from(published: Published) -> Self {
        let mut message = Self::default();
        for (name, value) in &published.attributes {
            message.insert(name, value);
        }
        let attribute = |name: &str| {
            let value = message.header(name).filter(|value| !value.is_empty());
            value.map(str::to_owned)
        };
        let id = attribute(ATTRIBUTE_ID).or_else(|| Some(published.message_id).filter(|id| !id.is_empty()));
        let (content_type, reply_to) = (attribute(ATTRIBUTE_CONTENT_TYPE), attribute(ATTRIBUTE_REPLY_TO));
        message.id = id;
        message.content_type = content_type;
        message.reply_to = reply_to;
        // The service encodes it; what is no base64 can only be empty.
        message.payload = STANDARD.decode(published.data).unwrap_or_default().into();
        message
    }
}

struct PubSubReceipt {
    subscription: Arc<Subscription>,
    ack_id: String,
}

impl PubSubReceipt {
    async fn delay(&self, time: Duration) -> Result<(), SourceError> {
        self.subscription.lease(&self.ack_id, time).await
    }
}

impl Receipt for PubSubReceipt {
    fn acknowledge(self: Box<Self>, _process: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let Subscription { service, path, .. } = &*self.subscription;
            let body = json!({"ackIds": [self.ack_id]});
            service.post(&format!("{path}:acknowledge"), &body).await?;
            Ok(())
        })
    }

    fn put_back(self: Box<Self>, delay: Duration, _reason: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move { self.delay(delay).await })
    }

    /// The service counts the delivery, and sends the message to the dead-letter topic of the subscription if it has a
    /// policy. Not at once: without a policy, the message would come again and again.
    fn reject(self: Box<Self>, _reason: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move { self.delay(REJECTED_DELAY).await })
    }

    fn extend(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(self.delay(LEASE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulled_message_is_read() {
        let answer = json!({"receivedMessages": [{"ackId": "a", "message": {
            "data": STANDARD.encode(b"\x00body"), "messageId": "17",
            "attributes": {"content-type": "text/plain", "reply-to": "answers", "X": "y"},
        }}]});
        let received = received(answer).unwrap().unwrap();
        assert_eq!(received.ack_id, "a");
        let message = Message::from(received.message);
        assert_eq!(
            (message.id.as_deref(), &message.payload[..]),
            (Some("17"), &b"\x00body"[..])
        );
        assert_eq!(message.content_type.as_deref(), Some("text/plain"));
        assert_eq!(
            (message.reply_to.as_deref(), message.header("x")),
            (Some("answers"), Some("y"))
        );
    }

    #[test]
    fn the_id_of_the_sender_comes_before_that_of_the_service() {
        let published: Published =
            serde_json::from_value(json!({"messageId": "17", "attributes": {"message-id": "order-7"}})).unwrap();
        assert_eq!(Message::from(published).id.as_deref(), Some("order-7"));
    }

    #[test]
    fn strange_answers_are_no_message() {
        for empty in [json!({}), json!({"receivedMessages": []})] {
            assert!(received(empty).unwrap().is_none());
        }
        for strange in [
            json!([]),
            json!({"receivedMessages": [{}]}),
            json!({"receivedMessages": 7}),
        ] {
            assert!(received(strange.clone()).is_err(), "{strange}");
        }
        assert_eq!(Message::from(Published::default()), Message::default());
    }
}
