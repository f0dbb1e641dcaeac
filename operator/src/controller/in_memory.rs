//! What the controller keeps in memory about each process, in addition to its status. A restart loses all of it; then
//! waits begin again, and nothing else changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use remoteprocess_api::RemoteProcess;

use crate::phase::Memory;
use crate::report::LongWait;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    memory: Memory,
    failures: u32,
    wait: LongWait,
}

/// One entry per process of which there is something to keep, by UID.
#[derive(Clone, Debug, Default)]
pub(super) struct InMemory(Arc<Mutex<HashMap<String, Entry>>>);

impl InMemory {
    pub(super) fn recall(&self, process: &RemoteProcess) -> Memory {
        self.look(process, |entry| entry.memory.clone())
    }

    pub(super) fn keep(&self, process: &RemoteProcess, memory: Memory) {
        self.with(process, |entry| entry.memory = memory);
    }

    pub(super) fn keep_created(&self, process: &RemoteProcess, attempt: u32, pod: &Pod) {
        let created = Some((attempt, pod.uid().unwrap_or_default()));
        self.with(process, |entry| entry.memory.created = created);
    }

    /// Counts one more failure in a row; returns the number.
    pub(super) fn count_failure(&self, process: &RemoteProcess) -> u32 {
        self.with(process, |entry| {
            entry.failures = entry.failures.saturating_add(1);
            entry.failures
        })
    }

    /// Failures in a row.
    pub(super) fn failures(&self, process: &RemoteProcess) -> u32 {
        self.look(process, |entry| entry.failures)
    }

    pub(super) fn forget_failures(&self, process: &RemoteProcess) {
        self.with(process, |entry| entry.failures = 0);
    }

    /// Records what the process waits for. If that should be reported, returns how often it was.
    pub(super) fn see_wait(&self, process: &RemoteProcess, now: Timestamp) -> Option<u32> {
        self.with(process, |entry| entry.wait.see(process, now))
    }

    /// The object is gone, or nothing more is decided about it.
    pub(super) fn forget(&self, process: &RemoteProcess) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&process.uid().unwrap_or_default());
    }

    fn look<T: Default>(&self, process: &RemoteProcess, look: impl FnOnce(&Entry) -> T) -> T {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = process.metadata.uid.as_ref().and_then(|uid| entries.get(uid));
        entry.map(look).unwrap_or_default()
    }

    fn with<T>(&self, process: &RemoteProcess, act: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = process.uid().unwrap_or_default();
        let mut entry = entries.remove(&uid).unwrap_or_default();
        let result = act(&mut entry);
        if entry != Entry::default() {
            entries.insert(uid, entry);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_entry_only_for_what_has_something_to_keep() {
        let in_memory = InMemory::default();
        let mut process = RemoteProcess::new("hello", remoteprocess_api::RemoteProcessSpec::default());
        process.metadata.uid = Some("1".to_owned());
        let count = || in_memory.0.lock().unwrap().len();
        assert_eq!(in_memory.recall(&process), Memory::default());
        in_memory.keep(&process, Memory::default());
        assert_eq!(in_memory.see_wait(&process, Timestamp::UNIX_EPOCH), None);
        assert_eq!(count(), 0);
        in_memory.count_failure(&process);
        in_memory.keep_created(&process, 1, &Pod::default());
        assert_eq!((count(), in_memory.failures(&process)), (1, 1));
        in_memory.forget_failures(&process);
        assert_eq!(in_memory.recall(&process).created, Some((1, String::new())));
        in_memory.forget(&process);
        assert_eq!(count(), 0);
    }
}
