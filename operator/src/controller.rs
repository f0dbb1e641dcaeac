//! The controller: one pod per attempt, and a correct status.
//!
//! One file per step: [`observe`] the pod, [`validate`] the spec, decide on the [`phase`], write the
//! [`status`], then [`build`] and [`apply`] the pod or [`cleanup`]. The status is written before the
//! action: an attempt is named there before its pod is created, and ended there before its pod is deleted. Only the leader
//! runs the controller.

mod apply;
pub mod bridge;
mod build;
mod cleanup;
pub(crate) mod error;
mod handover;
mod in_memory;
pub(crate) mod metrics;
pub(crate) mod observe;
mod queue;
pub(crate) mod validate;
mod watch;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, Resource, ResourceExt};
use remoteprocess_api::{RemoteProcess, RemoteProcessStatus, names};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::{info, instrument, warn};

use apply::Applied;
pub use build::{AgentSettings, Handover};
pub(crate) use build::{Profile, build_pod};
use error::Error;
use handover::Detected;
use in_memory::InMemory;
use metrics::metrics;
use queue::{Limits, Queue};
pub(crate) use validate::quantity;

use crate::backoff::Backoff;
use crate::directory::{Directory, Scope};
use crate::phase::pod::Refusal;
use crate::phase::{self, Decision, Memory, Situation};
use crate::report::Reporter;
use crate::status::{self, Written};
use crate::trace;

/// Number of objects reconciled at the same time. What hangs in one namespace leaves eight places to others.
const CONCURRENCY: Limits = Limits {
    all: 32,
    of_one_namespace: 24,
};
/// A process that has not ended is reconciled this often even if no event arrives.
const RESYNC: Duration = Duration::from_secs(60);
/// After this many failures in a row the cache is not trusted.
const DISTRUST: u32 = 4;
/// First and longest wait after the API server refused a pod.
const REFUSED_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The controller's configuration.
#[derive(Clone)]
pub struct Config {
    /// Settings of new agents. Their bundle is replaced by `ca_bundle` for each pod.
    pub agent: AgentSettings,
    /// Returns the certificates that are trusted now, PEM.
    pub ca_bundle: Arc<dyn Fn() -> String + Send + Sync>,
    /// Namespaces whose processes are reconciled; none: all.
    pub namespaces: Vec<String>,
    /// Whether there are traces, so that programs get `TRACEPARENT`.
    pub traces: bool,
}

