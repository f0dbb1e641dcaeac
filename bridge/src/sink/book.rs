//! The processes that have events to send, or will have: what is known of each, and when it is its turn.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use remoteprocess_api::bridge::BridgeReason;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cursor::Cursor;
use super::steps::{Planner, Step};
use super::view::View;
use super::worker::{End, Report, Signs};
use crate::backoff::Backoff;

/// Most processes that are gone and have events to send.
const MAX_GONE: usize = 1000;
/// When a process that made room for others is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// What is known of a process.
struct Entry {
    view: watch::Sender<Arc<View>>,
    cursor: Cursor,
    noted: Cursor,
    state: State,
    backoff: Backoff,
    problem: Option<(BridgeReason, String)>,
    /// Of its last worker.
    signs: Arc<Signs>,
    /// What comes next is output, if there is any.
    is_reading: bool,
}

impl Entry {
    /// What keeps its events, unless its worker shows that this is over.
    fn problem(&self) -> Option<&(BridgeReason, String)> {
        let is_well = matches!(self.state, State::Works(..)) && self.signs.is_well.load(Ordering::Relaxed);
        self.problem.as_ref().filter(|_| !is_well)
    }
}

/// What happens with it.
enum State {
    /// Nothing, until it changes or this time.
    Waits(Option<Instant>),
    /// A worker sends its events.
    Works(u64, CancellationToken),
    /// All is sent; it stays until the watch shows that this is noted, so that an older state is not taken for news.
    Done,
}

/// What a worker needs.
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) uid: String,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) cursors: (Cursor, Cursor),
    pub(super) signs: Arc<Signs>,
    pub(super) stop: CancellationToken,
}

/// The processes, by uid.
pub(super) struct Book {
    planner: Planner,
    entries: BTreeMap<String, Entry>,
    /// Those with a transition to send. They go first.
    turns: BTreeSet<(Instant, String)>,
    /// Those with output to read, if there is any by then.
    polls: BTreeSet<(Instant, String)>,
    /// Number of the last job.
    jobs: u64,
    /// Uids that a list has shown, while it is being read.
    listed: Option<HashSet<String>>,
    gone: usize,
    dropped: u64,
}

impl Book {
    /// No processes are known yet.
    pub(super) fn new(planner: Planner) -> Self {
        Self {
            planner,
            entries: BTreeMap::new(),
            turns: BTreeSet::new(),
            polls: BTreeSet::new(),
            jobs: 0,
            listed: None,
            gone: 0,
            dropped: 0,
        }
    }

