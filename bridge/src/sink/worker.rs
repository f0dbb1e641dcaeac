//! Sends the events of one process, one after another, and notes in its cursor how far it is.

mod intake;
mod output;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use remoteprocess_api::bridge::BridgeReason;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::book::Job;
use super::cursor::{Cursor, Mark, annotation};
use super::link::Outbox;
use super::reader::{OutputReader, ReadError};
use super::steps::{Planner, Step};
use super::view::View;
use crate::kubernetes::{ApiError, Kubernetes};
use crate::outcome::CloudEvent;
use crate::source::SourceError;
use output::{Read, is_late};

/// Least time between two writes of a cursor.
const WRITE: Duration = Duration::from_secs(2);
/// How long the last write of a cursor may take.
const LAST_WRITE: Duration = Duration::from_secs(4);

/// What all workers of a sink have.
pub(super) struct Tools {
    pub(super) kubernetes: Kubernetes,
    /// Name of the sink.
    pub(super) sink: String,
    pub(super) planner: Planner,
    pub(super) reader: Arc<dyn OutputReader>,
    /// Other processes wait for a worker.
    pub(super) is_crowded: AtomicBool,
    /// How many of them have a transition to send. A worker that makes room for one takes it off.
    pub(super) urgent: AtomicUsize,
}

impl Tools {
    fn is_crowded(&self) -> bool {
        self.is_crowded.load(Ordering::Relaxed)
    }

    /// Whether a transition waits. Not all workers make room for the same one.
    fn makes_room(&self) -> bool {
        let one_less = |urgent: usize| urgent.checked_sub(1);
        let former = self.urgent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        former.is_ok()
    }
}

/// What a worker shows while it works.
#[derive(Default)]
pub(super) struct Signs {
    /// It has an event in hand.
    pub(super) is_sending: AtomicBool,
    /// There is output that is not read: the attempt is over, or output comes faster than it is sent.
    pub(super) is_behind: AtomicBool,
    /// What kept the events of the process before does not keep them any more.
    pub(super) is_well: AtomicBool,
}

impl Signs {
    /// Whether there are events that are not sent.
    pub(super) fn has_events(&self) -> bool {
        self.is_sending.load(Ordering::Relaxed) || self.is_behind.load(Ordering::Relaxed)
    }
}

/// Sends the events of one process.
pub(super) struct Worker {
    pub(super) tools: Arc<Tools>,
    pub(super) outbox: Outbox,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) cursor: Cursor,
    /// The cursor that the annotation has.
    pub(super) noted: Cursor,
    pub(super) signs: Arc<Signs>,
    /// Where to show the process, if it is still to be read.
    unread: Option<watch::Sender<Arc<View>>>,
    /// The destination has not taken the last event of this process.
    is_suspect: bool,
    written: Instant,
    /// When the first piece of output came, and the last one.
    pieces: Option<(Instant, Instant)>,
}

/// What came of it.
pub(super) struct Report {
    /// How far the events are sent, and how far the annotation says so; `None` if it could not read the process.
    pub(super) cursors: Option<(Cursor, Cursor)>,
    pub(super) end: End,
}

/// Why a worker ended.
#[derive(Debug)]
pub(super) enum End {
    /// Nothing is to be sent before the process changes, or some time has passed.
    Waiting,
    /// It made room for others, and has output to wait for.
    Yielded,
    /// The same, because the relay does not know the end of the output yet.
    Unsealed,
    /// It was told to end.
    Stopped,
    /// Nothing is left to send.
    Done,
    /// It cannot continue for now.
    Failed(Problem),
    /// The same, because the destination does not take an event.
    Refused(Problem),
}

/// Why the events of a process wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// For the condition Ready.
    pub(super) reason: BridgeReason,
    /// A sentence.
    pub(super) message: String,
    /// The ServiceAccount lacks a right.
    pub(super) lacks_right: bool,
}

impl From<&ApiError> for Problem {
    fn from(error: &ApiError) -> Self {
        Self {
            reason: error.reason(),
            message: error.to_string(),
            lacks_right: matches!(error, ApiError::Forbidden(_)),
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        Self {
            reason: BridgeReason::OutputUnavailable,
            message: error.to_string(),
            lacks_right: matches!(error, ReadError::Forbidden(_)),
        }
    }
}

impl From<SourceError> for Problem {
    fn from(error: SourceError) -> Self {
        Self {
            reason: error.reason,
            message: error.message,
            lacks_right: false,
        }
    }
}

/// Why the events of this process cannot be sent for now.
enum Stuck {
    Read(ReadError),
    Refused(SourceError),
    /// The relay does not know the end of the output, and may learn it.
    Unsealed,
}

impl From<Stuck> for End {
    fn from(stuck: Stuck) -> Self {
        match stuck {
            Stuck::Read(error) => Self::Failed(error.into()),
            Stuck::Refused(error) => Self::Refused(error.into()),
            Stuck::Unsealed => Self::Unsealed,
        }
    }
}

impl Worker {
    pub(super) fn new(tools: Arc<Tools>, outbox: Outbox, job: Job) -> Self {
        let (cursor, noted) = job.cursors;
        Self {
            tools,
            outbox,
            view: job.view,
            cursor,
            noted,
            signs: job.signs,
            unread: job.unread,
            is_suspect: job.is_suspect,
            // A process that is over soon has one write.
            written: Instant::now(),
            pieces: None,
        }
    }

