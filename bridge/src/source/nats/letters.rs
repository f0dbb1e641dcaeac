//! Dead letters in a stream of NATS, on their way back.

use async_nats::jetstream::Context;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use remoteprocess_api::bridge::BridgeReason;
use tokio::time::{Instant, timeout_at};

use super::{place, read, said, stream};
use crate::message::{DEAD_LETTER_PLACE, Message};
use crate::source::{ANSWER_TIMEOUT, DeadLetters, SourceError, in_time};

/// The messages of a subject of a stream.
pub(super) struct StreamLetters {
    stream: Stream,
    subject: String,
    /// Namespace and name of the trigger.
    trigger: String,
    /// Sequence to look at next.
    next: u64,
    /// The last one that was there in the beginning.
    last: u64,
    /// The one that was taken last.
    taken: Option<u64>,
}

impl StreamLetters {
    /// Opens those of the subject in the stream of this name.
    pub(super) async fn open(context: &Context, name: &str, subject: &str, trigger: &str) -> Result<Self, SourceError> {
        let stream = in_time(subject, stream(context, name)).await?;
        let state = &stream.cached_info().state;
        Ok(Self {
            next: state.first_sequence.max(1),
            last: state.last_sequence,
            subject: subject.to_owned(),
            trigger: trigger.to_owned(),
            taken: None,
            stream,
        })
    }

    /// The next own one, within [`ANSWER_TIMEOUT`].
    async fn take(&mut self) -> Result<Option<Message>, SourceError> {
        self.taken = None;
        let until = Instant::now() + ANSWER_TIMEOUT;
        let late = || SourceError::unreachable(format!("{}: no dead letter of this trigger in time", self.subject));
        while self.next <= self.last {
            let get = self.stream.get_first_raw_message_by_subject(&self.subject, self.next);
            let found = match timeout_at(until, get).await.map_err(|_| late())? {
                Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => return Ok(None),
                found => {
                    found.map_err(|error| SourceError::unreachable(format!("{}: {}", self.subject, said(&error))))?
                }
            };
            let sequence = found.sequence;
            self.next = sequence + 1;
            if sequence > self.last {
                return Ok(None);
            }
            let message = letter(found, &self.stream.cached_info().config.name);
            if message.is_of(&self.trigger) {
                self.taken = Some(sequence);
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    async fn delete(&self, sequence: u64) -> Result<(), SourceError> {
        let what = format!("dead letter {sequence} of {}", self.subject);
        in_time(&what, async {
            let deleted = self.stream.delete_message(sequence).await;
            // A stream with `deny_delete` keeps it.
            deleted.map_err(|error| SourceError::new(BridgeReason::Unauthorized, format!("{what}: {}", said(&error))))
        })
        .await
        .map(|_| ())
    }
}

/// The dead letter as a message. Its place makes the copies that a replay may send twice one message for the server.
fn letter(found: StreamMessage, stream: &str) -> Message {
    let place = place(stream, found.sequence, found.time.unix_timestamp_nanos());
    let received = async_nats::Message {
        subject: found.subject,
        reply: None,
        length: found.payload.len(),
        payload: found.payload,
        headers: Some(found.headers),
        status: None,
        description: None,
    };
    let mut message = read(received, Some(place.clone()));
    message.insert(DEAD_LETTER_PLACE, &place);
    message
}

impl DeadLetters for StreamLetters {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Message>, SourceError>> {
        Box::pin(self.take())
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async {
            match self.taken.take() {
                Some(sequence) => self.delete(sequence).await,
                None => Ok(()),
            }
        })
    }

    fn left(&mut self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(async {
            let count = in_time("dead letters", async {
                let counted = async {
                    let subjects = self.stream.info_with_subjects(&self.subject).await.ok()?;
                    let counts: Vec<(String, usize)> = subjects.try_collect().await.ok()?;
                    u64::try_from(counts.iter().map(|(_, count)| count).sum::<usize>()).ok()
                };
                Ok(counted.await)
            });
            count.await.ok().flatten()
        })
    }
}