    /// A list of all processes begins.
    pub(super) fn begin(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// The list is complete: what it did not show is gone.
    pub(super) fn complete(&mut self) {
        let Some(listed) = self.listed.take() else { return };
        let gone: Vec<Arc<View>> = self
            .entries
            .iter()
            .filter(|(uid, _)| !listed.contains(*uid))
            .map(|(_, entry)| entry.view.borrow().clone())
            .collect();
        gone.iter().for_each(|view| self.delete(view));
    }

    /// A process was created or has changed.
    pub(super) fn see(&mut self, view: View) {
        let (uid, noted) = (view.uid(), view.noted());
        if let Some(listed) = &mut self.listed {
            listed.insert(uid.clone());
        }
        let view = Arc::new(view);
        match self.entries.get_mut(&uid) {
            Some(entry) if matches!(entry.state, State::Done) && noted.is_finished() => {
                self.entries.remove(&uid);
            }
            Some(entry) => {
                entry.view.send_replace(view);
                self.plan(&uid);
            }
            None if noted.is_finished() => {}
            None => self.add(uid, view, (noted.clone(), noted)),
        }
    }

    fn add(&mut self, uid: String, view: Arc<View>, (cursor, noted): (Cursor, Cursor)) {
        let entry = Entry {
            view: watch::Sender::new(view),
            cursor,
            noted,
            state: State::Waits(None),
            backoff: Backoff::default(),
            problem: None,
            signs: Arc::default(),
            is_reading: false,
        };
        self.entries.insert(uid.clone(), entry);
        self.plan(&uid);
    }

    /// A process is gone.
    pub(super) fn delete(&mut self, view: &View) {
        let (uid, gone) = (view.uid(), view.deleted());
        match self.entries.get(&uid) {
            Some(entry) if entry.view.borrow().is_deleted => return,
            Some(entry) if matches!(entry.state, State::Done) => {
                self.entries.remove(&uid);
                return;
            }
            None if view.noted().is_finished() => return,
            _ if self.gone >= MAX_GONE => {
                tracing::warn!(
                    process = view.name(),
                    "too many processes are gone: its last events are not sent"
                );
                self.dropped += 1;
                self.forget(&uid);
                return;
            }
            _ => self.gone += 1,
        }
        match self.entries.get(&uid) {
            Some(entry) => {
                entry.view.send_replace(Arc::new(gone));
                self.plan(&uid);
            }
            None => self.add(uid, Arc::new(gone), (view.noted(), view.noted())),
        }
    }

    /// A process is there that cannot be read.
    pub(super) fn keep(&mut self, uid: &str) {
        if let Some(listed) = &mut self.listed {
            listed.insert(uid.to_owned());
        }
    }

    /// A process that cannot be read is gone.
    pub(super) fn delete_unread(&mut self, uid: &str) {
        let view = self.entries.get(uid).map(|entry| entry.view.borrow().clone());
        if let Some(view) = view {
            self.delete(&view);
        }
    }

    /// Takes over the processes that are not done: what the next list does not show went in between. The workers of
    /// `former` have ended.
    pub(super) fn adopt(&mut self, former: Self) {
        for (uid, entry) in former.entries {
            let view = entry.view.borrow().clone();
            let cursors = match entry.state {
                State::Done => continue,
                State::Waits(_) => (entry.cursor, entry.noted),
                // It did not tell in time how far it came.
                State::Works(..) => (view.noted(), view.noted()),
            };
            self.gone += usize::from(view.is_deleted);
            self.add(uid, view, cursors);
        }
    }

    /// A process is not selected any more.
    pub(super) fn forget(&mut self, uid: &str) {
        self.keep(uid);
        self.remove(uid);
    }

    fn remove(&mut self, uid: &str) {
        let Some(entry) = self.entries.remove(uid) else { return };
        match entry.state {
            State::Works(_, stop) => stop.cancel(),
            State::Waits(Some(at)) => {
                let turn = (at, uid.to_owned());
                self.turns.remove(&turn);
                self.polls.remove(&turn);
            }
            State::Waits(None) | State::Done => {}
        }
        if entry.view.borrow().is_deleted {
            self.gone = self.gone.saturating_sub(1);
        }
    }

    /// Decides when it is the turn of a process that waits.
    fn plan(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if !matches!(entry.state, State::Waits(_)) {
            return;
        }
        let (now, moment) = (Instant::now(), Timestamp::now());
        let view = entry.view.borrow().clone();
        let is_behind = entry.cursor != entry.noted && !view.is_deleted;
        let at = match self.planner.next(&view, &entry.cursor, moment) {
            Step::Wait(until) if !is_behind => until.map(|until| now + until_then(moment, until)),
            step => {
                entry.is_reading = matches!(step, Step::Read(_));
                Some(now)
            }
        };
        self.turn(uid, at);
    }

    /// Not before a pause after a failure.
    fn turn(&mut self, uid: &str, at: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let State::Waits(former) = entry.state else { return };
        let is_held = entry.problem.is_some();
        let next = match (former, at) {
            (Some(former), Some(at)) if is_held => Some(former.max(at)),
            (Some(former), Some(at)) => Some(former.min(at)),
            (former, at) => former.filter(|_| is_held).or(at),
        };
        if let Some(former) = former {
            let turn = (former, uid.to_owned());
            self.turns.remove(&turn);
            self.polls.remove(&turn);
        }
        if let Some(next) = next {
            let queue = if entry.is_reading {
                &mut self.polls
            } else {
                &mut self.turns
            };
            queue.insert((next, uid.to_owned()));
        }
        entry.state = State::Waits(next);
    }

    /// The next process whose turn it is.
    pub(super) fn take(&mut self, now: Instant) -> Option<Job> {
        let is_due = |queue: &BTreeSet<(Instant, String)>| queue.first().is_some_and(|(at, _)| *at <= now);
        let queue = match (is_due(&self.turns), is_due(&self.polls)) {
            (true, _) => &mut self.turns,
            (false, true) => &mut self.polls,
            (false, false) => return None,
        };
        let (_, uid) = queue.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        let stop = CancellationToken::new();
        self.jobs += 1;
        entry.signs = Arc::default();
        entry.state = State::Works(self.jobs, stop.clone());
        Some(Job {
            number: self.jobs,
            view: entry.view.subscribe(),
            cursors: (entry.cursor.clone(), entry.noted.clone()),
            signs: entry.signs.clone(),
            stop,
            uid,
        })
    }

    /// When it is the next turn.
    pub(super) fn next_turn(&self) -> Option<Instant> {
        let firsts = [self.turns.first(), self.polls.first()];
        firsts.into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// Number of processes with a transition to send whose turn it is; `most` at most.
    pub(super) fn urgent(&self, now: Instant, most: usize) -> usize {
        let due = self.turns.iter().take_while(|(at, _)| *at <= now);
        due.take(most).count()
    }

    /// The worker of a job has ended.
    pub(super) fn ended(&mut self, uid: &str, job: u64, report: Report) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        // It may have been of the same process before that was not selected for a while.
        if !matches!(entry.state, State::Works(number, _) if number == job) {
            return;
        }
        let is_deleted = entry.view.borrow().is_deleted;
        (entry.cursor, entry.noted) = (report.cursor, report.noted);
        entry.state = State::Waits(None);
        let now = Instant::now();
        match report.end {
            End::Failed(reason, why) => {
                tracing::warn!(uid, why, "the events of a process wait, will try again");
                entry.problem = Some((reason, why));
                let at = now + entry.backoff.pause();
                self.turn(uid, Some(at));
                return;
            }
            End::Done if is_deleted => return self.remove(uid),
            End::Done => {
                entry.problem = None;
                entry.state = State::Done;
                if entry.view.borrow().noted().is_finished() {
                    self.remove(uid);
                }
                return;
            }
            End::Yielded => {
                entry.problem = None;
                entry.is_reading = true;
                entry.backoff.reset();
                return self.turn(uid, Some(now + AGAIN));
            }
            End::Waiting => {
                entry.problem = None;
                entry.backoff.reset();
            }
            End::Stopped => {}
        }
        self.plan(uid);
    }

    /// Lets all workers end.
    pub(super) fn stop(&self) {
        for entry in self.entries.values() {
            if let State::Works(_, stop) = &entry.state {
                stop.cancel();
            }
        }
    }

    /// Number of processes with events that are not sent.
    pub(super) fn waiting(&self) -> usize {
        let now = Instant::now();
        let is_waiting = |entry: &&Entry| match entry.state {
            State::Waits(at) => {
                let is_due = at.is_some_and(|at| at <= now) && !entry.is_reading;
                is_due || entry.problem.is_some()
            }
            State::Works(..) => entry.signs.is_sending.load(Ordering::Relaxed),
            State::Done => false,
        };
        self.entries.values().filter(is_waiting).count()
    }

    /// What keeps the events of a process, if that is so.
    pub(super) fn problem(&self) -> Option<&(BridgeReason, String)> {
        self.entries.values().find_map(Entry::problem)
    }

    /// Number of processes whose last events were dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

/// How long it is until then.
fn until_then(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
