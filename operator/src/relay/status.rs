//! What the relay writes into the status of a process: the grant, the start, the end with its seal.
//!
//! Pure functions add what was learned to the status of the object as it is ([`facts`]). Phase and conditions that follow
//! from it are set in the same write ([`phase::tell`]). [`Recorder`] writes it for the version of the object that it was
//! made from, and tries again until it is done or the object is gone.

mod archived;
mod condition;
mod end;
mod event;
mod facts;
pub mod reason;
mod tail;

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::{RemoteProcess, RemoteProcessStatus, identifier, names};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

pub(crate) use archived::archived_attempt;
pub use condition::build_condition;
pub use end::{exit_from_status, known_end};
pub use facts::{Claim, Decision, build_end, build_fact, decide_grant};

use super::archive::Manifest;
use super::attempt::Subject;
use super::live::{Fact, OutputCondition, Record};
use crate::backoff::Backoff;
use crate::phase;
use crate::relay::metrics::metrics;
use crate::report::Reporter;
use crate::status::{self, Written};
use crate::timeline::{self, Marks};

/// Pauses between retries of a write.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
/// Pause after another writer's change came in between.
const CONFLICT: Duration = Duration::from_millis(10);
/// Limit for one request.
const CALL: Duration = Duration::from_secs(10);
/// Pauses between tries of a write that the API server refuses.
const DENIED: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(300));
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
    /// The API server refuses the request, and will refuse it again until the cause is removed.
    #[error("the API server refuses the request")]
    Denied(#[source] kube::Error),
    /// The object is gone.
    #[error("the process has been deleted")]
    Gone,
    /// The grant is refused.
    #[error("{0}")]
    Refused(Cow<'static, str>),
}

/// A grant that this replica has written.
#[derive(Debug)]
pub struct Granted {
    process: Box<RemoteProcess>,
    /// The pod, if the grant needed it.
    pod: Option<Pod>,
}

/// Writes as field manager `remoteprocess-relay`. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    replica: String,
    reporter: Reporter,
}

impl Recorder {
    /// A recorder for the replica of this name.
    #[must_use]
    pub fn new(client: Client, replica: String) -> Self {
        let reporter = Reporter::new(client.clone());
        Self {
            client,
            replica,
            reporter,
        }
    }

