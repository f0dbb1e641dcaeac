//! The processes of a trigger: how many run, whose result is to be sent, which can be forgotten. Pure: it learns from the
//! events of a watch and from what the engine creates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::watcher::Event;
use remoteprocess_api::RemoteProcess;
use remoteprocess_api::names::ANNOTATION_RESULT_SENT;
use tokio::time::Instant;

use crate::outcome;
use crate::process::forget_at;

/// How long the result of a process waits for the seal of its output, from when this bridge has seen its end: one that was
/// away must not leave out what is still to come, and the clock of who has written the end does not count.
const SEAL_WAIT: Duration = Duration::from_secs(60);

/// A process that has not ended, or whose result is not sent.
#[derive(Clone, Debug)]
enum Run {
    /// Created by us, and not seen by the watch yet. With the number of the list that had begun then.
    Created(u64),
    /// As it was last seen; and when it was first seen with an end, if it has ended.
    Seen(Arc<RemoteProcess>, Option<Instant>),
}

/// A process that has ended and whose result is sent: only what is needed to forget it.
#[derive(Clone, Debug)]
struct Done {
    uid: String,
    /// When it ended, or when its result was sent if that was later.
    finished_at: Timestamp,
    has_failed: bool,
}

/// What the engine has to do about a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing of this name.
    No,
    /// It was created, or runs.
    Running,
    /// It has ended.
    Ended {
        /// Whether it failed.
        has_failed: bool,
    },
}

/// All processes of a trigger by name. A name is in at most one of the maps.
#[derive(Debug, Default)]
pub struct Runs {
    open: BTreeMap<String, Run>,
    done: BTreeMap<String, Done>,
    /// Names in the list that is being read.
    listed: BTreeSet<String>,
    /// How many lists have begun.
    lists: u64,
    is_complete: bool,
}

impl Runs {
    /// Learns from the watch. Returns the names of processes that are gone.
    pub fn apply(&mut self, event: Event<RemoteProcess>, now: Instant) -> Vec<String> {
        match event {
            Event::Init => {
                self.listed.clear();
                self.lists += 1;
                Vec::new()
            }
            Event::InitApply(process) => {
                self.listed.insert(process.name_any());
                self.see(process, now);
                Vec::new()
            }
            Event::Apply(process) => {
                self.see(process, now);
                Vec::new()
            }
            Event::Delete(process) => self.delete(&process),
            Event::InitDone => self.end_list(),
        }
    }

    fn see(&mut self, process: RemoteProcess, now: Instant) {
        let name = process.name_any();
        match done(&process) {
            Some(done) => {
                self.open.remove(&name);
                self.done.insert(name, done);
            }
            None => {
                self.done.remove(&name);
                let ended = self.ended(&process).or_else(|| process.is_final().then_some(now));
                self.open.insert(name, Run::Seen(Arc::new(process), ended));
            }
        }
    }

    /// When this process was first seen with an end.
    fn ended(&self, process: &RemoteProcess) -> Option<Instant> {
        match self.open.get(&process.name_any())? {
            Run::Seen(known, ended) if known.uid() == process.uid() => *ended,
            _ => None,
        }
    }

    fn delete(&mut self, process: &RemoteProcess) -> Vec<String> {
        let name = process.name_any();
        let is_other = self.uid(&name).is_some_and(|uid| Some(uid) != process.uid());
        if is_other || !self.remove(&name) {
            return Vec::new();
        }
        vec![name]
    }

    fn end_list(&mut self) -> Vec<String> {
        self.is_complete = true;
        let (listed, lists) = (std::mem::take(&mut self.listed), self.lists);
        // What was created while the list was read may be missing in it.
        let may_be_newer = |run: &Run| matches!(run, Run::Created(list) if *list >= lists);
        let open = self
            .open
            .iter()
            .filter(|(_, run)| !may_be_newer(run))
            .map(|(name, _)| name);
        let gone = open.chain(self.done.keys()).filter(|name| !listed.contains(*name));
        let gone: Vec<String> = gone.cloned().collect();
        for name in &gone {
            self.remove(name);
        }
        gone
    }

    fn remove(&mut self, name: &str) -> bool {
        let (open, done) = (self.open.remove(name), self.done.remove(name));
        open.is_some() || done.is_some()
    }

    fn uid(&self, name: &str) -> Option<String> {
        match self.open.get(name) {
            Some(Run::Seen(process, _)) => process.uid(),
            Some(Run::Created(_)) => None,
            None => self.done.get(name).map(|done| done.uid.clone()),
        }
    }

    /// Notes a process that the API server has just created, or that exists although the watch has not shown it.
    pub fn created(&mut self, name: &str) {
        if self.known(name) == Known::No {
            self.open.insert(name.to_owned(), Run::Created(self.lists));
        }
    }

    /// Notes that the result of a process is sent, before the watch shows it.
    pub fn sent(&mut self, process: &RemoteProcess, now: Timestamp) {
        let name = process.name_any();
        if self.uid(&name) == process.uid() && self.open.remove(&name).is_some() {
            let done = Done {
                finished_at: now,
                ..Done::of(process)
            };
            self.done.insert(name, done);
        }
    }

