//! The loop: it watches the processes, gives workers to those with something to send, and tells how it goes.

mod report;

pub use report::first_finding;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use kube::core::{DeserializeGuard, Selector, SelectorExt as _};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_api};
use kube::{Client, ResourceExt as _};
use remoteprocess_api::sink::ProcessSinkSpec;
use remoteprocess_api::{ProcessSink, RemoteProcess};
use remoteprocess_runtime::Gate as ReadyGate;
use serde_json::Value;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::board::{Board, Metrics};
use super::book::{Book, Job};
use super::events::Author;
use super::link::Link;
use super::reader::OutputReader;
use super::steps::Planner;
use super::view::View;
use super::worker::{Report, Tools, Worker};
use crate::backoff::Backoff;
use crate::kubernetes::{ApiError, Kubernetes};
use crate::source::Secrets;

/// Number of objects in one page of a list.
const PAGE: u32 = 100;
/// Most processes whose events are sent at the same time: one event of each is in memory.
const MAX_WORKERS: usize = 32;
/// How often what depends on time is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long workers may take at the end to note how far they are.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Which sink, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace of the sink.
    pub namespace: String,
    /// Its name.
    pub sink: String,
    /// Where the Secrets are mounted.
    pub secrets: Secrets,
}

type SinkEvents = BoxStream<'static, watcher::Result<Event<ProcessSink>>>;
type ProcessEvents = BoxStream<'static, watcher::Result<Event<DeserializeGuard<RemoteProcess>>>>;

/// What can happen.
enum Happening {
    Sink(Box<watcher::Result<Event<ProcessSink>>>),
    Process(Box<watcher::Result<Event<DeserializeGuard<RemoteProcess>>>>),
    Ended(String, u64, Box<Report>),
    Turn,
    Written(Value, Result<(), ApiError>),
    Tick,
}

/// Everything about one sink.
struct Engine {
    kubernetes: Kubernetes,
    config: Config,
    reader: Arc<dyn OutputReader>,
    sink: Arc<ProcessSink>,
    sinks: SinkEvents,
    is_gone: bool,
    running: Running,
    board: Board,
    ready: ReadyGate,
    tick: Interval,
    report: report::State,
    writing: Option<BoxFuture<'static, (Value, Result<(), ApiError>)>>,
}

/// What depends on the spec: another one begins anew.
struct Running {
    processes: ProcessEvents,
    /// The watch has delivered all processes.
    is_complete: bool,
    /// `None`: the selector of the spec is none, and selects nothing.
    selector: Option<Selector>,
    book: Book,
    link: Link,
    tools: Arc<Tools>,
    /// Polled with the engine, and in no task of their own: none sends anything after the lease is lost.
    workers: FuturesUnordered<BoxFuture<'static, (String, u64, Report)>>,
}

/// Runs the bridge of a sink until `shutdown`, or until the sink is gone.
pub async fn run(
    client: Client,
    config: Config,
    reader: Arc<dyn OutputReader>,
    metrics: Metrics,
    ready: ReadyGate,
    shutdown: CancellationToken,
) {
    let kubernetes = Kubernetes::new(client, &config.namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={}", config.sink));
    let mut sinks = watch_api(kubernetes.sinks(), only).backoff(Backoff::default()).boxed();
    let Some(Some(sink)) = shutdown.run_until_cancelled(first(&mut sinks)).await else {
        return;
    };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut engine = Engine {
        running: Running::new(&kubernetes, &config, &reader, &sink.spec),
        board: Board::new(&sink, metrics),
        sink: Arc::new(sink),
        sinks,
        is_gone: false,
        kubernetes,
        config,
        reader,
        ready,
        tick,
        report: report::State::default(),
        writing: None,
    };
    while !engine.is_gone {
        engine.start_workers();
        let Some(happening) = shutdown.run_until_cancelled(engine.next()).await else {
            break;
        };
        engine.handle(happening).await;
    }
    // What is not noted by then is sent again.
    let _ = timeout(SHUTDOWN, engine.finish()).await;
    engine.say_last().await;
}

/// The sink, as soon as it can be read.
async fn first(events: &mut SinkEvents) -> Option<ProcessSink> {
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(sink) | Event::InitApply(sink)) => return Some(sink),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot read the sink"),
        }
    }
    None
}

impl Running {
    fn new(kubernetes: &Kubernetes, config: &Config, reader: &Arc<dyn OutputReader>, spec: &ProcessSinkSpec) -> Self {
        let api = kube::Api::<DeserializeGuard<RemoteProcess>>::namespaced(kubernetes.client(), &config.namespace);
        // All processes of the namespace: to a watch with a selector, a process that is not selected any more would be gone.
        let all = watcher::Config::default().page_size(PAGE);
        let planner = Planner {
            author: Author::new(&config.namespace, &config.sink),
            output: spec.output.clone(),
        };
        let name = format!("{}/{}", config.namespace, config.sink);
        Self {
            processes: watch_api(api, all).backoff(Backoff::default()).boxed(),
            is_complete: false,
            selector: selector(spec),
            book: Book::new(planner.clone()),
            link: Link::new(spec.destination.clone(), name, config.secrets.clone()),
            tools: Arc::new(Tools {
                kubernetes: kubernetes.clone(),
                sink: config.sink.clone(),
                planner,
                reader: reader.clone(),
                is_crowded: AtomicBool::new(false),
                urgent: AtomicUsize::new(0),
            }),
            workers: FuturesUnordered::new(),
        }
    }

    fn selects(&self, process: &RemoteProcess) -> bool {
        self.selector
            .as_ref()
            .is_some_and(|selector| selector.matches(process.labels()))
    }

