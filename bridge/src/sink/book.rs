//! The processes that have events to send, or will have: what is known of each, and when it is its turn. The states of a
//! thousand are in memory. The others are a name and a time: their workers read them again.

mod entry;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cursor::Cursor;
use super::steps::{Planner, Step};
use super::view::View;
use super::worker::{End, Problem, Report, Signs};
use entry::{Entry, Kept, Seen, State};

/// Most processes whose state is kept while no worker needs it.
const MAX_KEPT: usize = 1000;
/// Most processes that are gone and have events to send.
const MAX_GONE: usize = 1000;
/// When a process that made room for others is looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// The same, if the end of its output is not known yet. Its status shows that earlier, as a rule.
const UNSEALED: Duration = Duration::from_secs(10);

/// What a worker needs.
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) uid: String,
    pub(super) view: watch::Receiver<Arc<View>>,
    /// Where the worker shows the process that it reads, if that is not known.
    pub(super) unread: Option<watch::Sender<Arc<View>>>,
    pub(super) cursors: (Cursor, Cursor),
    pub(super) signs: Arc<Signs>,
    /// The destination has not taken the last event of this process.
    pub(super) is_suspect: bool,
    pub(super) stop: CancellationToken,
}

/// The processes, by uid.
pub(super) struct Book {
    planner: Planner,
    entries: BTreeMap<String, Entry>,
    /// For states that are kept while no worker needs them.
    seats: Arc<Semaphore>,
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
            seats: Arc::new(Semaphore::new(MAX_KEPT)),
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
        let gone = self.entries.keys().filter(|uid| !listed.contains(*uid));
        let gone: Vec<String> = gone.cloned().collect();
        gone.iter().for_each(|uid| self.lose(uid));
    }

    /// A process was created or has changed.
    pub(super) fn see(&mut self, view: View) {
        let (uid, noted) = (view.uid(), view.noted());
        if let Some(listed) = &mut self.listed {
            listed.insert(uid.clone());
        }
        match self.entries.get_mut(&uid) {
            Some(entry) if matches!(entry.state, State::Done) && noted.is_finished() => {
                self.entries.remove(&uid);
            }
            // An older state: there is nothing to keep it for.
            Some(entry) if matches!(entry.state, State::Done) => {}
            Some(entry) => {
                entry.show(view);
                self.plan(&uid);
            }
            None if noted.is_finished() => {}
            None => self.add(uid, view, None),
        }
    }

    /// `cursors`: if they are not those of the annotation.
    fn add(&mut self, uid: String, view: View, cursors: Option<(Cursor, Cursor)>) {
        let mut entry = Entry::new(view.name(), Seen::Dropped(None));
        entry.show(view);
        if let (Seen::Kept(kept), Some(cursors)) = (&mut entry.seen, cursors) {
            (kept.cursor, kept.noted) = cursors;
        }
        self.entries.insert(uid.clone(), entry);
        self.plan(&uid);
    }

    /// A process is gone.
    pub(super) fn delete(&mut self, view: &View) {
        let (uid, gone) = (view.uid(), view.deleted());
        match self.entries.get(&uid) {
            Some(entry) if entry.is_deleted() => return,
            Some(entry) if matches!(entry.state, State::Done) => {
                self.entries.remove(&uid);
                return;
            }
            None if view.noted().is_finished() => return,
            _ if self.gone >= MAX_GONE => return self.drop_last(&uid, "too many processes are gone"),
            _ => self.gone += 1,
        }
        match self.entries.get_mut(&uid) {
            Some(entry) => {
                entry.show(gone);
                self.plan(&uid);
            }
            None => self.add(uid, gone, None),
        }
    }

    /// A process is gone, and its last state is what was known before.
    fn lose(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        match (&entry.state, entry.view()) {
            (State::Done, _) => self.remove(uid),
            (_, Some(view)) => self.delete(&view),
            (_, None) => self.drop_last(
                uid,
                "a process went while the watch was broken, and its state was not kept",
            ),
        }
    }

    fn drop_last(&mut self, uid: &str, why: &str) {
        tracing::warn!(uid, "{why}: its last events are not sent");
        self.dropped += 1;
        self.forget(uid);
    }

    /// A process is there that cannot be read.
    pub(super) fn keep(&mut self, uid: &str) {
        if let Some(listed) = &mut self.listed {
            listed.insert(uid.to_owned());
        }
    }

    /// A process that cannot be read is gone.
    pub(super) fn delete_unread(&mut self, uid: &str) {
        self.lose(uid);
    }

    /// Takes over the processes that are not done: what the next list does not show went in between. The workers of
    /// `former` have ended.
    pub(super) fn adopt(&mut self, former: Self) {
        for (uid, mut entry) in former.entries {
            let is_late = match entry.state {
                State::Done => continue,
                State::Waits(_) => false,
                // It did not tell in time how far it came.
                State::Works(..) => true,
            };
            let view = entry.view().map(Arc::unwrap_or_clone);
            self.gone += usize::from(entry.is_deleted());
            match (view, entry.seen) {
                (Some(view), Seen::Kept(_)) if is_late => self.add(uid, view, None),
                (Some(view), Seen::Kept(kept)) => {
                    let Kept { cursor, noted, .. } = *kept;
                    self.add(uid, view, Some((cursor, noted)));
                }
                // The list shows it.
                (_, seen) => {
                    entry.seen = seen;
                    entry.drop_view();
                    entry.state = State::Waits(None);
                    self.entries.insert(uid, entry);
                }
            }
        }
    }

    /// A process is not selected any more.
    pub(super) fn forget(&mut self, uid: &str) {
        self.keep(uid);
        self.remove(uid);
    }

    fn remove(&mut self, uid: &str) {
        let Some(entry) = self.entries.remove(uid) else { return };
        match &entry.state {
            State::Works(_, stop) => stop.cancel(),
            State::Waits(Some(at)) => {
                let turn = (*at, uid.to_owned());
                self.turns.remove(&turn);
                self.polls.remove(&turn);
            }
            State::Waits(None) | State::Done => {}
        }
        if entry.is_deleted() {
            self.gone = self.gone.saturating_sub(1);
        }
    }

    /// Decides when it is the turn of a process that waits.
    fn plan(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if !matches!(entry.state, State::Waits(_)) {
            return;
        }
        let (Some(view), Seen::Kept(kept)) = (entry.view(), &entry.seen) else {
            return self.rest(uid);
        };
        let (now, moment) = (Instant::now(), Timestamp::now());
        let is_behind = kept.cursor != kept.noted && !view.is_deleted;
        let step = self.planner.next(&view, &kept.cursor, moment);
        entry.is_behind = match step {
            Step::Read(attempt) => view.is_over(attempt),
            Step::Wait(_) | Step::Done => false,
            Step::Send(..) | Step::Skip(_) | Step::GiveUp => true,
        };
        let at = match step {
            Step::Wait(until) if !is_behind => until.map(|until| now + until_then(moment, until)),
            step => {
                entry.is_reading = matches!(step, Step::Read(_));
                Some(now)
            }
        };
        self.turn(uid, at);
        self.rest(uid);
    }

    /// Keeps the state of a process that waits only if there is room for it, or if it cannot be read again.
    fn rest(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let is_deleted = entry.is_deleted();
        let Seen::Kept(kept) = &mut entry.seen else { return };
        if is_deleted {
            kept.seat = None;
            return;
        }
        if kept.seat.is_none() {
            kept.seat = self.seats.clone().try_acquire_owned().ok();
        }
        if kept.seat.is_none() || kept.view.borrow().is_unread {
            entry.drop_view();
        }
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
        let (signs, is_suspect) = (entry.signs.clone(), entry.is_suspect);
        let kept = entry.keep(&uid)?;
        let is_unread = kept.view.borrow().is_unread;
        Some(Job {
            number: self.jobs,
            view: kept.view.subscribe(),
            unread: is_unread.then(|| kept.view.clone()),
            cursors: (kept.cursor.clone(), kept.noted.clone()),
            signs,
            is_suspect,
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
        let is_deleted = entry.is_deleted();
        if let (Seen::Kept(kept), Some(cursors)) = (&mut entry.seen, report.cursors) {
            (kept.cursor, kept.noted) = cursors;
        }
        entry.state = State::Waits(None);
        let now = Instant::now();
        entry.is_suspect = matches!(report.end, End::Refused(..));
        match report.end {
            End::Failed(problem) | End::Refused(problem) => {
                let why = &problem.message;
                tracing::warn!(uid, why, "the events of a process wait, will try again");
                entry.problem = Some(problem);
                let at = now + entry.backoff.pause();
                self.turn(uid, Some(at));
                return self.rest(uid);
            }
            End::Done if is_deleted => return self.remove(uid),
            End::Done => {
                entry.problem = None;
                entry.state = State::Done;
                if entry.is_noted() {
                    return self.remove(uid);
                }
                return entry.drop_view();
            }
            end @ (End::Yielded | End::Unsealed) => {
                entry.problem = None;
                entry.is_reading = true;
                entry.is_behind = entry.signs.is_behind.load(Ordering::Relaxed);
                entry.backoff.reset();
                let pause = match end {
                    End::Unsealed => UNSEALED,
                    _ => AGAIN,
                };
                self.turn(uid, Some(now + pause));
                return self.rest(uid);
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
        let is_waiting = |entry: &&Entry| match entry.state {
            State::Waits(_) => entry.is_behind || entry.problem.is_some(),
            State::Works(..) => entry.signs.has_events(),
            State::Done => false,
        };
        self.entries.values().filter(is_waiting).count()
    }

    /// What keeps the events of a process, if that is so.
    pub(super) fn problem(&self) -> Option<&Problem> {
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
