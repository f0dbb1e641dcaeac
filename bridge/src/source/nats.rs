//! NATS JetStream: a durable pull consumer, one message at a time.

mod letters;
mod publish;
mod subject;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{ConsumerErrorKind, Stream};
use async_nats::jetstream::{self, AckKind, Context, ErrorCode};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, ServerAddr, ServerError};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use kube::ResourceExt as _;
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::trigger::NatsSource;
use tokio::sync::Notify;

use super::{ANSWER_TIMEOUT, Delivery, Publisher, Receipt, Secrets, Source, SourceError, in_time, tls_config};
use crate::message::{DEAD_LETTER_ID, MAX_REPLY_TO, Message, SUBJECT};

use publish::NatsPublisher;

pub(crate) use subject::open_subject;

/// How long one request for a message waits at the server.
const PULL: Duration = Duration::from_secs(5);
/// How long the server waits for an answer to a message before it delivers it again.
const ACK_WAIT: Duration = Duration::from_secs(8);
/// Most messages without an answer: more than processes can run at once.
const MAX_ACK_PENDING: i64 = 2000;
/// How soon a server that is silent is noticed: three times this.
const PING: Duration = Duration::from_secs(2);
/// The header of a message with the address for its result.
const REPLY_TO: &str = "reply-to";
/// The header with the id that the publisher gives.
const MESSAGE_ID: &str = "nats-msg-id";

/// A request for one message that may be under way. Kept between calls of `next`, so that none is lost.
enum Pull {
    Idle,
    Opening(BoxFuture<'static, Result<pull::Batch, pull::BatchError>>),
    Open(Box<pull::Batch>),
}

/// A consumer of a stream.
struct Nats {
    consumer: PullConsumer,
    pull: Pull,
    connection: Arc<Connection>,
    publisher: Arc<NatsPublisher>,
}

/// What the client tells about its connection.
#[derive(Default)]
struct Connection {
    broken: Notify,
    last_error: Mutex<Option<String>>,
}

impl Connection {
    fn note(&self, event: &Event) {
        match event {
            Event::Disconnected | Event::Closed => self.broken.notify_one(),
            Event::ServerError(ServerError::Other(_) | ServerError::AuthorizationViolation) => {
                *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(event.to_string());
            }
            _ => {}
        }
    }

    /// Waits until the connection is lost.
    async fn lost(&self) -> SourceError {
        self.broken.notified().await;
        self.explain(SourceError::unreachable("the connection to NATS broke"))
    }

    /// What the server said last, with the reason that follows from it.
    fn explain(&self, otherwise: SourceError) -> SourceError {
        let said = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        match said {
            Some(said) if said.to_ascii_lowercase().contains("violation") => {
                SourceError::new(BridgeReason::Unauthorized, format!("{otherwise}: {said}"))
            }
            Some(said) => SourceError::new(otherwise.reason, format!("{otherwise}: {said}")),
            None => otherwise,
        }
    }
}

/// Connects, finds the stream, and makes or updates the consumer.
pub(super) async fn open(
    trigger: &ProcessTrigger,
    source: &NatsSource,
    secrets: &Secrets,
) -> Result<Box<dyn Source>, SourceError> {
    let connection = Arc::new(Connection::default());
    let client = in_time("NATS", connect(source, secrets, connection.clone())).await?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ANSWER_TIMEOUT);
    let opened = in_time("NATS JetStream", consumer(&context, trigger, source)).await;
    let consumer = opened.map_err(|error| connection.explain(error))?;
    let publisher = NatsPublisher::new(client, context, source);
    let checked = publisher.check_subjects().await;
    checked.map_err(|error| connection.explain(error))?;
    Ok(Box::new(Nats {
        consumer,
        pull: Pull::Idle,
        connection,
        publisher: Arc::new(publisher),
    }))
}

async fn connect(source: &NatsSource, secrets: &Secrets, connection: Arc<Connection>) -> Result<Client, SourceError> {
    let servers: Result<Vec<ServerAddr>, _> = source.servers.iter().map(|server| server.parse()).collect();
    let servers = servers.map_err(|error| SourceError::unreachable(format!("nats.servers: {error}")))?;
    let mut options = ConnectOptions::new()
        .name("remoteprocess-bridge")
        .connection_timeout(ANSWER_TIMEOUT)
        .request_timeout(Some(ANSWER_TIMEOUT))
        .ping_interval(PING)
        // The engine connects again. One pass over the servers, and this client ends.
        .max_reconnects(servers.len())
        .ignore_discovered_servers()
        .event_callback(move |event| {
            connection.note(&event);
            async {}
        });
    let has_tls = source.tls.is_some() || source.servers.iter().any(|server| server.starts_with("tls://"));
    if has_tls {
        let config = tls_config(source.tls.as_ref(), secrets).await?;
        options = options.require_tls(true).tls_client_config((*config).clone());
    }
    if source.credentials_secret_name.is_some() {
        options = authenticate(options, secrets).await?;
    }
    options.connect(servers).await.map_err(|error| {
        let reason = match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => BridgeReason::Unauthorized,
            ConnectErrorKind::Tls => BridgeReason::Untrusted,
            _ if said(&error).to_ascii_lowercase().contains("certificate") => BridgeReason::Untrusted,
            _ => BridgeReason::Unreachable,
        };
        SourceError::new(reason, format!("cannot connect to NATS: {}", said(&error)))
    })
}