/// What each reconcile needs.
struct Context {
    client: Client,
    config: Config,
    pods: Store<Pod>,
    in_memory: InMemory,
    reporter: Reporter,
    detected: Detected,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

/// Reconciles all processes of `directory`, which the relay keeps up to date, until `shutdown`; running reconciles
/// finish first.
pub async fn run(client: Client, config: Config, directory: Directory, shutdown: CancellationToken) {
    metrics().leading.set(1);
    let _not_leading = NotLeading;
    let in_memory = InMemory::default();
    let reporter = Reporter::new(client.clone());
    let detected = Detected::default();
    let loops = Scope::of(&config.namespaces).into_iter().map(|scope| {
        let watches = watch::start(&client, &scope, &directory, in_memory.clone());
        let context = Context {
            client: client.clone(),
            config: config.clone(),
            pods: watches.pods,
            in_memory: in_memory.clone(),
            reporter: reporter.clone(),
            detected: detected.clone(),
            clock: Arc::new(Timestamp::now),
        };
        let triggers = watches.triggers.take_until(shutdown.clone().cancelled_owned());
        let context = Arc::new(context);
        reconcile_all(directory.clone(), triggers, move |reference, process| {
            pass(reference, process, context.clone())
        })
    });
    tokio::select! {
        _ = join_all(loops) => {}
        () = detected.keep(client.clone()) => {}
    }
}

/// Resets the gauge however the term ends, also if it is dropped.
struct NotLeading;

impl Drop for NotLeading {
    fn drop(&mut self) {
        metrics().leading.set(0);
    }
}

/// A cache of objects by name.
trait Cache<K: Resource<DynamicType = ()>> {
    /// The object as it was last reported.
    fn get(&self, reference: &ObjectRef<K>) -> Option<Arc<K>>;
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Cache<K> for Store<K> {
    fn get(&self, reference: &ObjectRef<K>) -> Option<Arc<K>> {
        Self::get(self, reference)
    }
}

impl Cache<RemoteProcess> for Directory {
    fn get(&self, reference: &ObjectRef<RemoteProcess>) -> Option<Arc<RemoteProcess>> {
        Self::get(
            self,
            reference.namespace.as_deref().unwrap_or_default(),
            &reference.name,
        )
    }
}

/// Makes a `pass` over each object of `triggers` until the stream ends. Not with the queue of kube, which takes any of the
/// objects that wait: those of one namespace could delay all others.
async fn reconcile_all<K, P>(
    objects: impl Cache<K>,
    triggers: impl Stream<Item = ObjectRef<K>>,
    pass: impl Fn(ObjectRef<K>, Arc<K>) -> P,
) where
    K: Resource<DynamicType = ()> + Clone + 'static,
    ObjectRef<K>: queue::Key,
    P: Future<Output = (ObjectRef<K>, Option<Duration>)>,
{
    let mut triggers = pin!(triggers);
    let (mut queue, mut running) = (Queue::new(CONCURRENCY), FuturesUnordered::new());
    loop {
        queue.release(Instant::now());
        while let Some(reference) = queue.next() {
            match objects.get(&reference) {
                Some(object) => running.push(pass(reference, object)),
                None => queue.done(reference, None),
            }
        }
        let next_release = queue.next_release();
        tokio::select! {
            trigger = triggers.next() => match trigger {
                Some(reference) => queue.add(reference),
                None => break,
            },
            Some((reference, requeue_after)) = running.next() => {
                queue.done(reference, requeue_after.map(|after| Instant::now() + after));
            }
            () = sleep_until(next_release.unwrap_or_else(Instant::now).into()), if next_release.is_some() => {}
        }
    }
    while running.next().await.is_some() {}
}

/// Reconciles one process. Returns when to do it again if nothing changes.
async fn pass(
    reference: ObjectRef<RemoteProcess>,
    process: Arc<RemoteProcess>,
    context: Arc<Context>,
) -> (ObjectRef<RemoteProcess>, Option<Duration>) {
    let requeue_after = match measured(reconcile(process.clone(), context.clone())).await {
        Ok(requeue_after) => requeue_after,
        Err(error) => Some(retry(&process, &error, &context)),
    };
    (reference, requeue_after)
}

async fn measured<T>(reconcile: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let outcome = reconcile.await;
    metrics().duration.observe(began.elapsed().as_secs_f64());
    outcome
}

/// When to retry after a failed reconcile.
fn retry(process: &RemoteProcess, error: &Error, context: &Context) -> Duration {
    metrics().count_reconcile(error.category());
    let failures = context.in_memory.count_failure(process);
    if !matches!(error, Error::Conflict(_)) {
        let (namespace, name) = (process.namespace(), process.name_any());
        warn!(namespace, name, category = error.category(), failures, %error, "will try again");
    }
    error.retry(failures)
}

/// Reconciles one process. Returns when to do it again if nothing changes.
#[instrument(skip_all, fields(namespace = process.namespace(), name = process.name_any()))]
async fn reconcile(process: Arc<RemoteProcess>, context: Arc<Context>) -> Result<Option<Duration>, Error> {
    let Some(process) = believe(process, &context).await? else {
        return Ok(None);
    };
    let memory = context.in_memory.recall(&process);
    if is_behind(&process, &memory) {
        return Err(Error::Conflict("the cache does not show the newest attempt yet".into()));
    }
    let observed = observe::observe(&context.client, &context.pods, process.clone(), &memory).await?;
    let validated = validate::validate(&process);
    let situation = Situation {
        process: &process,
        pod: observed.sight(),
        node: observed.node,
        memory: &memory,
        now: (context.clock)(),
    };
    let decision = match &validated {
        Err(sentence) if !process.is_final() => phase::decide_invalid(&situation, &sentence.to_string()),
        _ => phase::decide(&situation),
    };
    let action = decision.action.clone();
    let (settled, requeue_after) = context.settle(process.clone(), decision).await?;
    match (action, &validated) {
        (phase::Action::CreatePod(attempt), Ok(validated)) => {
            if Arc::ptr_eq(&process, &settled) {
                context.confirm(&settled).await?;
            }
            context.create(settled, validated, attempt).await
        }
        (phase::Action::DeletePod { name, uid, holder }, _) => {
            let namespace = process.namespace().unwrap_or_default();
            cleanup::delete_pod(&context.client, &namespace, &name, &uid).await?;
            if let Some(holder) = holder {
                context.reporter.report_held_pod(&settled, &name, &holder).await;
            }
            Ok(context.done(&settled, requeue_after))
        }
        (phase::Action::DeleteProcess, _) => {
            cleanup::delete_process(&context.client, &settled).await?;
            Ok(context.done(&settled, None))
        }
        _ => Ok(context.done(&settled, requeue_after)),
    }
}

/// The object from the cache, or from the API server if the cache is behind: a watch that has lost an event would never
/// report it. `None` when it is gone.
async fn believe(process: Arc<RemoteProcess>, context: &Context) -> Result<Option<Arc<RemoteProcess>>, Error> {
    if context.in_memory.failures(&process) < DISTRUST {
        return Ok(Some(process));
    }
    let api: Api<RemoteProcess> = Api::namespaced(context.client.clone(), &process.namespace().unwrap_or_default());
    let live = api.get_opt(&process.name_any()).await.map_err(Error::Observe)?;
    Ok(live
        .filter(|live| live.metadata.uid == process.metadata.uid)
        .map(Arc::new))
}

/// Whether the cached object is older than what this controller has done with it.
pub(crate) fn is_behind(process: &RemoteProcess, memory: &Memory) -> bool {
    let attempt = process.status.as_ref().and_then(RemoteProcessStatus::current_attempt);
    memory
        .created
        .as_ref()
        .is_some_and(|(created, _)| attempt.is_none_or(|attempt| attempt < *created))
}

impl Context {
    /// Writes the status, and reports a new phase or a long wait. Returns the updated object.
    async fn settle(
        &self,
        process: Arc<RemoteProcess>,
        decision: Decision,
    ) -> Result<(Arc<RemoteProcess>, Option<Duration>), Error> {
        self.in_memory.keep(&process, decision.memory);
        let settled = match self.write(&process, decision.status).await? {
            Some(written) => {
                self.reporter.report_phase(&process, &written).await;
                Arc::from(written)
            }
            None => process,
        };
        if let Some(count) = self.in_memory.see_wait(&settled, (self.clock)()) {
            self.reporter.report_wait(&settled, count).await;
        }
        Ok((settled, decision.requeue_after))
    }

