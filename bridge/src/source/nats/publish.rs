//! Results and dead letters to NATS.

use async_nats::connection::State;
use async_nats::jetstream::context::{GetStreamByNameErrorKind, PublishErrorKind};
use async_nats::jetstream::{Context, context::PublishError};
use async_nats::{Client, HeaderMap};
use futures::future::BoxFuture;
use jiff::Timestamp;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::trigger::NatsSource;

use super::letters::StreamLetters;
use super::{is_address, said};
use crate::message::{DEAD_LETTER_ID, DEAD_LETTER_PLACE, Message, SUBJECT, percent_encoded};
use crate::outcome::{CONTENT_TYPE, CloudEvent};
use crate::source::receiver::settled;
use crate::source::{DEAD_LETTER_REASON, DeadLetters, Publisher, SourceError, in_time, no_dead_letters};

/// The header by which the server finds a message that was published before.
const ID: &str = "Nats-Msg-Id";

/// Publishes with the connection of the source.
pub(super) struct NatsPublisher {
    client: Client,
    context: Context,
    source: NatsSource,
}

impl NatsPublisher {
    pub(super) fn new(client: Client, context: Context, source: &NatsSource) -> Self {
        Self {
            client,
            context,
            source: source.clone(),
        }
    }

    /// Publishes to a stream, and returns when the server has stored it.
    pub(super) async fn store(&self, subject: &str, headers: HeaderMap, payload: Vec<u8>) -> Result<(), SourceError> {
        let publish = async {
            let acknowledgement = self
                .context
                .publish_with_headers(subject.to_owned(), headers, payload.into());
            let stored = async { acknowledgement.await?.await };
            stored.await.map_err(|error| refused(subject, &error))
        };
        in_time(subject, publish).await.map(|_| ())
    }

    /// Which stream keeps what is published to the subject; `None` if none does.
    async fn stream_of(&self, subject: &str) -> Result<Option<String>, SourceError> {
        let find = async {
            match self.context.stream_by_subject(subject).await {
                Ok(stream) => Ok(Some(stream)),
                Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => Ok(None),
                Err(error) => Err(SourceError::unreachable(format!("{subject}: {}", said(&error)))),
            }
        };
        in_time(subject, find).await
    }

    /// Publishes to clients that listen now. The server does not confirm that.
    async fn tell(&self, subject: &str, headers: HeaderMap, payload: Vec<u8>) -> Result<(), SourceError> {
        let publish = async {
            let told = self
                .client
                .publish_with_headers(subject.to_owned(), headers, payload.into());
            told.await
                .map_err(|error| SourceError::unreachable(error.to_string()))?;
            let flushed = self.client.flush().await;
            flushed.map_err(|error| SourceError::unreachable(error.to_string()))
        };
        in_time(subject, publish).await
    }

    async fn send_result(&self, to: &str, event: &CloudEvent) -> Result<(), SourceError> {
        let mut headers = HeaderMap::new();
        headers.insert(ID, event.id.as_str());
        headers.insert("Content-Type", CONTENT_TYPE);
        if self.source.result_subject.as_deref() == Some(to) {
            return self.store(to, headers, event.to_json()).await;
        }
        match self.stream_of(to).await? {
            // It would come back as a message, and its result as another, without end.
            Some(stream) if stream == self.source.stream && self.is_taken(to) => {
                tracing::warn!(
                    subject = to,
                    "a message wants its result in its own stream: it is not sent"
                );
                Ok(())
            }
            Some(_) => {
                let stored = self.store(to, headers, event.to_json()).await;
                // The server answers, so it is the address to which the bridge may not publish.
                let is_there = self.client.connection_state() == State::Connected;
                let stored = stored.map_err(|error| match error.reason {
                    BridgeReason::Unreachable if is_there => SourceError::new(BridgeReason::NotFound, error),
                    _ => error,
                });
                settled(stored, event, Timestamp::now())
            }
            None => self.tell(to, headers, event.to_json()).await,
        }
    }