async fn authenticate(options: ConnectOptions, secrets: &Secrets) -> Result<ConnectOptions, SourceError> {
    if let Some(credentials) = secrets.credential("user.creds").await? {
        let options = options.credentials(&credentials);
        return options.map_err(|error| {
            SourceError::new(
                BridgeReason::InvalidSecret,
                format!("user.creds of the Secret is no credentials file: {error}"),
            )
        });
    }
    if let Some(token) = secrets.credential("token").await? {
        return Ok(options.token(token));
    }
    let user = secrets.required_credential("username").await?;
    Ok(options.user_and_password(user, secrets.required_credential("password").await?))
}

async fn consumer(
    context: &Context,
    trigger: &ProcessTrigger,
    source: &NatsSource,
) -> Result<PullConsumer, SourceError> {
    let stream = stream(context, &source.stream).await?;
    let name = source.consumer.clone().unwrap_or_else(|| {
        let namespace = trigger.namespace().unwrap_or_default();
        // Neither can have an underscore, so no two triggers have the same name here.
        format!("rproc-{namespace}_{}", trigger.name_any())
    });
    let config = pull::Config {
        durable_name: Some(name.clone()),
        description: Some("Messages of a ProcessTrigger (remoteprocess.dev)".to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING,
        filter_subject: source.subject.clone().unwrap_or_default(),
        ..pull::Config::default()
    };
    stream.create_consumer(config).await.map_err(|error| {
        let reason = match error.kind() {
            ConsumerErrorKind::TimedOut | ConsumerErrorKind::Request => BridgeReason::Unreachable,
            _ => BridgeReason::NotFound,
        };
        SourceError::new(reason, format!("consumer {name}: {}", said(&error)))
    })
}

async fn stream(context: &Context, name: &str) -> Result<Stream, SourceError> {
    context.get_stream(name).await.map_err(|error| match error.kind() {
        GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            SourceError::new(BridgeReason::NotFound, format!("stream {name}: {refusal}"))
        }
        _ => SourceError::unreachable(format!("stream {name}: {}", said(&error))),
    })
}

/// The error and what it came from.
fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors repeat their cause.
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

impl Source for Nats {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, SourceError>> {
        let connection = self.connection.clone();
        Box::pin(async move {
            tokio::select! {
                delivery = self.pull() => delivery.map_err(|error| connection.explain(error)),
                error = connection.lost() => Err(error),
            }
        })
    }

    fn lost(&mut self) -> BoxFuture<'_, SourceError> {
        Box::pin(self.connection.lost())
    }

    fn lag(&mut self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(async { Some(self.consumer.get_info().await.ok()?.num_pending) })
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }
}

impl Nats {
    async fn pull(&mut self) -> Result<Delivery, SourceError> {
        loop {
            match &mut self.pull {
                Pull::Idle => {
                    let consumer = self.consumer.clone();
                    self.pull = Pull::Opening(Box::pin(async move {
                        consumer.batch().max_messages(1).expires(PULL).messages().await
                    }));
                }
                Pull::Opening(opening) => {
                    let opened = opening.await;
                    self.pull = Pull::Idle;
                    let batch = opened.map_err(|error| SourceError::unreachable(said(&error)))?;
                    self.pull = Pull::Open(Box::new(batch));
                }
                Pull::Open(batch) => match batch.next().await {
                    Some(Ok(message)) => {
                        self.pull = Pull::Idle;
                        return Ok(delivery(message));
                    }
                    Some(Err(error)) => {
                        self.pull = Pull::Idle;
                        return Err(lost_consumer(&error.to_string()));
                    }
                    None => self.pull = Pull::Idle,
                },
            }
        }
    }
}

/// What the server says instead of a message: the consumer or its stream is gone, for example.
fn lost_consumer(said: &str) -> SourceError {
    let reason = if said.contains("409") || said.contains("404") {
        BridgeReason::NotFound
    } else {
        BridgeReason::Unreachable
    };
    SourceError::new(reason, said)
}

/// What tells a message apart from all others that were ever stored. The time as well: a stream that is deleted and made
/// again counts from 1 again.
fn place(stream: &str, sequence: u64, unix_nanos: i128) -> String {
    format!("{stream}/{sequence}/{unix_nanos}")
}