    /// Whether the first list is there: before that, nothing is known.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Number of processes that have not ended.
    pub fn running(&self) -> usize {
        self.open.values().filter(|run| is_running(run)).count()
    }

    /// What is known about a process.
    pub fn known(&self, name: &str) -> Known {
        match (self.open.get(name), self.done.get(name)) {
            (Some(Run::Seen(process, _)), _) if process.is_final() => Known::Ended {
                has_failed: outcome::failure(process).is_some(),
            },
            (Some(_), _) => Known::Running,
            (None, Some(done)) => Known::Ended {
                has_failed: done.has_failed,
            },
            (None, None) => Known::No,
        }
    }

    /// The processes whose result can be sent now.
    pub fn results(&self, now: Instant) -> impl Iterator<Item = &Arc<RemoteProcess>> {
        self.open.values().filter_map(move |run| match run {
            Run::Seen(process, Some(ended)) if is_due(process, *ended, now) => Some(process),
            _ => None,
        })
    }

    /// The processes that have not ended, or whose result is not sent, as they were last seen.
    pub fn open(&self) -> impl Iterator<Item = &Arc<RemoteProcess>> {
        self.open.values().filter_map(|run| match run {
            Run::Seen(process, _) => Some(process),
            Run::Created(_) => None,
        })
    }

    /// Whether the result of a process is sent.
    pub fn is_done(&self, name: &str) -> bool {
        self.done.contains_key(name)
    }

    /// Name and uid of the processes that ended longer ago than ids are remembered.
    pub fn forgotten(&self, now: Timestamp, remember_seconds: u32) -> impl Iterator<Item = (&str, &str)> {
        let is_old = move |done: &Done| forget_at(done.finished_at, remember_seconds) <= now;
        let old = self.done.iter().filter(move |(_, done)| is_old(done));
        old.map(|(name, done)| (name.as_str(), done.uid.as_str()))
    }
}

impl Done {
    fn of(process: &RemoteProcess) -> Self {
        Self {
            uid: process.uid().unwrap_or_default(),
            // Before its result was sent, its message may not have been acknowledged.
            finished_at: finished_at(process).max(sent_at(process)),
            has_failed: outcome::failure(process).is_some(),
        }
    }
}

fn is_running(run: &Run) -> bool {
    match run {
        Run::Created(_) => true,
        Run::Seen(process, _) => !process.is_final(),
    }
}

fn done(process: &RemoteProcess) -> Option<Done> {
    let is_sent = process.annotations().contains_key(ANNOTATION_RESULT_SENT);
    (process.is_final() && is_sent).then(|| Done::of(process))
}

/// Whether the result of a process can be sent whose end was seen at `ended`.
fn is_due(process: &RemoteProcess, ended: Instant, now: Instant) -> bool {
    let is_late = now.saturating_duration_since(ended) >= SEAL_WAIT;
    process.is_final() && (outcome::is_sealed(process) || is_late)
}

