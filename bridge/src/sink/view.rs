//! What a sink knows about a process: the object without its spec.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::ResourceExt as _;
use remoteprocess_api::names::{ANNOTATION_MESSAGE_ID, LABEL_TRIGGER};
use remoteprocess_api::status::AttemptStatus;
use remoteprocess_api::{Phase, RemoteProcess, RemoteProcessSpec, RemoteProcessStatus};

use super::cursor::{Cursor, annotation};

/// A process as it was seen last.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The object, without its spec and without annotations that events do not need.
    pub process: RemoteProcess,
    /// The annotation with the cursor.
    pub cursor: Option<String>,
    /// The object is gone.
    pub is_deleted: bool,
    /// Only its name and uid are known, and perhaps a cursor.
    pub is_unread: bool,
    /// When this bridge saw the process first.
    pub since: Option<Timestamp>,
}

impl View {
    /// Keeps what events need.
    pub fn new(mut process: RemoteProcess, sink: &str) -> Self {
        let mut annotations = process.metadata.annotations.take().unwrap_or_default();
        let cursor = annotations.remove(&annotation(sink));
        annotations.retain(|name, _| name == ANNOTATION_MESSAGE_ID);
        let mut labels: BTreeMap<_, _> = process.metadata.labels.take().unwrap_or_default();
        labels.retain(|name, _| name == LABEL_TRIGGER);
        process.metadata.annotations = Some(annotations);
        process.metadata.labels = Some(labels);
        process.metadata.managed_fields = None;
        process.spec = RemoteProcessSpec::default();
        Self {
            process,
            cursor,
            is_deleted: false,
            is_unread: false,
            since: None,
        }
    }

    /// A process that is still to be read.
    pub fn unread(name: &str, uid: &str, cursor: Option<String>) -> Self {
        let mut process = RemoteProcess::new(name, RemoteProcessSpec::default());
        process.metadata.uid = Some(uid.to_owned());
        Self {
            process,
            cursor,
            is_deleted: false,
            is_unread: true,
            since: None,
        }
    }

    /// Whether another view of the same process is newer; false if that cannot be told.
    pub fn is_older_than(&self, other: &Self) -> bool {
        let version = |view: &Self| view.process.resource_version()?.parse::<u64>().ok();
        matches!((version(self), version(other)), (Some(own), Some(other)) if own < other)
    }

    /// The same, of an object that is gone.
    #[must_use]
    pub fn deleted(&self) -> Self {
        Self {
            is_deleted: true,
            ..self.clone()
        }
    }

    /// How far the annotation says that events are sent.
    pub fn noted(&self) -> Cursor {
        Cursor::read(self.cursor.as_deref(), &self.uid())
    }

    /// Uid of the process.
    pub fn uid(&self) -> String {
        self.process.uid().unwrap_or_default()
    }

    /// Name of the process.
    pub fn name(&self) -> String {
        self.process.name_any()
    }

    /// When it was created.
    pub fn created(&self) -> Option<Timestamp> {
        self.process.creation_timestamp().map(|time| time.0)
    }

    /// Its phase.
    pub fn phase(&self) -> Option<Phase> {
        self.status()?.phase
    }

    /// Whether the process has ended for good.
    pub fn is_final(&self) -> bool {
        self.phase().is_some_and(Phase::is_final)
    }

    /// When the process ended, or when this bridge saw it first if that was later: until then, nobody has waited for
    /// anything.
    pub fn ended(&self) -> Option<Timestamp> {
        self.status()?.finished_at.max(self.since)
    }

    /// Whether attempt `number` is not the one that runs now.
    pub fn is_over(&self, number: u32) -> bool {
        self.is_deleted || self.is_final() || number < self.latest()
    }

    /// Whether an attempt may have run: the start of one was granted, or there are attempts without a record.
    pub fn has_run(&self) -> bool {
        let records = self.status().map(|status| &status.attempts[..]).unwrap_or_default();
        let is_recorded = records.len() as u64 >= u64::from(self.latest());
        !is_recorded
            || records
                .iter()
                .any(|record| record.granted_at.is_some() || record.started_at.is_some())
    }

    /// Number of the newest attempt; 0 before the first.
    pub fn latest(&self) -> u32 {
        let status = self.status();
        let counted = status.and_then(|status| status.attempt).unwrap_or_default();
        let recorded = status
            .and_then(RemoteProcessStatus::latest_attempt)
            .map(|attempt| attempt.number);
        // The end of the range has a meaning of its own.
        counted.max(recorded.unwrap_or_default()).min(u32::MAX - 1)
    }

    /// The record of an attempt: those in the middle are not kept.
    pub fn attempt(&self, number: u32) -> Option<&AttemptStatus> {
        self.status()?.attempt(number)
    }

    /// The status, if there is one.
    pub fn status(&self) -> Option<&RemoteProcessStatus> {
        self.process.status.as_ref()
    }
}
