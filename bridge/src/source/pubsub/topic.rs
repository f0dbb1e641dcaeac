//! Events to a topic.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use remoteprocess_api::sink::PubSubDestination;
use remoteprocess_api::trigger::PubSubSource;
use serde_json::json;

use super::super::{Secrets, SourceError};
use super::api::Service;
use super::{ATTRIBUTE_CONTENT_TYPE, ATTRIBUTE_ID};
use crate::outcome::{CONTENT_TYPE, CloudEvent};
use crate::sink::destination::Destination;

/// A topic.
struct Topic {
    path: String,
    service: Service,
}

/// Prepares calls. Whether the topic exists is known when something is published: to look at it needs another permission.
///
/// # Errors
/// [`remoteprocess_api::bridge::BridgeReason::InvalidSecret`].
pub(crate) async fn open_topic(
    destination: &PubSubDestination,
    secrets: &Secrets,
) -> Result<Arc<dyn Destination>, SourceError> {
    // The part of a source by which it connects.
    let source = PubSubSource {
        endpoint: destination.endpoint.clone(),
        credentials_secret_name: destination.credentials_secret_name.clone(),
        ..PubSubSource::default()
    };
    Ok(Arc::new(Topic {
        path: format!("projects/{}/topics/{}", destination.project, destination.topic),
        service: Service::new(&source, secrets).await?,
    }))
}

impl Destination for Topic {
    fn send<'a>(&'a self, event: &'a CloudEvent, key: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let message = json!({
                "data": STANDARD.encode(event.to_json()),
                "attributes": {ATTRIBUTE_CONTENT_TYPE: CONTENT_TYPE, ATTRIBUTE_ID: event.id},
                "orderingKey": key,
            });
            let path = format!("{}:publish", self.path);
            self.service
                .post(&path, &json!({"messages": [message]}))
                .await
                .map(|_| ())
        })
    }
}