    /// Works until there is nothing to do, or until it is stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Report {
        let end = stop.run_until_cancelled(self.work()).await;
        let mut end = end.unwrap_or(End::Stopped);
        self.signs.is_sending.store(false, Ordering::Relaxed);
        let late = |_| Err(ApiError::Unavailable("no answer in time".to_owned()));
        if let Err(error) = timeout(LAST_WRITE, self.write()).await.unwrap_or_else(late) {
            end = match end {
                End::Stopped => End::Stopped,
                _ => failed(&error),
            };
        }
        let is_read = self.unread.is_none();
        Report {
            cursors: is_read.then_some((self.cursor, self.noted)),
            end,
        }
    }

    /// Reads a process whose state was not kept. Returns why that is not possible.
    async fn load(&mut self) -> Option<End> {
        let shown = self.unread.clone()?;
        let stub = self.view.borrow().clone();
        let found = match self.tools.kubernetes.process(&stub.name()).await {
            Ok(found) => found.filter(|process| process.metadata.uid == stub.process.metadata.uid),
            Err(error) => return Some(failed(&error)),
        };
        if let Some(process) = found {
            let view = Arc::new(View {
                since: stub.since,
                ..View::new(process, &self.tools.sink)
            });
            shown.send_if_modified(|shown| {
                // The watch may have shown it in the meantime.
                let is_news = shown.is_unread || shown.is_older_than(&view);
                if is_news {
                    *shown = view;
                }
                is_news
            });
        }
        let view = self.view.borrow().clone();
        if view.is_unread {
            // It is gone: the watch is about to show that.
            return Some(End::Yielded);
        }
        self.unread = None;
        self.noted = view.noted();
        if stub.cursor.is_none() {
            self.cursor = self.noted.clone();
        }
        None
    }

    async fn work(&mut self) -> End {
        if let Some(end) = self.load().await {
            return end;
        }
        loop {
            if self.view.has_changed().is_err() {
                return End::Stopped;
            }
            let view = self.view.borrow_and_update().clone();
            let tools = self.tools.clone();
            match tools.planner.next(&view, &self.cursor, Timestamp::now()) {
                Step::Send(event, note) => {
                    if let Err(error) = self.send(&event, &view).await {
                        return error.into();
                    }
                    note.apply(&mut self.cursor);
                    self.write_if_due().await;
                }
                Step::Skip(attempt) => tools.planner.skip(&mut self.cursor, attempt),
                Step::GiveUp => {
                    self.cursor.is_unsealed = true;
                    if let Err(error) = self.write().await {
                        self.cursor.is_unsealed = false;
                        return failed(&error);
                    }
                }
                Step::Read(attempt) => {
                    // Without output to send, there is nothing to read.
                    let Some(output) = &tools.planner.output else {
                        self.cursor.pass(Mark::output(attempt));
                        continue;
                    };
                    self.show_what_is_left(attempt);
                    let read = self.read(&view, attempt, output).await;
                    self.show_what_is_left(attempt);
                    match read {
                        Ok(Read::Whole) => {
                            self.signs.is_behind.store(false, Ordering::Relaxed);
                            self.cursor.pass(Mark::output(attempt));
                        }
                        Ok(Read::Changed) => {}
                        Ok(Read::Yielded) => return End::Yielded,
                        Err(Stuck::Read(ReadError::Unknown(why))) if is_late(&view, attempt, Timestamp::now()) => {
                            tracing::info!(process = view.name(), attempt, why, "there is no more output");
                            tools.planner.pass_unknown(&mut self.cursor, attempt);
                        }
                        Err(error) => return error.into(),
                    }
                }
                Step::Wait(_) => {
                    if self.is_unchanged_for_a_while().await {
                        return End::Waiting;
                    }
                }
                Step::Done => return End::Done,
            }
        }
    }

    /// Stays until the cursor may be written: often the process changes before.
    async fn is_unchanged_for_a_while(&mut self) -> bool {
        let is_noted = self.cursor == self.noted;
        if is_noted || self.tools.is_crowded() {
            return !self.view.has_changed().unwrap_or_default();
        }
        let due = (self.written + WRITE).saturating_duration_since(Instant::now());
        timeout(due, self.view.changed()).await.is_err()
    }

    async fn send(&mut self, event: &CloudEvent, view: &View) -> Result<(), Stuck> {
        self.signs.is_sending.store(true, Ordering::Relaxed);
        let crowded = &self.tools.is_crowded;
        let sent = self.outbox.send(event, &view.uid(), crowded, self.is_suspect).await;
        self.signs.is_sending.store(false, Ordering::Relaxed);
        self.is_suspect = sent.is_err();
        sent.map_err(Stuck::Refused)
    }

    async fn write_if_due(&mut self) {
        if self.written.elapsed() < WRITE {
            return;
        }
        // It is tried again: sending does not wait for it.
        if let Err(error) = self.write().await {
            tracing::warn!(%error, "cannot note how far the events of a process are sent");
        }
    }

    /// Writes the cursor into the annotation, if that is behind.
    async fn write(&mut self) -> Result<(), ApiError> {
        let view = self.view.borrow().clone();
        if view.is_deleted || self.cursor == self.noted {
            return Ok(());
        }
        self.written = Instant::now();
        let (name, key, cursor) = (view.name(), annotation(&self.tools.sink), self.cursor.clone());
        let written = self
            .tools
            .kubernetes
            .annotate(&name, &view.uid(), &key, &cursor.to_text())
            .await;
        written?;
        self.noted = cursor;
        // What is noted was sent.
        self.signs.is_well.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn failed(error: &ApiError) -> End {
    End::Failed(error.into())
}
