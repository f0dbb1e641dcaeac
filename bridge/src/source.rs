//! Where messages come from and where results go: what a source of each kind can do.

mod http;
mod nats;
mod pubsub;
mod rabbitmq;
mod receiver;
mod secrets;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::trigger::WEBHOOK_PORT;

pub use crate::message::DEAD_LETTER_REASON;
use crate::message::Message;
use crate::outcome::CloudEvent;

pub(crate) use nats::open_subject;
pub(crate) use pubsub::open_topic;
pub(crate) use rabbitmq::open_exchange;
pub use secrets::{Secrets, tls_config};

/// How long a source may take for one answer of its broker, before that counts as [`BridgeReason::Unreachable`].
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A message and how to settle it.
pub struct Delivery {
    /// What arrived.
    pub message: Message,
    /// Settles it. If it is dropped, the broker delivers the message again, sooner or later.
    pub receipt: Box<dyn Receipt>,
}

/// One kind of source. It connects once: after an error the engine drops it, waits, and opens a new one.
pub trait Source: Send {
    /// The next message; waits for it. Cancel-safe: a message that was taken is not lost when the future is dropped. It
    /// takes no message from the broker before it is called, except one, if an earlier call was dropped.
    ///
    /// # Errors
    /// The source is of no more use.
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, SourceError>>;

    /// Waits until the source is of no more use, while no message is wanted. Cancel-safe. Never returns if the source
    /// cannot tell.
    fn lost(&mut self) -> BoxFuture<'_, SourceError> {
        Box::pin(std::future::pending())
    }

    /// Number of messages that wait in the broker, if it tells.
    fn lag(&mut self) -> BoxFuture<'_, Option<u64>>;

    /// What publishes to the same broker. It lives as long as the connection.
    fn publisher(&self) -> Arc<dyn Publisher>;

    /// Why no messages are taken for now; `None` when they are again. A broker keeps them; a webhook has to answer.
    fn hold(&mut self, reason: Option<BridgeReason>) {
        let _ = reason;
    }

    /// Whether a message can stay unsettled until its process has ended (`policy.acknowledge: Finished`).
    fn keeps_messages(&self) -> bool {
        true
    }

    /// Number of messages that were refused since the last call, before anything else was done with them.
    fn refused(&mut self) -> u64 {
        0
    }
}

/// Settles one message. `process` is the name of the RemoteProcess.
pub trait Receipt: Send {
    /// The message has become a process. Confirmed by the broker where it can.
    ///
    /// # Errors
    /// The broker does not confirm. It will deliver the message again.
    fn acknowledge(self: Box<Self>, process: &str) -> BoxFuture<'static, Result<(), SourceError>>;

    /// The message has become a process that has ended already, with this result: a duplicate that came late. For a
    /// sender who waits for the result; everybody else just learns that the message was taken.
    ///
    /// # Errors
    /// As [`Receipt::acknowledge`].
    fn answer(self: Box<Self>, process: &str, result: &CloudEvent) -> BoxFuture<'static, Result<(), SourceError>> {
        let _ = result;
        self.acknowledge(process)
    }

    /// The message is to be delivered again, not before `delay` if the broker can wait.
    ///
    /// # Errors
    /// The broker does not answer. It will deliver the message again nevertheless.
    fn put_back(self: Box<Self>, delay: Duration, reason: &str) -> BoxFuture<'static, Result<(), SourceError>>;

    /// The message is not to be delivered again, and there is no dead-letter address: the broker's own manner (NATS
    /// `+TERM`, AMQP reject without requeue, Pub/Sub nack).
    ///
    /// # Errors
    /// The broker does not answer. It will deliver the message again.
    fn reject(self: Box<Self>, reason: &str) -> BoxFuture<'static, Result<(), SourceError>>;

    /// The message is still being worked on. Called every three seconds while it is kept.
    ///
    /// # Errors
    /// The broker does not answer.
    fn extend(&mut self) -> BoxFuture<'_, Result<(), SourceError>>;
}

