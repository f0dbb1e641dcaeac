//! The environment of the operator: kubelet, agents and garbage collector, played; and the actions of a user. All of
//! them use the API server directly, without the operator's faulty connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::{AttemptStatus, Phase, RemoteProcess, names};
use remoteprocess_operator::relay::status::Recorder;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::line::Line;
use super::scenarios::Scenario;

/// Name of the object in each run.
pub(super) const NAME: &str = "job";
/// How long a user waits after a call that failed.
const AGAIN: Duration = Duration::from_millis(50);

/// One replica of the operator, as agents know it.
#[derive(Clone)]
pub(super) struct Replica {
    pub recorder: Recorder,
    pub dead: CancellationToken,
}

/// Everything around the operator in one run.
pub(super) struct World {
    pub namespace: String,
    pub scenario: &'static Scenario,
    pub server: Client,
    line: Arc<Line>,
    seen: watch::Sender<Seen>,
    replicas: watch::Receiver<Option<Replica>>,
    journal: Mutex<Journal>,
}

/// The current state.
#[derive(Clone, Default)]
pub(super) struct Seen {
    pub process: Option<RemoteProcess>,
    /// By uid.
    pub pods: BTreeMap<String, Pod>,
    /// The user has released what the scenario holds.
    pub is_released: bool,
    /// Starts that were refused.
    pub refusals: usize,
}

impl Seen {
    pub(super) fn phase(&self) -> Option<Phase> {
        self.process.as_ref()?.status.as_ref()?.phase
    }

    pub(super) fn reason(&self) -> Option<String> {
        Some(self.process.as_ref()?.status.as_ref()?.reason?.to_string())
    }

    /// The record of an attempt of the process with this uid.
    pub(super) fn attempt(&self, uid: &str, number: u32) -> Option<&AttemptStatus> {
        let process = self.process.as_ref()?;
        if process.uid().as_deref() != Some(uid) {
            return None;
        }
        process.status.as_ref()?.attempt(number)
    }

    /// Whether the process has ended and all output is closed; or it is gone, and so are all its pods.
    fn is_over(&self) -> bool {
        let has_ended = |pod: &Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        let Some(process) = &self.process else {
            return self.pods.is_empty();
        };
        let attempts = process.status.iter().flat_map(|status| &status.attempts);
        let is_closed = |attempt: &AttemptStatus| {
            attempt.finished_at.is_some() && (attempt.granted_at.is_none() || attempt.output.is_some())
        };
        process.is_final() && self.pods.values().all(has_ended) && attempts.into_iter().all(is_closed)
    }
}

/// What must never happen twice, by uid of the process and number of the attempt.
#[derive(Default)]
struct Journal {
    launches: BTreeMap<(String, u32), usize>,
    pods: BTreeMap<(String, u32), BTreeSet<String>>,
}

