//! A queue of RabbitMQ (AMQP 0-9-1), one message at a time and by manual acknowledgement.
//!
//! A message is fetched when [`Source::next`] asks for one: by `basic.get`, and if the queue is empty by a consumer that
//! ends with its first message. So nothing is prefetched, and the rest waits in the broker.
//!
//! A message that is put back stays here until its time has come: a requeue counts against the delivery limit of a quorum
//! queue, after which RabbitMQ drops the message. Others are taken meanwhile, unless many wait here.

mod aside;
mod connection;
mod exchange;
mod letters;
mod publisher;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use kube::ResourceExt as _;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, BasicRejectOptions,
    QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel};
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::trigger::RabbitMqSource;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Delivery, Publisher, Receipt, Secrets, Source, SourceError, in_time};
use crate::message::Message;
pub(crate) use exchange::open_exchange;

use aside::Aside;
use connection::{Dialer, Link};
use publisher::Outlet;
use wire::{error, short};

/// Most messages that are put back and wait to be seen: as many as can be taken.
const MAX_PUT_BACK: usize = 1024;
/// How often a connection is looked at while nothing happens.
const LOOK: Duration = Duration::from_secs(1);
/// The exchange that each queue is bound to, by its name.
const DEFAULT_EXCHANGE: &str = "";
/// A lost connection, for receipts that came over it.
const LOST: &str = "the connection over which the message came is lost: RabbitMQ delivers the message again";

/// Connects, and looks at the queue.
///
/// # Errors
/// The server cannot be used, or has no such queue.
pub(super) async fn open(
    trigger: &ProcessTrigger,
    queue: &RabbitMqSource,
    secrets: &Secrets,
) -> Result<Box<dyn Source>, SourceError> {
    let name = short(&queue.queue, "the name of the queue")?;
    let dialer = Dialer {
        name: format!("{}/{}", trigger.namespace().unwrap_or_default(), trigger.name_any()),
        source: queue.clone(),
        secrets: secrets.clone(),
    };
    let link = Arc::new(dialer.open().await?);
    let what = format!("queue {}", queue.queue);
    let channel = in_time(&what, async {
        let channel = link.channel().await.map_err(|cause| error(&what, &cause))?;
        depth(&channel, &name).await.map_err(|cause| error(&what, &cause))?;
        // For consumers; what `basic.get` fetches does not count.
        let limited = channel.basic_qos(1, BasicQosOptions::default()).await;
        limited.map_err(|cause| error(&what, &cause))?;
        Ok(channel)
    })
    .await?;
    let (put_back, returned) = mpsc::channel(MAX_PUT_BACK);
    Ok(Box::new(RabbitMq {
        publisher: Arc::new(Outlet::new(dialer, name.clone())?),
        link,
        channel,
        queue: name,
        fetching: None,
        put_back,
        returned,
        waiting: Aside::default(),
    }))
}

/// Number of messages that wait in the queue. It declares nothing: a passive declaration only looks.
async fn depth(channel: &Channel, queue: &ShortString) -> lapin::Result<u64> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let found = channel
        .queue_declare(queue.clone(), options, FieldTable::default())
        .await?;
    Ok(found.message_count().into())
}

struct RabbitMq {
    link: Arc<Link>,
    channel: Channel,
    queue: ShortString,
    publisher: Arc<Outlet>,
    /// What `next` began; it continues in the next call.
    fetching: Option<BoxFuture<'static, Result<lapin::message::Delivery, SourceError>>>,
    put_back: Sender<Returned>,
    returned: Receiver<Returned>,
    /// Messages that were put back. There are no more than were taken.
    waiting: Aside<(Message, Acker)>,
}

/// A message that was put back.
struct Returned {
    due: Instant,
    message: Message,
    acker: Acker,
}

impl RabbitMq {
    async fn take(&mut self) -> Result<Delivery, SourceError> {
        loop {
            while let Ok(returned) = self.returned.try_recv() {
                self.set_aside(returned);
            }
            // Those of a lost connection come again by themselves.
            self.waiting.retain(|(_, acker)| acker.usable());
            let now = Instant::now();
            if let Some((message, acker)) = self.waiting.take(now) {
                return Ok(self.delivery(message, acker));
            }
            if !self.channel.status().connected() {
                return Err(SourceError::unreachable(LOST));
            }
            // Short enough to see a lost connection in time.
            let first = self.waiting.next_due();
            let wait = sleep_until(first.map_or(now + LOOK, |due| due.min(now + LOOK)));
            if self.waiting.is_full() {
                wait.await;
                continue;
            }
            let (channel, queue) = (self.channel.clone(), self.queue.clone());
            let fetching = self.fetching.get_or_insert_with(|| Box::pin(fetch(channel, queue)));
            tokio::select! {
                fetched = fetching => {
                    self.fetching = None;
                    self.waiting.let_pass();
                    let (message, acker) = wire::message(fetched?);
                    return Ok(self.delivery(message, acker));
                }
                Some(returned) = self.returned.recv() => self.set_aside(returned),
                () = wait => {}
            }
        }
    }

