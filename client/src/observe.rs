//! Waits on an object of the API server: with a get, followed by a watch, repeatedly.

use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, WatchParams};
use kube::core::WatchEvent;
use remoteprocess_api::RemoteProcess;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::retry::Backoff;

/// How long the API server keeps one watch open.
const WATCH_SECONDS: u32 = 60;
/// Time limit for one get and one watch together. If the API server hangs, it is asked again.
const LOOK_LIMIT: Duration = Duration::from_secs(2 * WATCH_SECONDS as u64);

/// What was seen last.
#[derive(Clone, Debug)]
pub enum Seen {
    /// The object as it is.
    There(Box<RemoteProcess>),
    /// It does not exist (anymore, or with this uid).
    Gone,
}

impl Seen {
    /// Whether the process has ended, or its object is gone.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        match self {
            Self::There(object) => object.is_final(),
            Self::Gone => true,
        }
    }
}

/// Why the wait ended without a result.
#[derive(Debug)]
pub enum Error {
    /// The time limit was reached.
    TimedOut(Option<Box<RemoteProcess>>),
    /// The API server refuses.
    Api(kube::Error),
}

/// Observes the object until `check` returns a result. Waits for an unavailable API server.
///
/// # Errors
/// The deadline was reached, or the API server refuses.
pub async fn until<T>(
    api: &Api<RemoteProcess>,
    name: &str,
    uid: Option<&str>,
    deadline: Option<Instant>,
    mut check: impl FnMut(&Seen) -> Option<T>,
) -> Result<T, Error> {
    // About thirty years: no deadline.
    let deadline = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(1_000_000_000));
    let mut last = None;
    let mut backoff = Backoff::default();
    let watched = timeout_at(deadline, async {
        loop {
            let looked = timeout(LOOK_LIMIT, look(api, name, uid, &mut last, &mut check)).await;
            match looked {
                Ok(Ok(Some(answer))) => return Ok(answer),
                Ok(Ok(None)) => backoff = Backoff::default(),
                Ok(Err(kube::Error::Api(status))) if !matches!(status.code, 410 | 429 | 500..) => {
                    return Err(Error::Api(kube::Error::Api(status)));
                }
                Ok(Err(_)) | Err(_) => {}
            }
            sleep(backoff.wait()).await;
        }
    });
    match watched.await {
        Ok(answer) => answer,
        Err(_) => Err(Error::TimedOut(last)),
    }
}

/// One get, followed by one watch. `None`: the watch has ended.
async fn look<T>(
    api: &Api<RemoteProcess>,
    name: &str,
    uid: Option<&str>,
    last: &mut Option<Box<RemoteProcess>>,
    check: &mut impl FnMut(&Seen) -> Option<T>,
) -> kube::Result<Option<T>> {
    let is_ours = |object: &RemoteProcess| uid.is_none_or(|uid| object.metadata.uid.as_deref() == Some(uid));
    let Some(object) = api.get_opt(name).await?.filter(|object| is_ours(object)) else {
        return Ok(check(&Seen::Gone));
    };
    let version = object.metadata.resource_version.clone().unwrap_or_default();
    *last = Some(Box::new(object.clone()));
    if let Some(answer) = check(&Seen::There(Box::new(object))) {
        return Ok(Some(answer));
    }
    let params = WatchParams::default()
        .fields(&format!("metadata.name={name}"))
        .timeout(WATCH_SECONDS);
    let mut events = std::pin::pin!(api.watch(&params, &version).await?);
    while let Some(event) = events.next().await {
        let seen = match event? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) if is_ours(&object) => {
                *last = Some(Box::new(object.clone()));
                Seen::There(Box::new(object))
            }
            WatchEvent::Deleted(_) | WatchEvent::Added(_) | WatchEvent::Modified(_) => Seen::Gone,
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        };
        if let Some(answer) = check(&seen) {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_hangs_is_asked_again() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let service = tower::service_fn(|_: Request<Body>| async {
            if CALLS.fetch_add(1, Ordering::Relaxed) == 0 {
                std::future::pending::<()>().await;
            }
            let object = serde_json::json!({
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "job"},
                "spec": {"image": "i", "command": ["x"]},
            });
            Ok::<_, Infallible>(Response::new(Body::from(object.to_string().into_bytes())))
        });
        let api: Api<RemoteProcess> = Api::namespaced(Client::new(service, "default"), "default");
        let seen = until(&api, "job", None, None, |seen| {
            matches!(seen, Seen::There(_)).then_some(())
        });
        assert!(seen.await.is_ok());
        assert_eq!(CALLS.load(Ordering::Relaxed), 2);
    }
}
