//! Watches objects for a person: each change, until Ctrl-C.

use std::fmt::Debug;

use futures::StreamExt;
use kube::api::WatchParams;
use kube::core::WatchEvent;
use kube::{Api, Resource, ResourceExt};
use remoteprocess_client::retry::Backoff;
use serde::de::DeserializeOwned;

use crate::failure::Failure;

/// Passes each changed object to `each`. An interrupted watch continues from the last version that was seen; if the API
/// server no longer has that version, from `latest`.
///
/// # Errors
/// The watch is refused (`refused` describes it), or the reader of our output is gone.
pub async fn watch<K>(
    api: &Api<K>,
    params: &WatchParams,
    mut version: String,
    latest: impl AsyncFn() -> Result<String, Failure>,
    refused: impl Fn(&kube::Error) -> Failure,
    mut each: impl FnMut(K) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut backoff = Backoff::default();
    loop {
        match api.watch(params, &version).await {
            Ok(events) => {
                let mut events = std::pin::pin!(events);
                while let Some(Ok(event)) = events.next().await {
                    backoff = Backoff::default();
                    match event {
                        WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                            version = object.resource_version().unwrap_or(version);
                            each(object)?;
                        }
                        WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                        WatchEvent::Error(_) => version = latest().await?,
                    }
                }
            }
            Err(kube::Error::Api(status)) if status.code == 410 => version = latest().await?,
            Err(error @ kube::Error::Api(_)) => return Err(refused(&error)),
            Err(_) => {}
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}