    /// Fails if a result, or a dead letter, would come back as a message, and its result as another, without end.
    pub(super) async fn check_subjects(&self) -> Result<(), SourceError> {
        let (results, dead_letters) = (&self.source.result_subject, &self.source.dead_letter_subject);
        for (field, subject) in [("resultSubject", results), ("deadLetterSubject", dead_letters)] {
            let Some(subject) = subject.as_deref().filter(|subject| self.is_taken(subject)) else {
                continue;
            };
            if self.stream_of(subject).await?.as_deref() == Some(&self.source.stream) {
                let message = format!(
                    "spec.source.nats.{field}: the trigger would take {subject} as a message again; set subject so that it does \
                     not, or use another stream"
                );
                return Err(SourceError::new(BridgeReason::InvalidSource, message));
            }
        }
        Ok(())
    }

    /// Whether the consumer takes messages of this subject of the stream.
    fn is_taken(&self, subject: &str) -> bool {
        self.source
            .subject
            .as_deref()
            .is_none_or(|filter| matches(filter, subject))
    }
}

fn refused(subject: &str, error: &PublishError) -> SourceError {
    let reason = match error.kind() {
        PublishErrorKind::StreamNotFound => BridgeReason::NotFound,
        _ => BridgeReason::Unreachable,
    };
    SourceError::new(reason, format!("subject {subject}: {}", said(error)))
}

/// Whether a subject fits a filter with the wildcards `*` (one token) and `>` (the rest).
fn matches(filter: &str, subject: &str) -> bool {
    let (mut filter, mut subject) = (filter.split('.'), subject.split('.'));
    loop {
        match (filter.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

fn headers_of(message: &Message) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &message.headers {
        // Names are stored in lower case; the server knows this one only as it is written here.
        let is_of_server = name.starts_with("nats-");
        if !is_of_server && is_header_name(name) {
            let value = if name.starts_with("ce-") {
                percent_encoded(value)
            } else {
                value.clone()
            };
            headers.insert(name.as_str(), value.as_str());
        }
    }
    if let Some(media_type) = message.content_type.as_deref().filter(is_one_line) {
        headers.insert("content-type", media_type);
    }
    if let Some(id) = message.id.as_deref().filter(is_one_line) {
        headers.insert(ID, id);
    }
    headers
}

/// Whether a text can be the value of a header: the client panics at others.
fn is_one_line(text: &&str) -> bool {
    !text.contains(['\r', '\n'])
}

/// Of RFC 9110, section 5.6.2: what else is in a name could break the message apart.
fn is_header_name(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
}

impl Publisher for NatsPublisher {
    fn reply<'a>(&'a self, to: &'a str, event: &'a CloudEvent) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.send_result(to, event))
    }

    fn dead_letter<'a>(&'a self, message: &'a Message, reason: &'a str) -> BoxFuture<'a, Result<bool, SourceError>> {
        Box::pin(async move {
            let Some(subject) = self.source.dead_letter_subject.as_deref() else {
                return Ok(false);
            };
            let mut headers = headers_of(message);
            headers.insert(DEAD_LETTER_REASON, reason.replace(['\r', '\n'], " ").as_str());
            if let Some(id) = message.id.as_deref().filter(is_one_line) {
                // The stream may know the id of the message from the message itself, or from a dead letter that was
                // replayed since, and would not store it again.
                let of_run = [message.replay_of(), message.header(DEAD_LETTER_PLACE)]
                    .into_iter()
                    .flatten();
                let run: String = of_run.map(|run| format!(" {run}")).collect();
                headers.insert(ID, format!("dead-letter {} {id}{run}", self.source.stream).as_str());
                headers.insert(DEAD_LETTER_ID, id);
            }
            self.store(subject, headers, message.payload.to_vec()).await?;
            Ok(true)
        })
    }

    fn default_reply(&self) -> Option<String> {
        self.source.result_subject.clone()
    }

    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let subject = self.subject_for(message).await?;
            let mut headers = headers_of(message);
            if let Some(place) = message.header(DEAD_LETTER_PLACE) {
                // The server may know the id from the first time.
                headers.insert(ID, format!("replay {place}").as_str());
                if let Some(id) = message.id.as_deref().filter(is_one_line) {
                    headers.insert(DEAD_LETTER_ID, id);
                }
            }
            self.store(&subject, headers, message.payload.to_vec()).await
        })
    }

    fn dead_letters<'a>(&'a self, trigger: &'a str) -> BoxFuture<'a, Result<Box<dyn DeadLetters>, SourceError>> {
        Box::pin(async move {
            let subject = self.source.dead_letter_subject.as_deref();
            let subject = subject.ok_or_else(|| no_dead_letters(NO_SUBJECT))?;
            let none = || SourceError::new(BridgeReason::NotFound, format!("no stream keeps the subject {subject}"));
            let stream = self.stream_of(subject).await?.ok_or_else(none)?;
            let letters = StreamLetters::open(&self.context, &stream, subject, trigger).await?;
            Ok(Box::new(letters) as Box<dyn DeadLetters>)
        })
    }
}