    /// Grants the start of an attempt to the agent of its pod: when this returns `Ok`, the grant is in the status. `None`
    /// if it was there before.
    /// `known` is the object from a watch; the resourceVersion of the write checks that it is current.
    ///
    /// # Errors
    /// When the grant is refused, or the API server does not answer.
    pub async fn grant(&self, known: &RemoteProcess, claim: &Claim) -> Result<Option<Granted>, Error> {
        let (namespace, name) = (known.namespace().unwrap_or_default(), known.name_any());
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), &namespace);
        let (mut current, mut is_known_only, mut pod) = (known.clone(), true, None);
        for _ in 0..GRANT_TRIES {
            match decide_grant(&current, claim, &self.replica, Timestamp::now(), pod.as_ref()) {
                Decision::CheckPod(of_attempt) => {
                    pod = Some(self.check_pod(&namespace, &of_attempt, claim).await?);
                    continue;
                }
                Decision::Write(next) => match bounded(self.write(&current, *next)).await? {
                    Written::Done(process) => return Ok(Some(Granted { process, pod })),
                    Written::Conflict(_) => {}
                    Written::Gone => return Err(Error::Gone),
                },
                // A watch may be behind: only a write proves that it is not.
                Decision::Granted | Decision::Refused(_) if is_known_only => {}
                Decision::Granted => return Ok(None),
                Decision::Refused(reason) => return Err(Error::Refused(reason.into())),
            }
            current = match bounded(api.get_opt(&name)).await? {
                Some(current) if current.uid().as_deref() == Some(&claim.uid) => current,
                _ => return Err(Error::Gone),
            };
            is_known_only = false;
        }
        Err(Error::Api(None))
    }

    /// Measures and traces the steps up to a grant. Reads the pod if the grant did not need it, so call this where nothing waits.
    pub(crate) async fn tell_start(&self, granted: Granted, number: u32, marks: Marks) {
        let Granted { process, pod } = granted;
        let Some(attempt) = process.status.as_ref().and_then(|status| status.attempt(number)) else {
            return;
        };
        let pod = match (pod, &attempt.pod_name) {
            (None, Some(name)) => self.pod(&process.namespace().unwrap_or_default(), name).await,
            (pod, _) => Ok(pod),
        };
        let pod = pod.ok().flatten().filter(|pod| pod.uid() == attempt.pod_uid);
        let marks = Marks {
            scheduled: pod.as_ref().and_then(timeline::scheduled_at),
            ..marks
        };
        status::tell_steps(&process, attempt, &timeline::before_grant(&process, attempt, &marks));
    }

    /// The pod of an attempt, if it is the pod of the claim. The grant takes its UID and its node from it.
    async fn check_pod(&self, namespace: &str, name: &str, claim: &Claim) -> Result<Pod, Error> {
        let pod = self.pod(namespace, name).await?.filter(|pod| {
            pod.uid().as_deref() == Some(&claim.pod_uid)
                && pod.owner_references().iter().any(|owner| owner.uid == claim.uid)
        });
        pod.ok_or(Error::Refused("this pod is not the pod of this attempt".into()))
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

    /// When a namespace was created; `None` if there is none of this name.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn namespace_created(&self, name: &str) -> Result<Option<Timestamp>, Error> {
        if !identifier::is_namespace(name) {
            return Ok(None);
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = bounded(api.get_opt(name)).await?;
        Ok(namespace
            .and_then(|namespace| namespace.metadata.creation_timestamp)
            .map(|created| created.0))
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
        build: impl Fn(&RemoteProcess) -> Option<RemoteProcessStatus>,
    ) {
        let (mut backoff, mut denied) = (BACKOFF, DENIED);
        loop {
            let pause = match self.try_to_write(subject, &build).await {
                Ok(None | Some(Written::Done(_))) => return,
                Ok(Some(Written::Gone)) => {
                    info!(uid = subject.key.uid, what, "the object is gone: not recorded");
                    return;
                }
                Ok(Some(Written::Conflict(_))) => CONFLICT,
                Err(Error::Denied(error)) => {
                    warn!(
                        uid = subject.key.uid,
                        what,
                        error = &error as &dyn std::error::Error,
                        "the API server refuses to record this; remove the cause it names"
                    );
                    metrics().status_refused.inc();
                    let event = event::of_refusal(subject, &self.replica, what, &error, Timestamp::now());
                    self.publish(subject, &event).await;
                    denied.pause()
                }
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

    /// `None` where there is nothing to write.
    async fn try_to_write(
        &self,
        subject: &Subject,
        build: impl Fn(&RemoteProcess) -> Option<RemoteProcessStatus>,
    ) -> Result<Option<Written>, Error> {
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), &subject.namespace);
        let current = bounded(api.get_opt(&subject.name)).await?;
        let Some(current) = current.filter(|current| current.uid().as_deref() == Some(&subject.key.uid)) else {
            return Ok(Some(Written::Gone));
        };
        let Some(learned) = build(&current) else {
            return Ok(None);
        };
        let written = bounded(self.write(&current, phase::tell(&current, learned, Timestamp::now()))).await?;
        if let Written::Done(written) = &written {
            // An Event is news: an API server that does not answer must not hold up what follows.
            let _ = timeout(CALL, self.reporter.report_phase(&current, written)).await;
        }
        Ok(Some(written))
    }

    async fn write(&self, current: &RemoteProcess, next: RemoteProcessStatus) -> kube::Result<Written> {
        status::write(&self.client, names::RELAY_MANAGER, current, next).await
    }
}

/// An API server that does not answer a request in time counts as unavailable.
async fn bounded<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match timeout(CALL, call).await {
        Ok(Err(kube::Error::Api(status))) if is_refusal(status.code) => Err(Error::Denied(kube::Error::Api(status))),
        Ok(answered) => answered.map_err(|error| Error::Api(Some(error))),
        Err(_) => Err(Error::Api(None)),
    }
}

/// Whether the same request gets the same answer again, as from a policy, a missing permission or the schema. A conflict
/// (409), too many requests (429) and an identity that is not known yet (401) pass.
fn is_refusal(code: u16) -> bool {
    matches!(code, 400 | 403 | 405 | 406 | 413 | 415 | 422)
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

    fn ended<'a>(&'a self, subject: &'a Subject, manifest: &'a Manifest, tail: &'a [u8]) -> BoxFuture<'a, ()> {
        Box::pin(self.until_written(subject, "end", move |current| {
            build_end(current, subject.key.attempt, manifest, tail, Timestamp::now())
        }))
    }
}

#[cfg(test)]
mod tests;
