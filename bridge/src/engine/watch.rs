//! What the watches of the trigger and of its processes say.

use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use remoteprocess_api::{ProcessTrigger, RemoteProcess};
use tokio::time::Instant;

use super::{Engine, jobs};

impl Engine {
    pub(super) fn see_trigger(&mut self, event: watcher::Event<ProcessTrigger>) {
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

    pub(super) fn see_process(&mut self, event: watcher::Event<DeserializeGuard<RemoteProcess>>) {
        let event = decoded(event);
        self.note_age(event.as_ref());
        let now = Instant::now();
        let gone = event.map(|event| self.runs.apply(event, now)).unwrap_or_default();
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
    pub(super) fn watch_broke(&mut self, error: &watcher::Error) {
        tracing::warn!(%error, "the watch of the processes broke, will try again");
        if !self.runs.is_complete() {
            self.report.watch_error = Some(error.to_string());
        }
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
