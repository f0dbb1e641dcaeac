//! What the archive stores about an attempt in addition to its bytes.

use remoteprocess_proto::v1::{Cursor, Exit, Gap};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::SegmentName;
use super::retention::Expired;
use crate::relay::attempt::Subject;

/// The manifest of one attempt: one is written when its archiving begins, and one with the exit at its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read_exit")]
    pub exit: Option<Exit>,
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
    pub gaps: Vec<Gap>,
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

/// Reads an exit. Before v0.1.0, the stop and the seal had no object of their own.
fn read_exit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Exit>, D::Error> {
    let mut exit = Option::<Value>::deserialize(deserializer)?;
    let Some(fields) = exit.as_mut().and_then(Value::as_object_mut) else {
        return Ok(None);
    };
    if let Some(requested_by) = fields.remove("stoppedBy") {
        let message = fields.remove("stopMessage").unwrap_or_else(|| "".into());
        fields.insert(
            "stop".to_owned(),
            json!({"requestedBy": requested_by, "message": message}),
        );
    }
    if let Some(seal) = fields.get_mut("seal").filter(|seal| seal.get("stdoutBytes").is_some()) {
        let stream = |name: &str| {
            let [bytes, sha256] = ["Bytes", "Sha256"].map(|field| &seal[format!("{name}{field}")]);
            let dropped = seal.get(format!("{name}DroppedBytes"));
            json!({"bytes": bytes, "sha256": sha256, "droppedBytes": dropped.cloned().unwrap_or_else(|| 0.into())})
        };
        *seal = json!({"stdout": stream("stdout"), "stderr": stream("stderr"), "reason": seal["reason"]});
    }
    serde_json::from_value(exit.unwrap_or_default()).map_err(Error::custom)
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
            ..Self::default()
        }
    }

    /// The last frame of the attempt's stream; `None` while it runs.
    #[must_use]
    pub fn exit_frame(&self) -> Option<Exit> {
        let mut exit = self.exit.clone()?;
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

#[cfg(test)]
mod tests {
    use remoteprocess_proto::v1::exit::{Outcome, Source, Stop};
    use remoteprocess_proto::v1::{Reason, Seal, SealReason, StreamSeal, Usage};

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
                    checksum: None,
                }),
                stderr: Some(StreamSeal {
                    bytes: 10,
                    sha256: vec![2; 32].into(),
                    dropped_bytes: 11,
                    checksum: None,
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
        let read = |stored: Value| -> Option<Exit> {
            let mut manifest = serde_json::to_value(Manifest::default()).unwrap();
            manifest["exit"] = stored;
            serde_json::from_value::<Manifest>(manifest).unwrap().exit
        };
        assert_eq!(read(serde_json::to_value(&exit).unwrap()), Some(exit.clone()));
        let before = json!({
            "outcome": "OUTCOME_SIGNAL", "value": 9, "source": "SOURCE_ENTRYPOINT", "reason": "OOMKilled",
            "message": "killed", "stoppedBy": "ana", "stopMessage": "enough",
            "seal": {
                "stdoutBytes": 3, "stdoutSha256": "01".repeat(32), "stdoutDroppedBytes": 2,
                "stderrBytes": 10, "stderrSha256": "02".repeat(32), "stderrDroppedBytes": 11, "reason": "PipeHeld",
            },
            "usage": {
                "userMicros": 1, "systemMicros": 2, "peakMemoryBytes": 3, "readBytes": 7, "writtenBytes": 8,
                "containerPeakMemoryBytes": 9,
            },
            "startedUnixNanos": 4, "finishedUnixNanos": 5, "leftovers": 6, "oomKills": 7,
        });
        assert_eq!(read(before), Some(exit), "of an earlier version");
        assert_eq!(read(Value::Null), None);
    }
}
