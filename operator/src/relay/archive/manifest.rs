//! What the archive stores about an attempt in addition to its bytes.

use remoteprocess_proto::v1::exit::{Outcome, Source, Stop};
use remoteprocess_proto::v1::{Cursor, Exit, Gap, GapReason, Reason, Seal, SealReason, StreamSeal, Usage};
use serde::{Deserialize, Serialize};

use super::SegmentName;
use super::retention::Expired;
use crate::relay::attempt::Subject;

/// The manifest of one attempt: one is written when its archiving begins, and one with the exit at its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of this schema.
    pub version: u32,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// UID of the object.
    pub uid: String,
    /// Number of the attempt.
    pub attempt: u32,
    /// UID of the attempt's pod: only its agent may add output.
    #[serde(default)]
    pub pod_uid: String,
    /// How the attempt ended; absent while it runs. If it is present, nothing more will be archived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<StoredExit>,
    /// True if every byte of both streams is here, with the sha256 of the agent's whole seal.
    #[serde(default)]
    pub sealed: bool,
    /// Offsets of both streams at the end; meaningful once there is an exit.
    #[serde(default)]
    pub stdout_bytes: u64,
    /// See `stdout_bytes`.
    #[serde(default)]
    pub stderr_bytes: u64,
    /// Number of bytes of stdout that are permanently missing, as far as known.
    #[serde(default)]
    pub stdout_lost_bytes: u64,
    /// See `stdout_lost_bytes`.
    #[serde(default)]
    pub stderr_lost_bytes: u64,
    /// Ranges that are permanently missing; the first hundred of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<StoredGap>,
    /// The segments, in order; filled in at the end.
    #[serde(default)]
    pub segments: Vec<SegmentEntry>,
    /// Set once retention has removed the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expired: Option<Expired>,
}

/// One segment of a finished attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentEntry {
    /// Name of the object below `segments/`.
    pub name: String,
    /// Offset of stdout at its beginning.
    pub stdout: u64,
    /// Offset of stderr at its beginning.
    pub stderr: u64,
}

/// A `Gap` of the wire as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredGap {
    /// `STREAM_STDOUT` or `STREAM_STDERR`.
    pub stream: String,
    /// First offset of the gap.
    pub from: u64,
    /// First offset after it, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// Why.
    #[serde(with = "by_name", default)]
    pub reason: GapReason,
}

/// An `Exit` of the wire as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StoredExit {
    outcome: String,
    value: i32,
    source: String,
    #[serde(with = "by_name")]
    reason: Reason,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seal: Option<StoredSeal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<StoredUsage>,
    started_unix_nanos: i64,
    finished_unix_nanos: i64,
    leftovers: u32,
    oom_kills: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StoredSeal {
    stdout_bytes: u64,
    stdout_sha256: String,
    stdout_dropped_bytes: u64,
    stderr_bytes: u64,
    stderr_sha256: String,
    stderr_dropped_bytes: u64,
    #[serde(with = "by_name")]
    reason: SealReason,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StoredUsage {
    user_micros: u64,
    system_micros: u64,
    peak_memory_bytes: u64,
    read_bytes: u64,
    written_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_peak_memory_bytes: Option<u64>,
}

/// A reason is stored by its name, which never changes; an unknown name reads as unspecified.
mod by_name {
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Copy + Into<&'static str>, S: Serializer>(
        reason: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str((*reason).into())
    }

    pub(super) fn deserialize<'de, T: FromStr + Default, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        Ok(String::deserialize(deserializer)?.parse().unwrap_or_default())
    }
}

impl Manifest {
    /// The manifest of an attempt that has just begun.
    #[must_use]
    pub fn begin(subject: &Subject) -> Self {
        Self {
            version: 1,
            namespace: subject.namespace.clone(),
            name: subject.name.clone(),
            uid: subject.key.uid.clone(),
            attempt: subject.key.attempt,
            pod_uid: subject.pod_uid.clone(),
            exit: None,
            sealed: false,
            stdout_bytes: 0,
            stderr_bytes: 0,
            stdout_lost_bytes: 0,
            stderr_lost_bytes: 0,
            gaps: Vec::new(),
            segments: Vec::new(),
            expired: None,
        }
    }

    /// The last frame of the attempt's stream; `None` while it runs.
    #[must_use]
    pub fn exit_frame(&self) -> Option<Exit> {
        let mut exit = self.exit.as_ref()?.to_wire();
        exit.sealed = self.sealed;
        if let Some(expired) = &self.expired {
            exit.message = expired.sentence();
        }
        Some(exit)
    }

    /// Number of bytes that are permanently missing, as far as known.
    #[must_use]
    pub fn lost(&self) -> Cursor {
        Cursor {
            stdout: self.stdout_lost_bytes,
            stderr: self.stderr_lost_bytes,
        }
    }

    /// Where both streams ended.
    #[must_use]
    pub fn end(&self) -> Cursor {
        Cursor {
            stdout: self.stdout_bytes,
            stderr: self.stderr_bytes,
        }
    }
}

impl SegmentEntry {
    /// The entry of a segment.
    #[must_use]
    pub fn of(name: &SegmentName) -> Self {
        Self {
            name: name.to_string(),
            stdout: name.start().stdout,
            stderr: name.start().stderr,
        }
    }
}

impl StoredGap {
    /// The JSON form of a gap.
    #[must_use]
    pub fn from_wire(gap: &Gap) -> Self {
        Self {
            stream: gap.stream().as_str_name().to_owned(),
            from: gap.from,
            to: gap.to,
            reason: gap.reason(),
        }
    }
}

