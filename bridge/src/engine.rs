//! The loop: messages become processes, results go back. It decides; the jobs do the calls.

mod gate;
mod intake;
mod jobs;
mod link;
mod orphans;
mod replay;
mod report;
mod results;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use remoteprocess_api::names::LABEL_TRIGGER_UID;
use remoteprocess_api::trigger::ReplayStatus;
use remoteprocess_api::{ProcessTrigger, RemoteProcess};
use remoteprocess_runtime::Gate as ReadyGate;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::kubernetes::{ApiError, Created, Kubernetes};
use crate::runs::{Known, Runs};
use crate::source::{Receipt, Settings};
use crate::status::{Board, Metrics};

pub use report::first_finding;

use gate::Gate;
use jobs::{Intake, Sent, Settled};
use link::{Link, News};

/// Number of objects in one page of a list.
const PAGE: u32 = 100;
/// Most messages in hand whose process exists.
const MAX_SETTLING: usize = 16;
/// How often what depends on time is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long the messages in hand may take at the end.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Which trigger, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace of the trigger.
    pub namespace: String,
    /// Its name.
    pub trigger: String,
    /// Of its source.
    pub settings: Settings,
}

/// What can happen.
enum Step {
    Trigger(Box<watcher::Result<watcher::Event<ProcessTrigger>>>),
    Process(Box<watcher::Result<watcher::Event<DeserializeGuard<RemoteProcess>>>>),
    Source(News),
    Created(Box<Intake>, Result<Created, ApiError>),
    Settled(String, Settled),
    Sent(Sent),
    Deleted(String, Result<(), ApiError>),
    Permission(Result<(), ApiError>),
    Written(serde_json::Value, Result<(), ApiError>),
    Tested(Result<(), crate::source::SourceError>),
    Replayed(ReplayStatus),
    Inspected(String, Result<bool, ApiError>),
    Tick,
}

/// Everything about one trigger.
struct Engine {
    kubernetes: Kubernetes,
    trigger: Arc<ProcessTrigger>,
    triggers: BoxStream<'static, watcher::Result<watcher::Event<ProcessTrigger>>>,
    processes: BoxStream<'static, watcher::Result<watcher::Event<DeserializeGuard<RemoteProcess>>>>,
    is_gone: bool,
    runs: Runs,
    board: Board,
    gate: Gate,
    link: Link,
    ready: ReadyGate,
    tick: Interval,
    intake: Option<BoxFuture<'static, (Intake, Result<Created, ApiError>)>>,
    settling: FuturesUnordered<BoxFuture<'static, (String, Settled)>>,
    /// Names of the processes of the messages in hand, with their number.
    in_hand: BTreeMap<String, usize>,
    /// Processes whose ConfigMap is known to exist.
    complete: BTreeSet<String>,
    /// The receipts of messages that are settled when their process has ended, by the name of the process.
    kept: BTreeMap<String, Vec<Box<dyn Receipt>>>,
    results: results::Results,
    permission: Option<BoxFuture<'static, Result<(), ApiError>>>,
    report: report::Report,
    replays: replay::Replays,
    orphans: orphans::Orphans,
}

/// Runs the bridge of a trigger until `shutdown`, or until the trigger is gone.
pub async fn run(client: Client, config: Config, metrics: Metrics, ready: ReadyGate, shutdown: CancellationToken) {
    let kubernetes = Kubernetes::new(client, &config.namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={}", config.trigger));
    let mut triggers = watcher::watcher(kubernetes.triggers(), only)
        .backoff(Backoff::default())
        .boxed();
    let Some(Some(trigger)) = shutdown.run_until_cancelled(first(&mut triggers)).await else {
        return;
    };
    let mut engine = Engine::new(kubernetes, Arc::new(trigger), triggers, &config, metrics, ready);
    loop {
        engine.prepare();
        let Some(step) = shutdown.run_until_cancelled(engine.next()).await else {
            break;
        };
        engine.handle(step).await;
        if engine.is_gone {
            tracing::info!("the trigger is gone");
            break;
        }
    }
    // What is not settled by then is delivered again.
    let _ = timeout(SHUTDOWN, engine.finish()).await;
}

/// The trigger, as soon as it can be read.
async fn first(
    events: &mut BoxStream<'static, watcher::Result<watcher::Event<ProcessTrigger>>>,
) -> Option<ProcessTrigger> {
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(trigger) | watcher::Event::InitApply(trigger)) => return Some(trigger),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot read the trigger"),
        }
    }
    None
}

