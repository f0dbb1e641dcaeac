//! Dead letters in a queue of RabbitMQ, on their way back.
//!
//! Those of other triggers are moved to the end of the queue. A queue with priorities has several ends: a moved letter goes to
//! that of the lowest priority, behind all others, and has a mark, so that it is known if it comes again before them.

use std::hash::{BuildHasher as _, RandomState};

use futures::future::BoxFuture;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Acker, Channel};
use tokio::time::Instant;

use super::connection::{Dialer, Link};
use super::publisher::confirmed;
use super::wire::{self, error};
use super::{DEFAULT_EXCHANGE, depth};
use crate::message::{DEAD_LETTER_MOVED, Message};
use crate::source::{ANSWER_TIMEOUT, DeadLetters, SourceError, in_time};

/// The messages of a queue.
pub(super) struct QueueLetters {
    channel: Channel,
    queue: ShortString,
    /// Namespace and name of the trigger.
    trigger: String,
    /// How many of those that were there in the beginning were not looked at.
    unseen: u64,
    /// The mark of letters that were moved.
    mark: String,
    /// How many were moved, and how many of these came again, one after another.
    moved: u64,
    again: u64,
    /// The one that was taken last.
    taken: Option<Acker>,
    /// Without it, the channel closes, and the queue has back what was taken and not removed.
    _link: Link,
}

impl QueueLetters {
    /// Connects, and looks at the queue.
    pub(super) async fn open(dialer: &Dialer, queue: ShortString, trigger: &str) -> Result<Self, SourceError> {
        let link = dialer.open().await?;
        let what = what(&queue);
        let (channel, unseen) = in_time(&what, async {
            let channel = link.channel().await.map_err(|cause| error(&what, &cause))?;
            let selected = channel.confirm_select(ConfirmSelectOptions::default()).await;
            selected.map_err(|cause| error(&what, &cause))?;
            let unseen = depth(&channel, &queue).await.map_err(|cause| error(&what, &cause))?;
            Ok((channel, unseen))
        })
        .await?;
        Ok(Self {
            channel,
            queue,
            trigger: trigger.to_owned(),
            unseen,
            // Random: each of these states has its own keys.
            mark: format!("{:016x}", RandomState::new().hash_one(unseen)),
            moved: 0,
            again: 0,
            taken: None,
            _link: link,
        })
    }

    /// The next own one, within a few times [`ANSWER_TIMEOUT`].
    async fn take(&mut self) -> Result<Option<Message>, SourceError> {
        self.taken = None;
        let until = Instant::now() + ANSWER_TIMEOUT;
        while self.unseen > 0 {
            if Instant::now() > until {
                let sentence = format!("{}: no dead letter of this trigger in time", what(&self.queue));
                return Err(SourceError::unreachable(sentence));
            }
            let Some(delivery) = self.get().await? else {
                return Ok(None);
            };
            let (properties, data) = (wire::of_moved(&delivery.properties, &self.mark), delivery.data.clone());
            let (message, acker) = wire::message(delivery);
            if message.header(DEAD_LETTER_MOVED) == Some(&self.mark) {
                self.again += 1;
            } else {
                (self.unseen, self.again) = (self.unseen - 1, 0);
                if message.is_of(&self.trigger) {
                    self.taken = Some(acker);
                    return Ok(Some(message));
                }
                self.moved += 1;
            }
            // To the end of the queue. A requeue would count as a failed delivery, after some of which the queue drops it.
            self.publish(properties, &data).await?;
            self.acknowledge(acker).await?;
            if self.again > self.moved {
                // There is nothing else in the queue: what is missing went elsewhere.
                return Ok(None);
            }
        }
        Ok(None)
    }

    async fn get(&self) -> Result<Option<Delivery>, SourceError> {
        let what = what(&self.queue);
        let got = in_time(&what, async {
            let got = self.channel.basic_get(self.queue.clone(), BasicGetOptions::default());
            got.await.map_err(|cause| error(&what, &cause))
        });
        Ok(got.await?.map(|got| got.delivery))
    }

    async fn publish(&self, properties: lapin::BasicProperties, data: &[u8]) -> Result<(), SourceError> {
        let what = what(&self.queue);
        let failed = |cause: lapin::Error| error(&what, &cause);
        let confirmation = in_time(&what, async {
            let options = BasicPublishOptions {
                mandatory: true,
                immediate: false,
            };
            let (exchange, key) = (DEFAULT_EXCHANGE.into(), self.queue.clone());
            let sent = self.channel.basic_publish(exchange, key, options, data, properties);
            sent.await.map_err(failed)?.await.map_err(failed)
        });
        confirmed(&what, confirmation.await?)
    }

    async fn acknowledge(&self, acker: Acker) -> Result<(), SourceError> {
        let what = what(&self.queue);
        let sent = in_time(&what, async {
            let sent = acker.ack(BasicAckOptions::default()).await;
            sent.map_err(|cause| error(&what, &cause))
        });
        match sent.await? {
            true => Ok(()),
            false => Err(SourceError::unreachable(super::LOST)),
        }
    }
}

fn what(queue: &ShortString) -> String {
    format!("dead letters in queue {queue}")
}

impl DeadLetters for QueueLetters {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Message>, SourceError>> {
        Box::pin(self.take())
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async {
            match self.taken.take() {
                Some(acker) => self.acknowledge(acker).await,
                None => Ok(()),
            }
        })
    }

    /// Its answer comes after all acknowledgements, which have none, were carried out.
    fn left(&mut self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(async {
            let looked = in_time("dead letters", async {
                let depth = depth(&self.channel, &self.queue).await;
                depth.map_err(|cause| error("dead letters", &cause))
            });
            looked.await.ok()
        })
    }
}