impl StoredExit {
    /// The JSON form of an exit.
    #[must_use]
    pub fn from_wire(exit: &Exit) -> Self {
        // Without `..`: a new field of the wire does not compile until it is stored. `sealed` is the manifest's.
        let Exit {
            outcome: _,
            value,
            source: _,
            sealed: _,
            reason: _,
            message,
            stop,
            seal,
            usage,
            started_unix_nanos,
            finished_unix_nanos,
            leftovers,
            oom_kills,
        } = exit;
        Self {
            outcome: exit.outcome().as_str_name().to_owned(),
            value: *value,
            source: exit.source().as_str_name().to_owned(),
            reason: exit.reason(),
            message: message.clone(),
            stopped_by: stop.as_ref().map(|stop| stop.requested_by.clone()),
            stop_message: stop.as_ref().map(|stop| stop.message.clone()),
            seal: seal.as_ref().map(StoredSeal::from_wire),
            usage: usage.map(|usage| StoredUsage {
                user_micros: usage.user_micros,
                system_micros: usage.system_micros,
                peak_memory_bytes: usage.peak_memory_bytes,
                read_bytes: usage.read_bytes,
                written_bytes: usage.written_bytes,
                container_peak_memory_bytes: usage.container_peak_memory_bytes,
            }),
            started_unix_nanos: *started_unix_nanos,
            finished_unix_nanos: *finished_unix_nanos,
            leftovers: *leftovers,
            oom_kills: *oom_kills,
        }
    }

    fn to_wire(&self) -> Exit {
        Exit {
            outcome: Outcome::from_str_name(&self.outcome).unwrap_or(Outcome::Unknown).into(),
            value: self.value,
            source: Source::from_str_name(&self.source).unwrap_or(Source::None).into(),
            sealed: false,
            reason: self.reason.into(),
            message: self.message.clone(),
            stop: self.stopped_by.clone().map(|requested_by| Stop {
                requested_by,
                message: self.stop_message.clone().unwrap_or_default(),
            }),
            seal: self.seal.as_ref().map(StoredSeal::to_wire),
            usage: self.usage.as_ref().map(|usage| Usage {
                user_micros: usage.user_micros,
                system_micros: usage.system_micros,
                peak_memory_bytes: usage.peak_memory_bytes,
                read_bytes: usage.read_bytes,
                written_bytes: usage.written_bytes,
                container_peak_memory_bytes: usage.container_peak_memory_bytes,
            }),
            started_unix_nanos: self.started_unix_nanos,
            finished_unix_nanos: self.finished_unix_nanos,
            leftovers: self.leftovers,
            oom_kills: self.oom_kills,
        }
    }
}

impl StoredSeal {
    fn from_wire(seal: &Seal) -> Self {
        let stored = |stream: &Option<StreamSeal>| {
            let StreamSeal {
                bytes,
                sha256,
                dropped_bytes,
            } = stream.clone().unwrap_or_default();
            (bytes, hex::encode(sha256), dropped_bytes)
        };
        let (stdout_bytes, stdout_sha256, stdout_dropped_bytes) = stored(&seal.stdout);
        let (stderr_bytes, stderr_sha256, stderr_dropped_bytes) = stored(&seal.stderr);
        Self {
            stdout_bytes,
            stdout_sha256,
            stdout_dropped_bytes,
            stderr_bytes,
            stderr_sha256,
            stderr_dropped_bytes,
            reason: seal.reason(),
        }
    }

    fn to_wire(&self) -> Seal {
        let hash = |text: &str| hex::decode(text).unwrap_or_default().into();
        Seal {
            stdout: Some(StreamSeal {
                bytes: self.stdout_bytes,
                sha256: hash(&self.stdout_sha256),
                dropped_bytes: self.stdout_dropped_bytes,
            }),
            stderr: Some(StreamSeal {
                bytes: self.stderr_bytes,
                sha256: hash(&self.stderr_sha256),
                dropped_bytes: self.stderr_dropped_bytes,
            }),
            reason: self.reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_survives_the_manifest() {
        let exit = Exit {
            outcome: Outcome::Signal.into(),
            value: 9,
            source: Source::Entrypoint.into(),
            sealed: false,
            reason: Reason::OomKilled.into(),
            message: "killed".to_owned(),
            stop: Some(Stop {
                requested_by: "ana".to_owned(),
                message: "enough".to_owned(),
            }),
            seal: Some(Seal {
                stdout: Some(StreamSeal {
                    bytes: 3,
                    sha256: vec![1; 32].into(),
                    dropped_bytes: 2,
                }),
                stderr: Some(StreamSeal {
                    bytes: 10,
                    sha256: vec![2; 32].into(),
                    dropped_bytes: 11,
                }),
                reason: SealReason::PipeHeld.into(),
            }),
            usage: Some(Usage {
                user_micros: 1,
                system_micros: 2,
                peak_memory_bytes: 3,
                read_bytes: 7,
                written_bytes: 8,
                container_peak_memory_bytes: Some(9),
            }),
            started_unix_nanos: 4,
            finished_unix_nanos: 5,
            leftovers: 6,
            oom_kills: 7,
        };
        let text = serde_json::to_string(&StoredExit::from_wire(&exit)).unwrap();
        assert_eq!(serde_json::from_str::<StoredExit>(&text).unwrap().to_wire(), exit);
    }
}
