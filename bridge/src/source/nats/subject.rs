//! Events to a subject of a stream.

use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::jetstream;
use futures::future::BoxFuture;
use remoteprocess_api::sink::NatsDestination;
use remoteprocess_api::trigger::NatsSource;

use super::publish::NatsPublisher;
use super::{ANSWER_TIMEOUT, Connection, Secrets, SourceError, connect, in_time};
use crate::outcome::{CONTENT_TYPE, CloudEvent};
use crate::sink::destination::Destination;

/// A subject, over one connection.
struct Subject {
    name: String,
    connection: Arc<Connection>,
    publisher: NatsPublisher,
}

/// Connects.
///
/// # Errors
/// The server cannot be used.
pub(crate) async fn open_subject(
    destination: &NatsDestination,
    secrets: &Secrets,
) -> Result<Arc<dyn Destination>, SourceError> {
    // The part of a source by which it connects.
    let source = NatsSource {
        servers: destination.servers.clone(),
        credentials_secret_name: destination.credentials_secret_name.clone(),
        tls: destination.tls.clone(),
        ..NatsSource::default()
    };
    let connection = Arc::new(Connection::default());
    let client = in_time("NATS", connect(&source, secrets, connection.clone())).await?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ANSWER_TIMEOUT);
    Ok(Arc::new(Subject {
        name: destination.subject.clone(),
        connection,
        publisher: NatsPublisher::new(client, context, &source),
    }))
}

impl Destination for Subject {
    fn send<'a>(&'a self, event: &'a CloudEvent, _key: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let mut headers = HeaderMap::new();
            // Ids are unique only together with the source: several sinks can have one stream.
            headers.insert("Nats-Msg-Id", format!("{} {}", event.source, event.id).as_str());
            headers.insert("Content-Type", CONTENT_TYPE);
            let stored = self.publisher.store(&self.name, headers, event.to_json()).await;
            stored.map_err(|error| self.connection.explain(error))
        })
    }

    fn lost(&self) -> BoxFuture<'_, SourceError> {
        Box::pin(self.connection.lost())
    }
}