/// What a replay needs.
const NO_SUBJECT: &str =
    "the trigger has no dead letters to take back: set spec.source.nats.deadLetterSubject to a subject of a stream";

impl NatsPublisher {
    /// The subject that the message had, if the trigger still takes it from there. Otherwise one that it takes.
    async fn subject_for(&self, message: &Message) -> Result<String, SourceError> {
        let had = message.header(SUBJECT);
        if let Some(had) = had.filter(|subject| is_address(subject) && self.is_taken(subject))
            && self.stream_of(had).await?.as_deref() == Some(&self.source.stream)
        {
            return Ok(had.to_owned());
        }
        // A subject with wildcards is none to publish to: the last token of a test is `test` there.
        let subject = match self.source.subject.clone() {
            Some(subject) => subject,
            None => self.first_subject().await?,
        };
        Ok(subject.replace(['*', '>'], "test"))
    }

    async fn first_subject(&self) -> Result<String, SourceError> {
        let stream = super::stream(&self.context, &self.source.stream).await?;
        let subject = stream.cached_info().config.subjects.first().cloned();
        subject.ok_or_else(|| SourceError::new(BridgeReason::NotFound, "the stream has no subject"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_at_the_server() {
        for (filter, subject) in [("a", "a"), ("a.*", "a.b"), ("a.>", "a.b.c"), ("*.b", "a.b"), (">", "a")] {
            assert!(matches(filter, subject), "{filter} {subject}");
        }
        for (filter, subject) in [("a", "b"), ("a.*", "a"), ("a.*", "a.b.c"), ("a.>", "a"), ("a.b", "a")] {
            assert!(!matches(filter, subject), "{filter} {subject}");
        }
    }

    /// The client of NATS panics at a line break in a header.
    #[test]
    fn what_has_more_than_one_line_is_no_header() {
        let message = Message {
            id: Some("a\r\nb".into()),
            content_type: Some("a\nb".into()),
            ..Message::default()
        };
        assert!(headers_of(&message).is_empty());
    }

    #[test]
    fn headers_of_the_server_are_not_taken_over() {
        let mut message = Message {
            id: Some("m1".into()),
            ..Message::default()
        };
        for (name, value) in [
            ("nats-expected-stream", "x"),
            ("nats-rollup", "all"),
            ("x", "y"),
            ("b:d", "z"),
        ] {
            assert!(message.insert(name, value));
        }
        let headers = headers_of(&message);
        let mut names: Vec<&str> = headers.iter().map(|(name, _)| name.as_ref()).collect();
        names.sort_unstable();
        assert_eq!(names, ["Nats-Msg-Id", "x"]);
    }
}