/// When it ended; the beginning of time if nobody knows.
fn finished_at(process: &RemoteProcess) -> Timestamp {
    let status = process.status.as_ref();
    status
        .and_then(|status| status.finished_at)
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// When its result was sent; the beginning of time if it was not.
fn sent_at(process: &RemoteProcess) -> Timestamp {
    let at = process.annotations().get(ANNOTATION_RESULT_SENT);
    at.and_then(|at| at.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::*;

    fn process(name: &str, status: Value, sent: bool) -> RemoteProcess {
        let mut process: RemoteProcess = serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
            "spec": {"image": "i", "command": ["x"]}, "status": status,
        }))
        .unwrap();
        if sent {
            process
                .annotations_mut()
                .insert(ANNOTATION_RESULT_SENT.into(), "now".into());
        }
        process
    }

    fn running(name: &str) -> RemoteProcess {
        process(name, json!({"phase": "Running"}), false)
    }

    fn ended(name: &str, sealed: bool, sent: bool) -> RemoteProcess {
        let sealed = json!({"type": "OutputSealed", "status": if sealed { "True" } else { "False" }, "reason": "x",
                            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({"phase": "Failed", "finishedAt": "2026-01-01T00:00:00Z", "conditions": [sealed]});
        process(name, status, sent)
    }

    fn at(seconds: i64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
    }

    fn names(runs: &Runs, now: Instant) -> Vec<String> {
        runs.results(now).map(|process| process.name_any()).collect()
    }

    #[test]
    fn what_was_created_counts_before_the_watch_shows_it() {
        let mut runs = Runs::default();
        assert!(!runs.is_complete());
        runs.apply(Event::Init, Instant::now());
        runs.apply(Event::InitApply(running("a")), Instant::now());
        runs.apply(Event::InitDone, Instant::now());
        assert!(runs.is_complete());
        runs.created("b");
        assert_eq!((runs.running(), runs.known("b")), (2, Known::Running));
        runs.apply(Event::Apply(running("b")), Instant::now());
        assert_eq!(runs.running(), 2, "it is the same one");
        runs.apply(Event::Apply(ended("b", true, false)), Instant::now());
        assert_eq!(
            (runs.running(), runs.known("b")),
            (1, Known::Ended { has_failed: true })
        );
        runs.created("b");
        assert_eq!(runs.running(), 1, "the watch knows better");
    }

    #[test]
    fn a_new_list_tells_what_is_gone_but_not_of_what_is_newer() {
        let mut runs = Runs::default();
        runs.apply(Event::Init, Instant::now());
        runs.apply(Event::InitApply(running("a")), Instant::now());
        runs.apply(Event::InitDone, Instant::now());
        runs.created("before");
        runs.apply(Event::Init, Instant::now());
        runs.created("meanwhile");
        assert_eq!(runs.apply(Event::InitDone, Instant::now()), ["a", "before"]);
        assert_eq!(runs.running(), 1);
        runs.apply(Event::Init, Instant::now());
        assert_eq!(
            runs.apply(Event::InitDone, Instant::now()),
            ["meanwhile"],
            "nothing counts forever"
        );
    }

    #[test]
    fn a_deletion_of_a_former_process_of_that_name_is_not_one_of_this() {
        let mut runs = Runs::default();
        let mut former = running("a");
        former.metadata.uid = Some("former".into());
        runs.apply(Event::Apply(running("a")), Instant::now());
        assert!(runs.apply(Event::Delete(former), Instant::now()).is_empty());
        assert_eq!(runs.apply(Event::Delete(running("a")), Instant::now()), ["a"]);
        assert!(runs.apply(Event::Delete(running("a")), Instant::now()).is_empty());
    }

    #[test]
    fn results_wait_for_the_seal_but_not_forever() {
        let (mut runs, begin) = (Runs::default(), Instant::now());
        for process in [
            ended("sealed", true, false),
            ended("open", false, false),
            ended("sent", true, true),
            running("runs"),
        ] {
            runs.apply(Event::Apply(process), begin);
        }
        assert_eq!(names(&runs, begin), ["sealed"]);
        let later = begin + SEAL_WAIT;
        assert_eq!(names(&runs, later), ["open", "sealed"]);
        runs.sent(&ended("sealed", true, false), at(60));
        assert_eq!(names(&runs, later), ["open"]);
    }

    /// The output of a process that ended while no bridge was there may still be on its way.
    #[test]
    fn results_wait_from_when_their_end_was_seen() {
        let (mut runs, begin) = (Runs::default(), Instant::now());
        let second = Duration::from_secs(1);
        runs.apply(Event::Apply(running("a")), begin);
        runs.apply(Event::Apply(ended("a", false, false)), begin + 100 * second);
        // Nothing that is shown later moves that.
        for event in [
            Event::Apply(ended("a", false, false)),
            Event::Init,
            Event::InitApply(ended("a", false, false)),
            Event::InitDone,
        ] {
            runs.apply(event, begin + 130 * second);
        }
        assert!(names(&runs, begin + 159 * second).is_empty());
        assert_eq!(names(&runs, begin + 160 * second), ["a"]);
        // Another process of that name has its own time.
        let mut other = ended("a", false, false);
        other.metadata.uid = Some("other".into());
        runs.apply(Event::Apply(other), begin + 170 * second);
        assert!(names(&runs, begin + 229 * second).is_empty());
        assert_eq!(names(&runs, begin + 230 * second), ["a"]);
    }

    #[test]
    fn ids_are_remembered_from_the_end_on_and_not_before_the_result_is_sent() {
        let mut runs = Runs::default();
        runs.apply(Event::Apply(ended("unsent", true, false)), Instant::now());
        runs.apply(Event::Apply(ended("sent", true, true)), Instant::now());
        assert_eq!(runs.forgotten(at(99), 100).count(), 0);
        assert_eq!(runs.forgotten(at(100), 100).collect::<Vec<_>>(), [("sent", "uid-sent")]);
        assert_eq!(
            runs.forgotten(at(i64::from(u32::MAX)), u32::MAX).count(),
            1,
            "no overflow"
        );
    }

    /// A bridge that was away for longer than ids are remembered sends results late, and gets messages again after that.
    #[test]
    fn ids_are_remembered_from_when_the_result_was_sent_if_that_was_later() {
        let mut runs = Runs::default();
        runs.apply(Event::Apply(ended("now", true, false)), Instant::now());
        runs.sent(&ended("now", true, false), at(500));
        let mut before = ended("before", true, true);
        let sent_at = at(500).to_string();
        before.annotations_mut().insert(ANNOTATION_RESULT_SENT.into(), sent_at);
        runs.apply(Event::Apply(before), Instant::now());
        assert_eq!(runs.forgotten(at(599), 100).count(), 0);
        assert_eq!(runs.forgotten(at(600), 100).count(), 2);
    }
}
