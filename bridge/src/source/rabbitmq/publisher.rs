//! Publishes results, dead letters and tests, one after another, each confirmed by the server and routed to a queue.
//!
//! It has a connection of its own: senders choose addresses for results, and there are some that make RabbitMQ end the
//! connection. That must not disturb the messages.

use futures::future::BoxFuture;
use jiff::Timestamp;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use remoteprocess_api::bridge::BridgeReason;
use tokio::sync::Mutex;
use tracing::{debug, warn};

use super::super::receiver::settled;
use super::super::{DeadLetters, Publisher, SourceError, in_time, no_dead_letters};
use super::DEFAULT_EXCHANGE;
use super::connection::{Dialer, Link};
use super::letters::QueueLetters;
use super::wire::{ReplyTo, error, of_message, of_result, short};
use crate::message::Message;
use crate::outcome::CloudEvent;

/// What publishes over a connection.
pub(super) struct Outlet {
    dialer: Dialer,
    queue: ShortString,
    dead_letters: Option<ShortString>,
    /// A channel with confirmations, and its connection. A refusal closes it; the next message opens another one.
    open: Mutex<Option<(Link, Channel)>>,
}

impl Outlet {
    pub(super) fn new(dialer: Dialer, queue: ShortString) -> Result<Self, SourceError> {
        let exchange = dialer.source.dead_letter_exchange.as_deref();
        let exchange = exchange.map(|name| short(name, "the name of the dead-letter exchange"));
        Ok(Self {
            queue,
            dead_letters: exchange.transpose()?,
            open: Mutex::default(),
            dialer,
        })
    }

    /// Publishes, and waits until the server has confirmed that a queue has it.
    pub(super) async fn publish(
        &self,
        what: &str,
        exchange: ShortString,
        key: ShortString,
        payload: &[u8],
        properties: BasicProperties,
    ) -> Result<(), SourceError> {
        let mut slot = self.open.lock().await;
        // It comes back only if all is well.
        let (link, channel) = match slot.take().filter(|(_, channel)| channel.status().connected()) {
            Some(open) => open,
            None => self.open().await?,
        };
        let failed = |cause: lapin::Error| error(what, &cause);
        let confirmation = in_time(what, async {
            let options = BasicPublishOptions {
                mandatory: true,
                immediate: false,
            };
            let sent = channel.basic_publish(exchange, key, options, payload, properties).await;
            sent.map_err(failed)?.await.map_err(failed)
        });
        let confirmation = confirmation.await?;
        *slot = Some((link, channel));
        confirmed(what, confirmation)
    }

    /// Connects before there is something to publish.
    ///
    /// # Errors
    /// The server cannot be used.
    pub(super) async fn connect(&self) -> Result<(), SourceError> {
        *self.open.lock().await = Some(self.open().await?);
        Ok(())
    }

    /// Whether there is a connection that has broken, and nothing is being published.
    pub(super) fn is_lost(&self) -> bool {
        let slot = self.open.try_lock();
        slot.is_ok_and(|slot| slot.as_ref().is_some_and(|(_, channel)| !channel.status().connected()))
    }

    async fn open(&self) -> Result<(Link, Channel), SourceError> {
        const WHAT: &str = "connect to publish";
        let link = self.dialer.open().await?;
        let channel = in_time(WHAT, async {
            let channel = link.channel().await.map_err(|cause| error(WHAT, &cause))?;
            let selected = channel.confirm_select(ConfirmSelectOptions::default()).await;
            selected.map_err(|cause| error(WHAT, &cause))?;
            Ok(channel)
        });
        let channel = channel.await?;
        Ok((link, channel))
    }
}

/// RabbitMQ does not know the requester. An address of this kind that it cannot read ends the connection.
fn is_gone(error: &SourceError) -> bool {
    error.reason == BridgeReason::NotFound || error.message.ends_with("INTERNAL_ERROR")
}

/// What the confirmation of a message says.
///
/// # Errors
/// No queue has it.
pub(super) fn confirmed(what: &str, confirmation: Confirmation) -> Result<(), SourceError> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
            let message = format!("{what}: RabbitMQ has no queue for it: {}", returned.reply_text);
            Err(SourceError::new(BridgeReason::NotFound, message))
        }
        // The server is there: the queue is full and refuses more (`reject-publish`).
        Confirmation::Nack(None) | Confirmation::NotRequested => {
            let message = format!("{what}: RabbitMQ has not taken it");
            Err(SourceError::new(BridgeReason::NotFound, message))
        }
    }
}

/// What a replay needs.
const NO_QUEUE: &str = "the trigger does not know where its dead letters are: set spec.source.rabbitmq.deadLetterQueue to \
                        the queue that gets them";

impl Publisher for Outlet {
    fn reply<'a>(&'a self, to: &'a str, event: &'a CloudEvent) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let Some(to) = ReplyTo::read(to) else {
                return Ok(());
            };
            let Ok(key) = ShortString::try_new(to.reply_to.as_str()) else {
                return Ok(());
            };
            if key == self.queue {
                warn!(queue = %key, "a message wants its result in its own queue: it is not sent");
                return Ok(());
            }
            let what = format!("result to queue {:?}", to.reply_to);
            let properties = of_result(event, &to);
            let payload = event.to_json();
            let sent = self
                .publish(&what, DEFAULT_EXCHANGE.into(), key, &payload, properties)
                .await;
            match sent {
                Err(error) if to.is_direct() && is_gone(&error) => {
                    debug!(%error, "the requester is gone");
                    Ok(())
                }
                sent => settled(sent, event, Timestamp::now()),
            }
        })
    }

    fn dead_letter<'a>(&'a self, message: &'a Message, reason: &'a str) -> BoxFuture<'a, Result<bool, SourceError>> {
        Box::pin(async move {
            let Some(exchange) = &self.dead_letters else {
                return Ok(false);
            };
            let what = format!("dead letter to exchange {exchange}");
            let properties = of_message(message, Some(reason));
            self.publish(
                &what,
                exchange.clone(),
                self.queue.clone(),
                &message.payload,
                properties,
            )
            .await?;
            Ok(true)
        })
    }

    fn default_reply(&self) -> Option<String> {
        None
    }

    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let what = format!("message to queue {}", self.queue);
            let properties = of_message(message, None);
            self.publish(
                &what,
                DEFAULT_EXCHANGE.into(),
                self.queue.clone(),
                &message.payload,
                properties,
            )
            .await
        })
    }

    fn dead_letters<'a>(&'a self, trigger: &'a str) -> BoxFuture<'a, Result<Box<dyn DeadLetters>, SourceError>> {
        Box::pin(async move {
            let queue = self.dialer.source.dead_letter_queue.as_deref();
            let queue = queue.ok_or_else(|| no_dead_letters(NO_QUEUE))?;
            let queue = short(queue, "the name of the dead-letter queue")?;
            if queue == self.queue {
                return Err(no_dead_letters(
                    "spec.source.rabbitmq.deadLetterQueue is the queue of the messages itself",
                ));
            }
            let letters = QueueLetters::open(&self.dialer, queue, trigger).await?;
            Ok(Box::new(letters) as Box<dyn DeadLetters>)
        })
    }
}