/// Publishes to the broker of a source. Each call returns when the broker has confirmed, or after [`ANSWER_TIMEOUT`].
pub trait Publisher: Send + Sync {
    /// Sends a result to `to`: the `reply_to` of the message, or [`Publisher::default_reply`]. `Ok` if there can be no
    /// receiver, for example because nobody waits any more or the address is not one.
    ///
    /// # Errors
    /// The broker does not confirm. The engine sends the same event, with the same id, again.
    fn reply<'a>(&'a self, to: &'a str, event: &'a CloudEvent) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Sends a message that came from this source to the dead-letter address, with the header [`DEAD_LETTER_REASON`].
    /// `Ok(false)`: the trigger has no such address.
    ///
    /// # Errors
    /// The broker does not confirm.
    fn dead_letter<'a>(&'a self, message: &'a Message, reason: &'a str) -> BoxFuture<'a, Result<bool, SourceError>>;

    /// Where results of messages without an address of their own go.
    fn default_reply(&self) -> Option<String>;

    /// Sends a message to the source itself: for a test by a person, or because it is a dead letter that is to run again.
    ///
    /// # Errors
    /// The broker does not confirm, or the source cannot be written to.
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Opens the dead letters of this trigger (`NAMESPACE/NAME`).
    ///
    /// # Errors
    /// [`BridgeReason::InvalidSource`]: the spec does not say where they are. Or the broker does not answer.
    fn dead_letters<'a>(&'a self, trigger: &'a str) -> BoxFuture<'a, Result<Box<dyn DeadLetters>, SourceError>>;
}

/// The dead letters of a trigger that were there when this was opened, the oldest first where the broker has an order.
/// Those of other triggers are left alone. Each call returns in a few times [`ANSWER_TIMEOUT`].
pub trait DeadLetters: Send {
    /// Takes the next one; `None` if there is no more. One that was taken and not removed stays at the broker.
    ///
    /// # Errors
    /// The broker does not answer.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Message>, SourceError>>;

    /// Removes the one that was taken last.
    ///
    /// # Errors
    /// The broker does not do it. The letter stays there, and is sent once more by the next replay.
    fn remove(&mut self) -> BoxFuture<'_, Result<(), SourceError>>;

    /// Number of dead letters that are there now, of other triggers as well, if the broker tells.
    fn left(&mut self) -> BoxFuture<'_, Option<u64>>;
}

/// The spec lacks what a replay needs.
fn no_dead_letters(sentence: &str) -> SourceError {
    SourceError::new(BridgeReason::InvalidSource, sentence)
}

/// Why a source is of no use for now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// Reason of the condition Connected: Unreachable, Unauthorized, Untrusted, NotFound, InvalidSource or
    /// InvalidSecret.
    pub reason: BridgeReason,
    /// A sentence for the condition, with the broker's own words.
    pub message: String,
}

impl SourceError {
    /// The source does not answer.
    pub fn unreachable(message: impl ToString) -> Self {
        Self::new(BridgeReason::Unreachable, message)
    }

    /// With any of the reasons.
    pub fn new(reason: BridgeReason, message: impl ToString) -> Self {
        Self {
            reason,
            message: message.to_string(),
        }
    }
}

/// What a source needs to know besides the trigger.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the Secrets are mounted.
    pub secrets: Secrets,
    /// Where the webhook listens.
    pub webhook: SocketAddr,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            secrets: Secrets::default(),
            webhook: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), WEBHOOK_PORT),
        }
    }
}

/// Connects to the source of a trigger.
///
/// # Errors
/// The broker cannot be used: see [`SourceError::reason`].
pub async fn open(trigger: &ProcessTrigger, settings: &Settings) -> Result<Box<dyn Source>, SourceError> {
    let source = &trigger.spec.source;
    if let Some(source) = &source.http {
        return http::open(trigger, source, settings).await;
    }
    if let Some(source) = &source.nats {
        return nats::open(trigger, source, &settings.secrets).await;
    }
    if let Some(source) = &source.rabbitmq {
        return rabbitmq::open(trigger, source, &settings.secrets).await;
    }
    if let Some(source) = &source.pubsub {
        return pubsub::open(trigger, source, &settings.secrets).await;
    }
    Err(SourceError::new(BridgeReason::NotFound, "spec.source names no source"))
}

/// The result of `work`, or [`BridgeReason::Unreachable`] with this sentence after [`ANSWER_TIMEOUT`].
///
/// # Errors
/// Those of `work`, or the time is over.
pub async fn in_time<T>(what: &str, work: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
    let late = || {
        let seconds = ANSWER_TIMEOUT.as_secs();
        SourceError::unreachable(format!("{what}: no answer within {seconds} s"))
    };
    tokio::time::timeout(ANSWER_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}