    /// Writes `next` if it differs from what `process` shows; returns `None` if it does not. The write succeeds only for the
    /// version of the object on which the decision was based, so that it cannot overrule a grant that came in between.
    async fn write(
        &self,
        process: &RemoteProcess,
        next: RemoteProcessStatus,
    ) -> Result<Option<Box<RemoteProcess>>, Error> {
        if process.status.clone().unwrap_or_default() == next {
            return Ok(None);
        }
        match status::write(&self.client, names::CONTROLLER_MANAGER, process, next).await {
            Ok(Written::Done(written)) => Ok(Some(written)),
            Ok(Written::Conflict(message)) => Err(Error::Conflict(message)),
            Ok(Written::Gone) => Err(Error::Conflict("it is gone".into())),
            Err(source) => Err(Error::Status(source)),
        }
    }

    /// Fails if this is not the current object. A status that was just written is current; a cache may be behind, and
    /// show an attempt without its pod that has run since and whose pod is gone.
    async fn confirm(&self, process: &RemoteProcess) -> Result<(), Error> {
        let namespace = process.namespace().unwrap_or_default();
        let api: Api<RemoteProcess> = Api::namespaced(self.client.clone(), &namespace);
        let live = api
            .get_metadata_opt(&process.name_any())
            .await
            .map_err(Error::Observe)?;
        match live.is_some_and(|live| live.metadata.resource_version == process.metadata.resource_version) {
            true => Ok(()),
            false => Err(Error::Conflict(
                "the cache does not show the object as it is yet".into(),
            )),
        }
    }

