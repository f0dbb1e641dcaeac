//! What the relay writes into the status of a process: the grant, the start, the end with its seal.
//!
//! Pure functions build the patches from the current object ([`patch`]); [`Recorder`] applies them, guarded by the
//! object's resourceVersion, and retries until that succeeds or the object is gone.

mod condition;
mod end;
mod event;
mod patch;
pub mod reason;
mod tail;

use std::net::IpAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::{RemoteProcess, identifier, names};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

pub use condition::build_condition;
pub use end::{exit_from_status, known_end};
pub use patch::{Claim, Decision, build_end, build_fact, decide_grant};

use super::attempt::Subject;
use super::live::{Ending, Fact, OutputCondition, Record};
use crate::backoff::Backoff;

/// Pauses between retries of a write.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
/// Pause after another writer's change came in between.
const CONFLICT: Duration = Duration::from_millis(10);
/// Limit for one request.
const CALL: Duration = Duration::from_secs(10);
/// Number of tries to write an Event.
const EVENT_TRIES: usize = 5;
/// Number of tries to write a grant before the agent is asked to come again.
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
    /// The grant is refused.
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
    /// `known` is the object from a watch; the resourceVersion of the write checks that it is current.
    ///
    /// # Errors
    /// When the grant is refused, or the API server does not answer.
    pub async fn grant(&self, known: &RemoteProcess, claim: &Claim) -> Result<(), Error> {
        let (namespace, name) = (known.namespace().unwrap_or_default(), known.name_any());
        let known = decide_grant(known, claim, &self.replica, Timestamp::now(), false);
        if let Decision::Write(patch) = known
            && let Written::Done = bounded(self.write(&namespace, &name, &patch)).await?
        {
            return Ok(());
        }
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), &namespace);
        let mut pod_checked = false;
        for _ in 0..GRANT_TRIES {
            let current = match bounded(api.get_opt(&name)).await? {
                Some(current) if current.uid().as_deref() == Some(&claim.uid) => current,
                _ => return Err(Error::Gone),
            };
            match decide_grant(&current, claim, &self.replica, Timestamp::now(), pod_checked) {
                Decision::Granted => return Ok(()),
                Decision::Refused(reason) => return Err(Error::Refused(reason)),
                Decision::CheckPod(pod) => {
                    self.check_pod(&namespace, &pod, claim).await?;
                    pod_checked = true;
                }
                Decision::Write(patch) => match bounded(self.write(&namespace, &name, &patch)).await? {
                    Written::Done => return Ok(()),
                    Written::Conflict => {}
                    Written::Gone => return Err(Error::Gone),
                },
            }
        }
        Err(Error::Api(None))
    }

    /// Reads the pod itself, because the controller has not recorded its uid yet.
    async fn check_pod(&self, namespace: &str, pod: &str, claim: &Claim) -> Result<(), Error> {
        let pod = self.pod(namespace, pod).await?;
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

    /// Sets `spec.desiredState: Stopped`, and records for whom and why.
    ///
    /// # Errors
    /// When the API server does not answer, or the object has been replaced.
    pub async fn stop(&self, namespace: &str, name: &str, uid: &str, user: &str, why: &str) -> Result<(), Error> {
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), namespace);
        // With the uid the API server refuses another object of the same name. An older reason is removed if there is
        // no new one.
        let why = Some(why).filter(|why| !why.is_empty());
        let annotations = json!({names::ANNOTATION_REASON: why, names::ANNOTATION_REQUESTED_BY: user});
        let metadata = json!({"uid": uid, "annotations": annotations});
        let patch = json!({"metadata": metadata, "spec": {"desiredState": "Stopped"}});
        let params = PatchParams {
            field_manager: Some(names::RELAY_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        bounded(api.patch(name, &params, &Patch::Merge(patch))).await.map(drop)
    }

    /// Writes an Event, unless it exists, with only a few tries: an Event is news, and no state that must be correct.
    async fn publish(&self, subject: &Subject, event: &Event) {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &subject.namespace);
        for _ in 0..EVENT_TRIES {
            match bounded(api.create(&PostParams::default(), event)).await {
                Ok(_) => return,
                Err(Error::Api(Some(kube::Error::Api(status)))) if matches!(status.code, 403 | 404 | 409) => return,
                Err(error) => debug!(%error, "cannot write an event"),
            }
            sleep(BACKOFF.longest()).await;
        }
    }

    /// Whether an agent in the pod of an attempt could still come: false when the pod is gone or has ended.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn has_pod(&self, namespace: &str, pod: &str) -> Result<bool, Error> {
        let pod = self.pod(namespace, pod).await?;
        let phase = pod.and_then(|pod| pod.status).and_then(|status| status.phase);
        Ok(phase.is_some_and(|phase| phase != "Succeeded" && phase != "Failed"))
    }

    /// The addresses of a pod of this attempt, as the API server knows them.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn pod_addresses(&self, subject: &Subject) -> Result<Vec<IpAddr>, Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &subject.namespace);
        let labels = format!("{}={}", names::LABEL_UID, subject.key.uid);
        let pods = bounded(api.list(&ListParams::default().labels(&labels))).await?;
        let mut of_it = pods
            .items
            .into_iter()
            .filter(|pod| pod.uid().as_deref() == Some(&subject.pod_uid));
        let addresses = of_it.next().and_then(|pod| pod.status?.pod_ips).unwrap_or_default();
        let parsed = addresses.iter().filter_map(|address| address.ip.parse().ok());
        Ok(parsed.map(|address: IpAddr| address.to_canonical()).collect())
    }

    /// Reads a pod by its name in a status. The name becomes part of the request's path, so an invalid one is no pod.
    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, Error> {
        if !identifier::is_name(name) {
            return Ok(None);
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        bounded(api.get_opt(name)).await
    }

    /// Builds a patch from the current object and writes it, until it is written or there is nothing to write to.
    async fn until_written(
        &self,
        subject: &Subject,
        what: &'static str,
        build: impl Fn(&RemoteProcess) -> Option<Value>,
    ) {
        let mut backoff = BACKOFF;
        loop {
            let pause = match self.try_to_write(subject, &build).await {
                Ok(Written::Done) => return,
                Ok(Written::Gone) => {
                    info!(uid = subject.key.uid, what, "the object is gone: not recorded");
                    return;
                }
                Ok(Written::Conflict) => CONFLICT,
                Err(error) => {
                    warn!(
                        uid = subject.key.uid,
                        what,
                        error = &error as &dyn std::error::Error,
                        "not recorded yet"
                    );
                    backoff.pause()
                }
            };
            sleep(pause).await;
        }
    }

    async fn try_to_write(
        &self,
        subject: &Subject,
        build: impl Fn(&RemoteProcess) -> Option<Value>,
    ) -> Result<Written, Error> {
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), &subject.namespace);
        match bounded(api.get_opt(&subject.name)).await? {
            Some(current) if current.uid().as_deref() == Some(&subject.key.uid) => match build(&current) {
                Some(patch) => bounded(self.write(&subject.namespace, &subject.name, &patch)).await,
                None => Ok(Written::Done),
            },
            _ => Ok(Written::Gone),
        }
    }

    async fn write(&self, namespace: &str, name: &str, patch: &Value) -> Result<Written, kube::Error> {
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams::apply(names::RELAY_MANAGER);
        match api.patch_status(name, &params, &Patch::Apply(patch)).await {
            Ok(_) => Ok(Written::Done),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Written::Conflict),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Written::Gone),
            Err(error) => Err(error),
        }
    }
}

/// An API server that does not answer a request in time counts as unavailable.
async fn bounded<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match timeout(CALL, call).await {
        Ok(answered) => answered.map_err(|error| Error::Api(Some(error))),
        Err(_) => Err(Error::Api(None)),
    }
}

impl Record for Recorder {
    fn learned<'a>(&'a self, subject: &'a Subject, fact: Fact) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(event) = event::build(subject, &self.replica, &fact, Timestamp::now()) {
                return self.publish(subject, &event).await;
            }
            let build = |current: &RemoteProcess| build_fact(current, subject.key.attempt, &fact);
            self.until_written(subject, "fact", build).await;
        })
    }

    fn noted<'a>(&'a self, subject: &'a Subject, notice: &'a OutputCondition) -> BoxFuture<'a, ()> {
        Box::pin(self.until_written(subject, "condition", move |current| {
            build_condition(current, subject.key.attempt, notice, Timestamp::now())
        }))
    }

    fn ended<'a>(&'a self, subject: &'a Subject, ending: &'a Ending) -> BoxFuture<'a, ()> {
        Box::pin(self.until_written(subject, "end", move |current| {
            build_end(current, subject.key.attempt, ending, Timestamp::now())
        }))
    }
}

#[cfg(test)]
mod tests;
