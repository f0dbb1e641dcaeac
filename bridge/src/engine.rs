//! The loop: messages become processes, results go back. It decides; the jobs do the calls.

mod gate;
mod jobs;
mod link;
mod orphans;
mod replay;
mod report;
mod results;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use remoteprocess_api::names::LABEL_TRIGGER_UID;
use remoteprocess_api::trigger::{Acknowledge, ReplayStatus};
use remoteprocess_api::{ProcessTrigger, RemoteProcess};
use remoteprocess_runtime::Gate as ReadyGate;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::kubernetes::{ApiError, Created, Kubernetes};
use crate::message::{self, Work};
use crate::process::build_process;
use crate::runs::{Known, Runs};
use crate::source::{Delivery, Receipt, Settings};
use crate::status::{Board, Count, Metrics};

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

    fn see_trigger(&mut self, event: watcher::Event<ProcessTrigger>) {
        let trigger = match event {
            watcher::Event::Init => {
                self.report.is_listed = false;
                return;
            }
            watcher::Event::InitDone => {
                self.is_gone |= !self.report.is_listed;
                return;
            }
            watcher::Event::Delete(trigger) => {
                self.is_gone |= trigger.uid() == self.trigger.uid();
                return;
            }
            watcher::Event::Apply(trigger) | watcher::Event::InitApply(trigger) => trigger,
        };
        if trigger.uid() != self.trigger.uid() || trigger.metadata.deletion_timestamp.is_some() {
            self.is_gone = true;
            return;
        }
        self.report.is_listed = true;
        self.trigger = Arc::new(trigger);
        self.board.observe(&self.trigger);
        if self.link.observe(self.trigger.clone()) {
            self.report.connecting();
            self.kept.clear();
        }
        self.report.see_test(&self.trigger, Timestamp::now());
        self.replays.see(&self.trigger, Timestamp::now());
    }

    fn see_process(&mut self, event: watcher::Event<DeserializeGuard<RemoteProcess>>) {
        let event = decoded(event);
        self.note_age(event.as_ref());
        let gone = event.map(|event| self.runs.apply(event)).unwrap_or_default();
        if self.runs.is_complete() {
            self.ready.open();
        }
        for name in gone {
            self.complete.remove(&name);
            self.results.forget(&name);
            // The bridge itself never deletes a process whose message is kept. The message makes it again.
            for receipt in self.kept.remove(&name).unwrap_or_default() {
                *self.in_hand.entry(name.clone()).or_default() += 1;
                let (name, put_back) = (name.clone(), jobs::put_back_deleted(receipt));
                self.settling.push(Box::pin(async move { (name, put_back.await) }));
            }
        }
    }

    /// What was created a short time before this bridge began counts for `policy.maxPerMinute`, too.
    fn note_age(&mut self, event: Option<&watcher::Event<RemoteProcess>>) {
        if self.runs.is_complete() {
            return;
        }
        match event {
            Some(watcher::Event::Init) => self.gate.forget_creations(),
            Some(watcher::Event::InitApply(process)) => {
                let created = process.metadata.creation_timestamp.as_ref().map(|time| time.0);
                let age = created.map(|created| Timestamp::now().duration_since(created));
                self.gate.existed(age, Instant::now());
            }
            _ => {}
        }
    }

    /// If the watch is forbidden, processes are not known, and no message is taken.
    fn watch_broke(&mut self, error: &watcher::Error) {
        tracing::warn!(%error, "the watch of the processes broke, will try again");
        if !self.runs.is_complete() {
            self.report.watch_error = Some(error.to_string());
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

    fn take(&mut self, delivery: Delivery) {
        self.board.received(Timestamp::now());
        let Delivery { message, receipt } = delivery;
        match message::read(&message, &self.trigger.name_any(), &self.trigger.spec) {
            Err(poison) => self.refuse(String::new(), message, receipt, poison.0),
            Ok(work) => self.start(work, receipt),
        }
    }

    fn start(&mut self, work: Work, receipt: Box<dyn Receipt>) {
        let process = build_process(&self.trigger, &work);
        let name = process.name_any();
        *self.in_hand.entry(name.clone()).or_default() += 1;
        let is_running = self.runs.known(&name) == Known::Running;
        if is_running && !self.keeps() && self.complete.contains(&name) {
            self.board.count(Count::Duplicate, 1);
            let settle = jobs::settle_running(receipt, name.clone());
            self.settling.push(Box::pin(async move { (name, settle.await) }));
            return;
        }
        let intake = Intake {
            process,
            message: work.message,
            receipt,
        };
        self.intake = Some(Box::pin(jobs::create(self.kubernetes.clone(), intake)));
    }

    /// Whether messages are settled when their process has ended.
    fn keeps(&self) -> bool {
        self.trigger.spec.acknowledge() == Acknowledge::Finished && self.link.keeps_messages()
    }

    /// Whether the broker is to dispose of the messages of failed processes in its own manner.
    fn rejects_failures(&self) -> bool {
        self.keeps() && !has_dead_letter_address(&self.trigger)
    }

    fn created(&mut self, intake: Intake, created: Result<Created, ApiError>) {
        let name = intake.process.name_any();
        match created {
            Ok(Created::New(process)) => {
                self.gate.created(&name, Instant::now());
                self.board.count(Count::Started, 1);
                self.runs.created(&name);
                self.settle(name, intake, *process);
            }
            Ok(Created::Exists(process)) => {
                self.gate.accepted();
                self.board.count(Count::Duplicate, 1);
                if process.is_final() {
                    self.settle_ended(name, intake, *process);
                } else {
                    self.runs.created(&name);
                    self.settle(name, intake, *process);
                }
            }
            Ok(Created::Foreign) => {
                let reason = format!("the name {name} belongs to a process that is not of this trigger");
                self.refuse(name, intake.message, intake.receipt, reason);
            }
            Err(error @ ApiError::Invalid(_)) => {
                let reason = error.to_string();
                self.report.invalid = Some(error);
                self.refuse(name, intake.message, intake.receipt, reason);
            }
            Err(ApiError::Forbidden(said)) if self.gate.is_refused_for_good(&name, &said, Instant::now()) => {
                let reason = format!("a policy of the cluster does not let the process be created: {said}");
                self.refuse(name, intake.message, intake.receipt, reason);
            }
            Err(error) => {
                let delay = self.gate.delay(&name, Instant::now());
                let put_back = jobs::put_back(intake.receipt, error, delay);
                self.settling.push(Box::pin(async move { (name, put_back.await) }));
            }
        }
    }

    fn settle(&mut self, name: String, intake: Intake, process: RemoteProcess) {
        self.report.invalid = None;
        let Some(publisher) = self.link.publisher() else {
            // The source was lost in the meantime: the broker delivers the message again.
            self.release(&name);
            return;
        };
        let settle = jobs::settle(self.kubernetes.clone(), publisher, intake, process, self.keeps());
        self.settling.push(Box::pin(async move { (name, settle.await) }));
    }

    fn settle_ended(&mut self, name: String, intake: Intake, process: RemoteProcess) {
        let Some(publisher) = self.link.publisher() else {
            self.release(&name);
            return;
        };
        let settle = jobs::settle_ended(
            self.kubernetes.clone(),
            publisher,
            intake,
            process,
            self.rejects_failures(),
        );
        self.settling.push(Box::pin(async move { (name, settle.await) }));
    }

    fn refuse(&mut self, name: String, message: message::Message, receipt: Box<dyn Receipt>, reason: String) {
        tracing::warn!(process = name, reason, "a message is refused");
        let Some(publisher) = self.link.publisher() else {
            self.release(&name);
            return;
        };
        let message = message.into_dead_letter(&replay::full_name(&self.trigger), None);
        let refuse = jobs::refuse(publisher, message, receipt, reason);
        self.settling.push(Box::pin(async move { (name, refuse.await) }));
    }

    fn settled(&mut self, name: &str, settled: Settled) {
        self.release(name);
        match settled {
            Settled::Acknowledged => {
                self.note_complete(name);
            }
            Settled::Kept(kept) => {
                self.note_complete(name);
                if self.runs.is_done(name) {
                    self.settle_kept(name, vec![kept], None);
                } else {
                    self.kept.entry(name.to_owned()).or_default().push(kept);
                }
            }
            Settled::Refused { dead_lettered } => {
                self.report.stuck = None;
                // A webhook has told the sender, and has counted that.
                if dead_lettered || self.link.keeps_messages() {
                    self.board.count(Count::DeadLettered, 1);
                }
            }
            Settled::Stuck(error) => {
                tracing::warn!(process = name, %error, "a message cannot be dead-lettered, will try again");
                self.report.stuck = Some((error, Instant::now()));
            }
            Settled::PutBack(error) => {
                tracing::warn!(process = name, %error, "a message is put back");
                self.gate.refused(error, Instant::now());
            }
            Settled::Lost(error) => tracing::warn!(process = name, %error, "a message was not settled"),
        }
    }

    fn note_complete(&mut self, name: &str) {
        if self.runs.known(name) == Known::Running {
            self.complete.insert(name.to_owned());
        }
    }

    fn release(&mut self, name: &str) {
        if let Some(count) = self.in_hand.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.in_hand.remove(name);
            }
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

/// Whether failed messages have an address of their own.
fn has_dead_letter_address(trigger: &ProcessTrigger) -> bool {
    let source = &trigger.spec.source;
    let nats = source
        .nats
        .as_ref()
        .and_then(|source| source.dead_letter_subject.as_ref());
    let rabbitmq = source
        .rabbitmq
        .as_ref()
        .and_then(|source| source.dead_letter_exchange.as_ref());
    let pubsub = source
        .pubsub
        .as_ref()
        .and_then(|source| source.dead_letter_topic.as_ref());
    nats.or(rabbitmq).or(pubsub).is_some()
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

/// The event with its process; `None` if that does not decode.
fn decoded(event: watcher::Event<DeserializeGuard<RemoteProcess>>) -> Option<watcher::Event<RemoteProcess>> {
    use watcher::Event;
    let decode = |object: DeserializeGuard<RemoteProcess>| {
        object
            .0
            .inspect_err(|invalid| tracing::warn!(name = ?invalid.metadata.name, error = invalid.error, "skipping an object that does not decode"))
            .ok()
            .map(|mut process| {
                process.metadata.managed_fields = None;
                process
            })
    };
    Some(match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(decode(object)?),
        Event::Apply(object) => Event::Apply(decode(object)?),
        Event::Delete(object) => Event::Delete(decode(object)?),
    })
}