    fn set_aside(&mut self, returned: Returned) {
        let Returned { due, message, acker } = returned;
        self.waiting.add(due, (message, acker));
    }

    fn delivery(&self, message: Message, acker: Acker) -> Delivery {
        let receipt = AmqpReceipt {
            kept: Some(message.clone()),
            acker,
            put_back: self.put_back.clone(),
        };
        Delivery {
            message,
            receipt: Box::new(receipt),
        }
    }
}

/// Fetches one message; waits for it.
async fn fetch(channel: Channel, queue: ShortString) -> Result<lapin::message::Delivery, SourceError> {
    let what = format!("queue {queue}");
    let failed = |cause: lapin::Error| error(&what, &cause);
    let got = in_time(&what, async {
        channel
            .basic_get(queue.clone(), BasicGetOptions::default())
            .await
            .map_err(failed)
    });
    if let Some(got) = got.await? {
        return Ok(got.delivery);
    }
    let tag = ShortString::default();
    let consumer = in_time(&what, async {
        let options = BasicConsumeOptions::default();
        channel
            .basic_consume(queue.clone(), tag, options, FieldTable::default())
            .await
            .map_err(failed)
    });
    let mut consumer = consumer.await?;
    let Some(delivery) = consumer.next().await else {
        let message = format!("{what}: RabbitMQ ended the consumer; was the queue deleted?");
        return Err(SourceError::new(BridgeReason::NotFound, message));
    };
    let delivery = delivery.map_err(failed)?;
    in_time(&what, async {
        let tag = consumer.tag();
        channel
            .basic_cancel(tag, BasicCancelOptions::default())
            .await
            .map_err(failed)
    })
    .await?;
    Ok(delivery)
}

impl Source for RabbitMq {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, SourceError>> {
        Box::pin(self.take())
    }

    fn lost(&mut self) -> BoxFuture<'_, SourceError> {
        Box::pin(async {
            while self.channel.status().connected() {
                sleep(LOOK).await;
            }
            SourceError::unreachable(LOST)
        })
    }

    fn lag(&mut self) -> BoxFuture<'_, Option<u64>> {
        // A queue that is gone closes the channel, so this one has its own.
        let (link, queue) = (self.link.clone(), self.queue.clone());
        Box::pin(async move {
            let looked = in_time("lag", async {
                let channel = link.channel().await.map_err(|cause| error("lag", &cause))?;
                let depth = depth(&channel, &queue).await.map_err(|cause| error("lag", &cause));
                let _ = channel.close(200, "OK".into()).await;
                depth
            });
            looked.await.ok()
        })
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }
}

struct AmqpReceipt {
    acker: Acker,
    /// What is put back. After the first [`Receipt::extend`] the payload is not kept in memory any more.
    kept: Option<Message>,
    put_back: Sender<Returned>,
}

async fn reject(acker: Acker, requeue: bool) -> Result<(), SourceError> {
    let sent = in_time("reject", async {
        let options = BasicRejectOptions { requeue };
        acker.reject(options).await.map_err(|cause| error("reject", &cause))
    });
    settled(sent.await?)
}

/// The broker sends no answer to an acknowledgement; it is sent as long as the channel is open.
fn settled(was_sent: bool) -> Result<(), SourceError> {
    match was_sent {
        true => Ok(()),
        false => Err(SourceError::unreachable(LOST)),
    }
}

impl Receipt for AmqpReceipt {
    fn acknowledge(self: Box<Self>, _process: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let sent = in_time("acknowledge", async {
                let options = BasicAckOptions::default();
                self.acker
                    .ack(options)
                    .await
                    .map_err(|cause| error("acknowledge", &cause))
            });
            settled(sent.await?)
        })
    }

    fn put_back(self: Box<Self>, delay: Duration, _reason: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let Self { acker, kept, put_back } = *self;
            settled(acker.usable())?;
            let Some(message) = kept else {
                return reject(acker, true).await;
            };
            let due = Instant::now() + delay;
            match put_back.try_send(Returned { due, message, acker }) {
                // Without the source, its channel closes, and the broker delivers the message again.
                Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
                Err(TrySendError::Full(Returned { acker, .. })) => reject(acker, true).await,
            }
        })
    }

    fn reject(self: Box<Self>, _reason: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(reject(self.acker, false))
    }

    fn extend(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        self.kept = None;
        let is_usable = self.acker.usable();
        Box::pin(async move { settled(is_usable) })
    }
}
