//! Where events go: what each kind of destination can do.

use std::sync::Arc;

use futures::future::BoxFuture;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::sink::DestinationSpec;

use super::http;
use crate::outcome::CloudEvent;
use crate::source::{Secrets, SourceError, open_exchange, open_subject, open_topic};

/// One kind of destination. It connects once: after an error the engine drops it, waits, and opens a new one.
pub trait Destination: Send + Sync {
    /// Sends an event, and returns when the destination has confirmed it, or after
    /// [`ANSWER_TIMEOUT`](crate::source::ANSWER_TIMEOUT). Events with the same `key` are sent one after another.
    ///
    /// # Errors
    /// The destination does not confirm. It may have the event nevertheless.
    fn send<'a>(&'a self, event: &'a CloudEvent, key: &'a str) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Waits until the destination is of no more use. Never returns if it cannot tell.
    fn lost(&self) -> BoxFuture<'_, SourceError> {
        Box::pin(std::future::pending())
    }
}

/// Connects to the destination of the sink `name`, which is `NAMESPACE/NAME`.
///
/// # Errors
/// It cannot be used: see [`SourceError::reason`].
pub async fn open(spec: &DestinationSpec, name: &str, secrets: &Secrets) -> Result<Arc<dyn Destination>, SourceError> {
    if let Some(to) = &spec.http {
        return http::open(to, secrets).await;
    }
    if let Some(to) = &spec.nats {
        return open_subject(to, secrets).await;
    }
    if let Some(to) = &spec.rabbitmq {
        return open_exchange(to, name, secrets).await;
    }
    if let Some(to) = &spec.pubsub {
        return open_topic(to, secrets).await;
    }
    let message = "spec.destination names no destination";
    Err(SourceError::new(BridgeReason::InvalidDestination, message))
}
