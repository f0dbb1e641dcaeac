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

#[derive(Clone, Debug, Default)]
struct Entry {
    memory: Memory,
    failures: u32,
    wait: LongWait,
}

/// One entry per process, by UID.
#[derive(Clone, Debug, Default)]
pub(super) struct InMemory(Arc<Mutex<HashMap<String, Entry>>>);

impl InMemory {
    pub(super) fn recall(&self, process: &RemoteProcess) -> Memory {
        self.with(process, |entry| entry.memory.clone())
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
        self.with(process, |entry| entry.failures)
    }

    pub(super) fn forget_failures(&self, process: &RemoteProcess) {
        self.with(process, |entry| entry.failures = 0);
    }

    /// Records what the process waits for. If that should be reported, returns how often it was.
    pub(super) fn see_wait(&self, process: &RemoteProcess, now: Timestamp) -> Option<u32> {
        self.with(process, |entry| entry.wait.see(process, now))
    }

    /// The object is gone.
    pub(super) fn forget(&self, process: &RemoteProcess) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&process.uid().unwrap_or_default());
    }

    fn with<T>(&self, process: &RemoteProcess, act: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(entries.entry(process.uid().unwrap_or_default()).or_default())
    }
}