impl Engine {
    fn new(
        kubernetes: Kubernetes,
        trigger: Arc<ProcessTrigger>,
        triggers: BoxStream<'static, watcher::Result<watcher::Event<ProcessTrigger>>>,
        config: &Config,
        metrics: Metrics,
        ready: ReadyGate,
    ) -> Self {
        let uid = trigger.uid().unwrap_or_default();
        let own = watcher::Config::default()
            .labels(&format!("{LABEL_TRIGGER_UID}={uid}"))
            .page_size(PAGE);
        let api = kube::Api::<DeserializeGuard<RemoteProcess>>::namespaced(kubernetes.client(), &config.namespace);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            processes: watcher::watcher(api, own).backoff(Backoff::default()).boxed(),
            triggers,
            is_gone: false,
            runs: Runs::default(),
            board: Board::new(&trigger, metrics),
            gate: Gate::new(),
            link: Link::new(trigger.clone(), config.settings.clone()),
            ready,
            tick,
            intake: None,
            settling: FuturesUnordered::new(),
            in_hand: BTreeMap::new(),
            complete: BTreeSet::new(),
            kept: BTreeMap::new(),
            results: results::Results::default(),
            permission: None,
            report: report::Report::default(),
            replays: replay::Replays::after(trigger.status.as_ref()),
            orphans: orphans::Orphans::default(),
            kubernetes,
            trigger,
        }
    }

    /// Starts what is due.
    fn prepare(&mut self) {
        let now = Instant::now();
        if self.permission.is_none() && self.gate.must_ask(now) {
            let kubernetes = self.kubernetes.clone();
            self.permission = Some(Box::pin(async move { kubernetes.check_permission().await }));
        }
        self.start_results();
        self.tell(now);
    }

    /// Number of processes that have not ended, with those that are being created.
    fn running(&self) -> usize {
        let new = self.in_hand.keys().filter(|name| self.runs.known(name) == Known::No);
        self.runs.running() + new.count()
    }

    /// Waits for what happens next. Cancel-safe: nothing that has happened is lost.
    async fn next(&mut self) -> Step {
        let is_free = self.intake.is_none() && self.settling.len() < MAX_SETTLING;
        let takes = is_free && self.report.closed.is_none();
        tokio::select! {
            Some(event) = self.triggers.next() => Step::Trigger(Box::new(event)),
            Some(event) = self.processes.next() => Step::Process(Box::new(event)),
            (intake, created) = or_pending(&mut self.intake) => Step::Created(Box::new(intake), created),
            Some((name, settled)) = self.settling.next() => Step::Settled(name, settled),
            Some(sent) = self.results.sending.next() => Step::Sent(sent),
            Some((name, deleted)) = self.results.deleting.next() => Step::Deleted(name, deleted),
            permission = or_pending(&mut self.permission) => Step::Permission(permission),
            (status, written) = or_pending(&mut self.report.writing) => Step::Written(status, written),
            tested = or_pending(&mut self.report.testing) => Step::Tested(tested),
            replayed = or_pending(&mut self.replays.running) => Step::Replayed(replayed),
            Some((name, inspected)) = self.orphans.inspecting.next() => Step::Inspected(name, inspected),
            _ = self.tick.tick() => Step::Tick,
            news = self.link.next(takes) => Step::Source(news),
        }
    }

    async fn handle(&mut self, step: Step) {
        match step {
            Step::Trigger(event) => match *event {
                Ok(event) => self.see_trigger(event),
                Err(error) => tracing::warn!(%error, "the watch of the trigger broke, will try again"),
            },
            Step::Process(event) => match *event {
                Ok(event) => self.see_process(event),
                Err(error) => self.watch_broke(&error),
            },
            Step::Source(news) => self.hear(news),
            Step::Created(intake, created) => self.created(*intake, created),
            Step::Settled(name, settled) => self.settled(&name, settled),
            Step::Sent(sent) => self.sent(sent),
            Step::Deleted(name, deleted) => self.results.deleted(&name, deleted),
            Step::Permission(Ok(())) => self.gate.permitted(),
            Step::Permission(Err(error)) => self.gate.refused(error, Instant::now()),
            Step::Written(status, written) => self.written(status, written),
            Step::Tested(tested) => self.report.tested(tested),
            Step::Replayed(replayed) => {
                self.replays.ended();
                self.board.replayed(replayed);
            }
            Step::Inspected(name, inspected) => self.inspected(name, inspected),
            Step::Tick => self.on_tick().await,
        }
    }

    fn written(&mut self, status: serde_json::Value, written: Result<(), ApiError>) {
        self.report.write_failed = written.is_err();
        match written {
            Ok(()) => self.board.written(status),
            Err(error) => tracing::warn!(%error, "cannot write the status of the trigger"),
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Opened => {
                self.report.connected();
                self.report.stuck = None;
            }
            News::Lost(error) => {
                tracing::warn!(%error, reason = %error.reason, "the source is lost, will try again");
                self.report.lost(error);
                // The broker delivers these again, with new receipts.
                self.kept.clear();
            }
            News::Delivered(delivery) => self.take(delivery),
        }
    }

    /// Brings what is in hand to its end, and writes the status a last time.
    async fn finish(&mut self) {
        if let Some(intake) = self.intake.take() {
            let (intake, created) = intake.await;
            self.created(intake, created);
        }
        while let Some((name, settled)) = self.settling.next().await {
            self.settled(&name, settled);
        }
        while let Some(sent) = self.results.sending.next().await {
            self.sent(sent);
        }
        self.board.replaying(self.replays.progress());
        if let Some(status) = self.board.unwritten().filter(|_| !self.is_gone) {
            let _ = self
                .kubernetes
                .apply_status::<ProcessTrigger>(&self.trigger.name_any(), &status)
                .await;
        }
    }
}

/// The result of a future that may not be there. It is gone afterwards.
async fn or_pending<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(running) => {
            let output = running.await;
            *future = None;
            output
        }
        None => std::future::pending().await,
    }
}