    async fn create(
        &self,
        process: Arc<RemoteProcess>,
        validated: &validate::Validated<'_>,
        attempt: u32,
    ) -> Result<Option<Duration>, Error> {
        let agent = AgentSettings {
            ca_bundle: (self.config.ca_bundle)(),
            handover: self.detected.handover(),
            traceparent: self.config.traces.then(|| trace::traceparent(&process, attempt)),
            ..self.config.agent.clone()
        };
        let applied = apply::apply(&self.client, &process, validated, attempt, &agent).await;
        match self.say_in_the_end(&process, applied)? {
            Applied::Pod(pod) => {
                metrics().pods_created.inc();
                info!(attempt, pod = pod.name_any(), "pod created");
                self.in_memory.keep_created(&process, attempt, &pod);
                Ok(self.done(&process, None))
            }
            Applied::Leaving => Ok(self.done(&process, Some(REFUSED_RETRY.0))),
            Applied::Foreign(pod) => self.settle_refused(process, &phase::name_conflict(&pod)).await,
            Applied::Refused(refusal) => self.settle_refused(process, &refusal).await,
        }
    }

    /// Reports an error of the API server to the user if it comes repeatedly, as a refusal.
    fn say_in_the_end(&self, process: &RemoteProcess, applied: Result<Applied, Error>) -> Result<Applied, Error> {
        match applied {
            Err(Error::Apply(kube::Error::Api(status))) if self.in_memory.failures(process) >= DISTRUST => {
                warn!(%status.message, status.code, "the API server does not create the pod");
                Ok(Applied::Refused(Refusal::of_undecided(&status)))
            }
            applied => applied,
        }
    }

    /// Writes to the status why there is no pod, and retries later.
    async fn settle_refused(&self, process: Arc<RemoteProcess>, refusal: &Refusal) -> Result<Option<Duration>, Error> {
        metrics().count_reconcile(metrics::REFUSED);
        let refusals = self.in_memory.count_failure(&process);
        let requeue_after = Backoff::new(REFUSED_RETRY.0, REFUSED_RETRY.1).after(refusals);
        let memory = self.in_memory.recall(&process);
        let situation = Situation {
            process: &process,
            pod: phase::Sight::Missing,
            node: phase::NodeSight::default(),
            memory: &memory,
            now: (self.clock)(),
        };
        let decision = phase::decide_refused(&situation, refusal, requeue_after);
        self.settle(process.clone(), decision).await?;
        Ok(Some(requeue_after))
    }

    /// The reconcile succeeded. Returns when to do it again if nothing changes.
    fn done(&self, process: &RemoteProcess, requeue_after: Option<Duration>) -> Option<Duration> {
        metrics().count_reconcile(metrics::OK);
        if process.is_final() && requeue_after.is_none() {
            // Nothing more is decided about it.
            self.in_memory.forget(process);
        } else {
            self.in_memory.forget_failures(process);
        }
        requeue_after.or((!process.is_final()).then_some(RESYNC))
    }
}

#[cfg(test)]
mod tests;