    fn start(&mut self, job: Job) {
        let outbox = self.link.outbox();
        let (uid, number, stop) = (job.uid.clone(), job.number, job.stop.clone());
        let worker = Worker::new(self.tools.clone(), outbox, job);
        self.workers
            .push(Box::pin(async move { (uid, number, worker.run(stop).await) }));
    }

    fn see(&mut self, event: Event<DeserializeGuard<RemoteProcess>>, sink: &str) {
        match event {
            Event::Init => self.book.begin(),
            Event::InitDone => {
                self.book.complete();
                self.is_complete = true;
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let process = match decoded(object) {
                    Ok(process) => process,
                    Err(uid) => return self.book.keep(&uid),
                };
                match self.selects(&process) {
                    true => self.book.see(View::new(process, sink)),
                    false => self.book.forget(&process.uid().unwrap_or_default()),
                }
            }
            Event::Delete(object) => match decoded(object) {
                Ok(process) if self.selects(&process) => self.book.delete(&View::new(process, sink)),
                Ok(_) => {}
                Err(uid) => self.book.delete_unread(&uid),
            },
        }
    }
}

/// Which processes; `None` if the selector is none: the report says so.
fn selector(spec: &ProcessSinkSpec) -> Option<Selector> {
    match spec.selector.clone() {
        Some(selector) => Selector::try_from(selector).ok(),
        None => Some(Selector::default()),
    }
}

/// The object; its uid if it cannot be read.
fn decoded(object: DeserializeGuard<RemoteProcess>) -> Result<RemoteProcess, String> {
    object.0.map_err(|error| {
        tracing::warn!(%error, "cannot read a process");
        error.metadata.uid.unwrap_or_default()
    })
}

impl Engine {
    /// Gives workers to processes whose turn it is.
    fn start_workers(&mut self) {
        let now = Instant::now();
        let running = &mut self.running;
        // Before that, a process that is gone cannot be told from one that is still to come.
        if self.sink.spec.is_suspended() || !running.is_complete {
            return;
        }
        while running.workers.len() < MAX_WORKERS {
            let Some(job) = running.book.take(now) else { break };
            running.start(job);
        }
        let is_crowded = running.book.next_turn().is_some_and(|at| at <= now);
        running.tools.is_crowded.store(is_crowded, Ordering::Relaxed);
        let urgent = running.book.urgent(now, MAX_WORKERS);
        running.tools.urgent.store(urgent, Ordering::Relaxed);
    }

    /// Waits for what happens next. Cancel-safe: nothing that has happened is lost.
    async fn next(&mut self) -> Happening {
        let running = &mut self.running;
        let is_free = running.workers.len() < MAX_WORKERS && running.is_complete && !self.sink.spec.is_suspended();
        let turn = running.book.next_turn().filter(|_| is_free);
        tokio::select! {
            Some(event) = self.sinks.next() => Happening::Sink(Box::new(event)),
            Some(event) = running.processes.next() => Happening::Process(Box::new(event)),
            Some((uid, job, report)) = running.workers.next() => Happening::Ended(uid, job, Box::new(report)),
            (status, written) = or_pending(&mut self.writing) => Happening::Written(status, written),
            () = until(turn) => Happening::Turn,
            _ = self.tick.tick() => Happening::Tick,
        }
    }

    async fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Sink(event) => match *event {
                Ok(event) => self.see_sink(event).await,
                Err(error) => tracing::warn!(%error, "the watch of the sink broke, will try again"),
            },
            Happening::Process(event) => match *event {
                Ok(event) => {
                    self.report.watch_error = None;
                    self.running.see(event, &self.config.sink);
                    if self.running.is_complete {
                        self.ready.open();
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the watch of processes broke, will try again");
                    self.report.watch_error = Some((ApiError::of_watch(&error), Instant::now()));
                }
            },
            Happening::Ended(uid, job, report) => self.running.book.ended(&uid, job, *report),
            Happening::Turn => {}
            Happening::Written(status, written) => self.status_written(status, written),
            Happening::Tick => self.tell(),
        }
    }

    async fn see_sink(&mut self, event: Event<ProcessSink>) {
        let sink = match event {
            Event::Apply(sink) | Event::InitApply(sink) => sink,
            Event::Delete(sink) => {
                self.is_gone = sink.uid() == self.sink.uid();
                return;
            }
            Event::Init | Event::InitDone => return,
        };
        if sink.uid() != self.sink.uid() {
            tracing::info!("the sink was made again");
            self.is_gone = true;
            return;
        }
        let (former, next) = (self.sink.spec.clone(), sink.spec.clone());
        self.board.observe(&sink);
        self.sink = Arc::new(sink);
        // What does not concern the events.
        let of_events = |spec: &ProcessSinkSpec| ProcessSinkSpec {
            suspend: None,
            bridge: None,
            ..spec.clone()
        };
        let is_other = of_events(&former) != of_events(&next);
        if is_other || (next.is_suspended() && !former.is_suspended()) {
            // Each worker notes how far it is. What was not confirmed is sent again.
            let _ = timeout(SHUTDOWN, self.finish()).await;
            let next = Running::new(&self.kubernetes, &self.config, &self.reader, &next);
            let former = std::mem::replace(&mut self.running, next);
            // They were selected before. The list shows which of them are not any more.
            self.running.book.adopt(former.book);
        }
    }

    /// Lets workers note how far they are.
    async fn finish(&mut self) {
        self.running.book.stop();
        while let Some((uid, job, report)) = self.running.workers.next().await {
            self.running.book.ended(&uid, job, report);
        }
        self.count();
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The result of a future that may be there; removes it. Cancel-safe.
async fn or_pending<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(future) = slot else {
        return std::future::pending().await;
    };
    let result = future.await;
    *slot = None;
    result
}
