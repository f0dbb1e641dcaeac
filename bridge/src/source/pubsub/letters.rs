//! Dead letters in a subscription of Google Pub/Sub, on their way back.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{ANSWER_TIMEOUT, Pulled, Subscription};
use crate::message::Message;
use crate::source::{DeadLetters, SourceError};

/// The service may answer that there is no message although there is one: so often it is asked again.
const LOOKS: u32 = 4;
/// Pause before it is asked again.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The messages of a subscription.
pub(super) struct SubscriptionLetters {
    subscription: Subscription,
    /// Namespace and name of the trigger.
    trigger: String,
    /// Ids of the messages that were removed. One that comes again has failed again, and is for the next replay.
    removed: BTreeSet<String>,
    /// The one that was taken last, with the id of its message.
    taken: Option<(String, Option<String>)>,
    /// Acknowledgement ids of those that are left alone.
    others: Vec<String>,
}

impl SubscriptionLetters {
    /// Those of a subscription that exists.
    pub(super) async fn open(subscription: Subscription, trigger: &str) -> Result<Self, SourceError> {
        subscription.service.get(&subscription.path).await?;
        Ok(Self {
            subscription,
            trigger: trigger.to_owned(),
            removed: BTreeSet::new(),
            taken: None,
            others: Vec::new(),
        })
    }

    /// The next own one, within a few times [`ANSWER_TIMEOUT`].
    async fn take(&mut self) -> Result<Option<Message>, SourceError> {
        let not_removed = self.taken.take().map(|(ack_id, _)| ack_id);
        self.others.extend(not_removed);
        let until = Instant::now() + ANSWER_TIMEOUT;
        let mut looks = 0;
        while looks < LOOKS && Instant::now() < until {
            let Some(Pulled { message, ack_id, .. }) = self.subscription.pull(true).await? else {
                looks += 1;
                sleep(LOOK_INTERVAL).await;
                continue;
            };
            let is_again = message.id.as_ref().is_some_and(|id| self.removed.contains(id));
            if !is_again && message.is_of(&self.trigger) {
                self.taken = Some((ack_id, message.id.clone()));
                return Ok(Some(message));
            }
            self.others.push(ack_id);
        }
        match looks {
            LOOKS.. => Ok(None),
            // That there is none is not known.
            _ => Err(SourceError::unreachable(format!(
                "dead letters in {}: no dead letter of this trigger in time",
                self.subscription.path
            ))),
        }
    }

    /// Gives back what is left alone: the service may deliver it to others at once.
    async fn release(&mut self) -> Result<(), SourceError> {
        let ack_ids = std::mem::take(&mut self.others);
        if ack_ids.is_empty() {
            return Ok(());
        }
        let body = json!({"ackIds": ack_ids, "ackDeadlineSeconds": 0});
        let Subscription { service, path, .. } = &self.subscription;
        service.post(&format!("{path}:modifyAckDeadline"), &body).await?;
        Ok(())
    }
}

impl DeadLetters for SubscriptionLetters {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Message>, SourceError>> {
        Box::pin(self.take())
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async {
            let Some((ack_id, id)) = self.taken.take() else {
                return Ok(());
            };
            self.removed.extend(id);
            let Subscription { service, path, .. } = &self.subscription;
            let body = json!({"ackIds": [ack_id]});
            service.post(&format!("{path}:acknowledge"), &body).await?;
            Ok(())
        })
    }

    /// The service does not tell.
    fn left(&mut self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(async {
            if let Err(error) = self.release().await {
                tracing::debug!(%error, "dead letters of others come back when their lease is over");
            }
            None
        })
    }
}