impl World {
    pub(super) fn new(
        namespace: String,
        scenario: &'static Scenario,
        line: Arc<Line>,
        server: Client,
        replicas: watch::Receiver<Option<Replica>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            namespace,
            scenario,
            server,
            line,
            seen: watch::Sender::default(),
            replicas,
            journal: Mutex::default(),
        })
    }

    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.server.clone(), &self.namespace)
    }

    pub(super) fn processes(&self) -> Api<RemoteProcess> {
        Api::namespaced(self.server.clone(), &self.namespace)
    }

    /// Observes, and plays every pod. Returns only with an error.
    ///
    /// # Errors
    /// When the API server refuses a request of the world.
    pub(super) async fn live(self: &Arc<Self>) -> Result<()> {
        let mut pods = watcher(self.pods(), watcher::Config::default()).boxed();
        let mut processes = watcher(self.processes(), watcher::Config::default()).boxed();
        let mut lives = JoinSet::new();
        loop {
            tokio::select! {
                Some(event) = pods.next() => match event? {
                    Event::Apply(pod) | Event::InitApply(pod) => {
                        if self.see_pod(&pod)? {
                            lives.spawn(self.clone().live_pod(pod));
                        }
                    }
                    Event::Delete(pod) => self.seen.send_modify(|seen| {
                        seen.pods.remove(&pod.uid().unwrap_or_default());
                    }),
                    Event::Init | Event::InitDone => {}
                },
                Some(event) = processes.next() => match event? {
                    Event::Apply(process) | Event::InitApply(process) => {
                        self.line.saw(process.resource_version().unwrap_or_default());
                        self.seen.send_modify(|seen| seen.process = Some(process));
                    }
                    Event::Delete(process) => {
                        self.seen.send_modify(|seen| seen.process = None);
                        lives.spawn(self.clone().collect_garbage(process.uid().unwrap_or_default()));
                    }
                    Event::Init | Event::InitDone => {}
                },
                Some(life) = lives.join_next() => life.context("a life in the world")??,
            }
        }
    }

    /// Records a pod; returns true if it is new.
    fn see_pod(&self, pod: &Pod) -> Result<bool> {
        let uid = pod.uid().unwrap_or_default();
        let is_new = !self.seen.borrow().pods.contains_key(&uid);
        self.seen
            .send_modify(|seen| drop(seen.pods.insert(uid.clone(), pod.clone())));
        if is_new {
            let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            let of_attempt = journal.pods.entry(attempt_of(pod)?).or_default();
            of_attempt.insert(uid);
            if of_attempt.len() > 1 {
                bail!("a second pod of attempt {:?}: {of_attempt:?}", attempt_of(pod)?);
            }
        }
        Ok(is_new)
    }

    /// An agent launches its program.
    ///
    /// # Errors
    /// When the attempt was launched before.
    pub(super) fn launch(&self, uid: &str, attempt: u32) -> Result<()> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let launches = journal.launches.entry((uid.to_owned(), attempt)).or_default();
        *launches += 1;
        if *launches > 1 {
            bail!("attempt {attempt} was launched twice");
        }
        Ok(())
    }

    pub(super) fn refused(&self) {
        self.seen.send_modify(|seen| seen.refusals += 1);
    }

    /// Deletes what belonged to an object that is gone.
    async fn collect_garbage(self: Arc<Self>, uid: String) -> Result<()> {
        let selector = format!("{}={uid}", names::LABEL_UID);
        loop {
            let pods = self.pods().list(&ListParams::default().labels(&selector)).await?;
            for pod in pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
                gone_is_fine(self.pods().delete(&pod.name_any(), &DeleteParams::default()).await)?;
            }
            // A pod that is created in the meantime has no owner either.
            self.until(|seen| seen.pods.values().any(|pod| is_orphan(pod, &uid)).then_some(()))
                .await;
        }
    }

    /// Waits until this has an answer.
    pub(super) async fn until<T>(&self, ask: impl Fn(&Seen) -> Option<T>) -> T {
        let mut seen = self.seen.subscribe();
        loop {
            if let Some(answer) = ask(&seen.borrow_and_update()) {
                return answer;
            }
            // The sender lives as long as the world does.
            let _ = seen.changed().await;
        }
    }

    /// Waits until the process is in this phase.
    pub(super) async fn until_phase(&self, phase: Phase) {
        self.until(|seen| (seen.phase() == Some(phase)).then_some(())).await;
    }

    /// Waits until the process has this reason.
    pub(super) async fn until_reason(&self, reason: &str) {
        self.until(|seen| (seen.reason().as_deref() == Some(reason)).then_some(()))
            .await;
    }

    /// Waits until everything that can end has ended.
    pub(super) async fn until_over(&self) {
        self.until(|seen| seen.is_over().then_some(())).await;
    }

    pub(super) fn now(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Releases what the scenario holds.
    pub(super) fn release(&self) {
        self.seen.send_modify(|seen| seen.is_released = true);
    }

    /// Asks a living replica, and another one if it dies before it has answered.
    pub(super) async fn ask<T>(&self, call: impl Fn(Recorder) -> BoxFuture<'static, T>) -> T {
        let mut replicas = self.replicas.clone();
        loop {
            let living = replicas.wait_for(|replica| replica.as_ref().is_some_and(|one| !one.dead.is_cancelled()));
            let Some(replica) = living.await.ok().and_then(|replica| replica.clone()) else {
                return std::future::pending().await;
            };
            tokio::select! {
                answer = call(replica.recorder.clone()) => return answer,
                () = replica.dead.cancelled() => {}
            }
        }
    }

    /// The user creates the process, retrying while an object of the same name is being deleted.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub(super) async fn create(&self) -> Result<()> {
        let mut spec = json!({"image": "busybox", "command": ["id"]});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), (self.scenario.spec)()) {
            spec.extend(more);
        }
        let process = RemoteProcess {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            },
            spec: serde_json::from_value(spec)?,
            status: None,
        };
        loop {
            match self.processes().create(&PostParams::default(), &process).await {
                Ok(created) => {
                    is_in_progress(&created)?;
                    self.until(|seen| (seen.process.as_ref()?.uid() == created.uid()).then_some(()))
                        .await;
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.is_already_exists() => tokio::time::sleep(AGAIN).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The user sets the desired state with `kubectl patch`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub(super) async fn want(&self, state: &str) -> Result<()> {
        let params = PatchParams {
            field_manager: Some("kubectl-patch".to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(json!({"spec": {"desiredState": state}}));
        self.processes().patch(NAME, &params, &patch).await?;
        Ok(())
    }

    /// The user deletes the process.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub(super) async fn delete(&self) -> Result<()> {
        self.processes().delete(NAME, &DeleteParams::background()).await?;
        Ok(())
    }
}

fn is_orphan(pod: &Pod, uid: &str) -> bool {
    pod.labels().get(names::LABEL_UID).is_some_and(|owner| owner == uid) && pod.metadata.deletion_timestamp.is_none()
}

/// Uid of the process, and number of the attempt, that a pod is for.
pub(super) fn attempt_of(pod: &Pod) -> Result<(String, u32)> {
    let label = |name| pod.labels().get(name).context("a label of ours");
    Ok((label(names::LABEL_UID)?.clone(), label(names::LABEL_ATTEMPT)?.parse()?))
}

/// An object that is gone needs no further report: NotFound counts as success.
pub(super) fn gone_is_fine<T>(answer: kube::Result<T>) -> Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Fails if tools that wait by kstatus (`helm install --wait`, Flux) would consider an object current that no operator
/// has seen.
fn is_in_progress(created: &RemoteProcess) -> Result<()> {
    let observed = created.status.as_ref().and_then(|status| status.observed_generation);
    ensure!(
        observed == Some(-1),
        "a new object has the observed generation {observed:?}"
    );
    Ok(())
}