fn delivery(message: jetstream::Message) -> Delivery {
    let place = message.info().ok().map(|info| {
        let time = info.published.unix_timestamp_nanos();
        place(info.stream, info.stream_sequence, time)
    });
    let (received, acker) = message.split();
    let subject = received.subject.clone();
    let mut message = read(received, place);
    // Whatever the sender says: a replay goes there.
    message.insert(SUBJECT, &subject);
    Delivery {
        message,
        receipt: Box::new(NatsReceipt { acker }),
    }
}

fn read(received: async_nats::Message, place: Option<String>) -> Message {
    let mut message = Message {
        payload: received.payload,
        ..Message::default()
    };
    for (name, value) in received.headers.iter().flat_map(pairs) {
        message.insert(name, &decoded(name, value));
    }
    // That of a dead letter comes first. A message without an id of its publisher is known by its place in the stream.
    let id = message.header(DEAD_LETTER_ID).or_else(|| message.header(MESSAGE_ID));
    message.id = id.map(str::to_owned).or(place);
    message.content_type = message.header("content-type").map(str::to_owned);
    message.reply_to = message.header(REPLY_TO).filter(|to| is_address(to)).map(str::to_owned);
    message
}

/// The last value of each header.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers
        .iter()
        .filter_map(|(name, values)| Some((name.as_ref(), values.last()?.as_str())))
}

/// Attributes of CloudEvents are percent-encoded ("NATS Protocol Binding", 3.1.3).
fn decoded(name: &str, value: &str) -> String {
    let is_attribute = name.get(..3).is_some_and(|prefix| prefix.eq_ignore_ascii_case("ce-"));
    if is_attribute {
        crate::message::percent_decoded(value)
    } else {
        value.to_owned()
    }
}

/// Whether a sender may have its result sent to this subject: nothing of the server itself (`$JS.API…` would be a command
/// with the rights of the bridge), and no wildcards.
fn is_address(subject: &str) -> bool {
    let is_plain = |token: &str| {
        !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c.is_control() || "*>".contains(c))
    };
    (1..=MAX_REPLY_TO.min(256)).contains(&subject.len())
        && !subject.starts_with('$')
        && subject.split('.').all(is_plain)
}

struct NatsReceipt {
    acker: jetstream::message::Acker,
}

impl NatsReceipt {
    async fn confirm(&self, kind: AckKind) -> Result<(), SourceError> {
        let answered = self.acker.double_ack_with(kind).await;
        answered.map_err(|error| SourceError::unreachable(format!("NATS does not confirm: {error}")))
    }
}

impl Receipt for NatsReceipt {
    fn acknowledge(self: Box<Self>, _process: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move { self.confirm(AckKind::Ack).await })
    }

    fn put_back(self: Box<Self>, delay: Duration, _reason: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move { self.confirm(AckKind::Nak(Some(delay))).await })
    }

    fn reject(self: Box<Self>, _reason: &str) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move { self.confirm(AckKind::Term).await })
    }

    fn extend(&mut self) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async {
            let extended = self.acker.ack_with(AckKind::Progress).await;
            extended.map_err(|error| SourceError::unreachable(error.to_string()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_go_to_subjects_of_users_only() {
        for address in ["answers", "a.b-c.d_1", "_INBOX.x1.2"] {
            assert!(is_address(address), "{address}");
        }
        let long = "x".repeat(300);
        for address in [
            "",
            "$JS.API.STREAM.DELETE.ORDERS",
            "$SYS.x",
            "a.*",
            "a.>",
            "a..b",
            ".a",
            "a b",
            "a\r\nb",
            &long,
        ] {
            assert!(!is_address(address), "{address}");
        }
    }

    fn received(headers: &[(&str, &str)]) -> async_nats::Message {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        async_nats::Message {
            subject: "orders".into(),
            reply: Some("$JS.ACK.x".into()),
            payload: "body".into(),
            headers: Some(map),
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn a_message_is_known_by_its_id_or_by_its_place() {
        assert_eq!(
            read(received(&[]), Some("ORDERS/7/1".to_owned())).id.as_deref(),
            Some("ORDERS/7/1")
        );
        let message = read(
            received(&[("Nats-Msg-Id", "m1"), ("Reply-To", "answers"), ("Content-Type", "a/b")]),
            Some("ORDERS/7/1".to_owned()),
        );
        assert_eq!(
            (message.id.as_deref(), message.reply_to.as_deref()),
            (Some("m1"), Some("answers"))
        );
        assert_eq!(message.content_type.as_deref(), Some("a/b"));
        assert_eq!(
            read(
                received(&[("Reply-To", "$JS.API.STREAM.PURGE.X")]),
                Some("ORDERS/7/1".to_owned())
            )
            .reply_to,
            None
        );
    }

    #[test]
    fn attributes_are_decoded() {
        let message = read(received(&[("ce-subject", "a%20b%C3%A4"), ("other", "a%20b")]), None);
        assert_eq!(message.header("ce-subject"), Some("a b\u{e4}"));
        assert_eq!(message.header("other"), Some("a%20b"));
    }
}
