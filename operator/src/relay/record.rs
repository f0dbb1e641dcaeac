//! What the relay writes into the status of a process: the grant, the start, the end with its seal.
//!
//! The patches are built by pure functions from the object as it is ([`patch`]); [`Recorder`] applies them, guarded by
//! the object's resourceVersion, and tries again until it is done or the object is gone.

mod end;
mod patch;
mod tail;

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::{RemoteProcess, names};
use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{error, info, warn};

pub use end::{exit_from_status, known_end};
pub use patch::{Claim, Decision, build_end, build_start, decide_grant};

use super::archive::Subject;
use super::session::{Ending, Record};

/// Pauses between tries of a write.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Tries of a grant before the agent is asked to come again.
const GRANT_TRIES: usize = 10;

/// Why a start is not granted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not answer, or kept answering with conflicts.
    #[error("the API server does not answer")]
    Api(#[source] Option<kube::Error>),
    /// The object is gone.
    #[error("the process has been deleted")]
    Gone,
    /// The answer is no.
    #[error("{0}")]
    Refused(&'static str),
}

/// Writes as field manager `remoteprocess-relay`. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    replica: String,
}

enum Written {
    Done,
    Conflict,
    Gone,
}

impl Recorder {
    /// A recorder for the replica of this name.
    #[must_use]
    pub fn new(client: Client, replica: String) -> Self {
        Self { client, replica }
    }

    /// Grants the start of an attempt to the agent of its pod: when this returns `Ok`, the grant is in the status.
    ///
    /// # Errors
    /// When the answer is no, or the API server cannot be asked.
    pub async fn grant(&self, namespace: &str, name: &str, claim: &Claim) -> Result<RemoteProcess, Error> {
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), namespace);
        let mut pod_checked = false;
        for _ in 0..GRANT_TRIES {
            let current = match api.get_opt(name).await.map_err(|error| Error::Api(Some(error)))? {
                Some(current) if current.uid().as_deref() == Some(&claim.uid) => current,
                _ => return Err(Error::Gone),
            };
            match decide_grant(&current, claim, &self.replica, Timestamp::now(), pod_checked) {
                Decision::Granted => return Ok(current),
                Decision::Refused(reason) => return Err(Error::Refused(reason)),
                Decision::CheckPod(pod) => {
                    self.check_pod(namespace, &pod, claim).await?;
                    pod_checked = true;
                }
                Decision::Write(patch) => match self.write(&current, &patch).await {
                    Ok(Written::Done) => return Ok(current),
                    Ok(Written::Conflict) => {}
                    Ok(Written::Gone) => return Err(Error::Gone),
                    Err(error) => return Err(Error::Api(Some(error))),
                },
            }
        }
        Err(Error::Api(None))
    }

    /// The controller has not recorded the pod's uid yet: the pod itself is asked.
    async fn check_pod(&self, namespace: &str, pod: &str, claim: &Claim) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = api.get_opt(pod).await.map_err(|error| Error::Api(Some(error)))?;
        let fits = pod.is_some_and(|pod| {
            pod.uid().as_deref() == Some(&claim.pod_uid)
                && pod.owner_references().iter().any(|owner| owner.uid == claim.uid)
        });
        if fits {
            Ok(())
        } else {
            Err(Error::Refused("this pod is not the pod of this attempt"))
        }
    }

    /// Sets `spec.desiredState: Stopped`.
    ///
    /// # Errors
    /// When the API server does not answer, or the object has been replaced.
    pub async fn stop(&self, namespace: &str, name: &str, uid: &str) -> Result<(), kube::Error> {
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), namespace);
        // The uid makes the API server refuse a namesake.
        let patch = json!({"metadata": {"uid": uid}, "spec": {"desiredState": "Stopped"}});
        let params = PatchParams {
            field_manager: Some(names::RELAY_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        api.patch(name, &params, &Patch::Merge(patch)).await.map(drop)
    }

    /// Builds from the object as it is and writes, until it is written or there is nothing to write to.
    async fn until_written(
        &self,
        subject: &Subject,
        what: &'static str,
        build: impl Fn(&RemoteProcess) -> Option<Value>,
    ) {
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), &subject.namespace);
        let mut backoff = BACKOFF.0;
        loop {
            let tried = match api.get_opt(&subject.name).await {
                Ok(Some(current)) if current.uid().as_deref() == Some(&subject.key.uid) => match build(&current) {
                    Some(patch) => self.write(&current, &patch).await,
                    None => return,
                },
                Ok(_) => Ok(Written::Gone),
                Err(error) => Err(error),
            };
            match tried {
                Ok(Written::Done) => return,
                Ok(Written::Gone) => {
                    info!(uid = subject.key.uid, what, "the object is gone: not recorded");
                    return;
                }
                Ok(Written::Conflict) => backoff = BACKOFF.0,
                Err(kube::Error::Api(status)) if status.is_invalid() || status.is_forbidden() => {
                    error!(uid = subject.key.uid, what, %status, "the API server refuses the record");
                }
                Err(error) => warn!(uid = subject.key.uid, what, %error, "not recorded yet, will try again"),
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    async fn write(&self, current: &RemoteProcess, patch: &Value) -> Result<Written, kube::Error> {
        let namespace = current.namespace().unwrap_or_default();
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), &namespace);
        let params = PatchParams::apply(names::RELAY_MANAGER);
        match api
            .patch_status(&current.name_any(), &params, &Patch::Apply(patch))
            .await
        {
            Ok(_) => Ok(Written::Done),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Written::Conflict),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Written::Gone),
            Err(error) => Err(error),
        }
    }
}

impl Record for Recorder {
    fn started<'a>(&'a self, subject: &'a Subject, at_unix_nanos: i64) -> BoxFuture<'a, ()> {
        Box::pin(self.until_written(subject, "start", move |current| {
            build_start(current, subject.key.attempt, at_unix_nanos)
        }))
    }

    fn ended<'a>(&'a self, subject: &'a Subject, ending: &'a Ending) -> BoxFuture<'a, ()> {
        Box::pin(self.until_written(subject, "end", move |current| {
            build_end(current, subject.key.attempt, ending, Timestamp::now())
        }))
    }
}
