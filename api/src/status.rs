//! What the controller and the relay report about a process.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::phase::{Phase, Reason};

/// Observed state of a RemoteProcess.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RemoteProcessStatus {
    /// Phase of the process. Succeeded and Failed are final.
    pub phase: Option<Phase>,
    /// Reason for the phase, as one word of a closed set.
    pub reason: Option<Reason>,
    /// The reason as a readable message.
    pub message: Option<String>,
    /// Generation of the spec that this status describes.
    pub observed_generation: Option<i64>,
    /// Exit code of the program. Absent if a signal ended it or if the end is not known.
    pub exit_code: Option<i32>,
    /// Name of the signal that ended the program, for example SIGKILL.
    pub signal: Option<String>,
    /// Number of the current attempt, from 1.
    pub attempt: Option<u32>,
    /// When the program of the current attempt was launched.
    pub started_at: Option<Timestamp>,
    /// When the process ended.
    pub finished_at: Option<Timestamp>,
    /// How long the program ran, as text, for example 1m30s.
    pub duration: Option<String>,
    /// Scheduled, Started, Finished, Succeeded, Ready, OutputSealed and, only if they are or were true, Paused,
    /// Reconciling, Stalled, OutputBlocked, ArchiveUnavailable and OutputLost.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Size of the output of the current attempt. To read the output, use `rproc logs`.
    pub output: Option<OutputStatus>,
    /// Number of retries.
    pub retries: Option<RetriesStatus>,
    /// The attempts, oldest first: the first nine and the last nine; `attempt` says how many there were. One pod and at
    /// most one launch per attempt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["number"]))]
    #[schemars(length(max = 32))]
    pub attempts: Vec<AttemptStatus>,
}

/// Number of retries, by what ended the previous attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetriesStatus {
    /// After the pod, the node or the agent was lost.
    pub infrastructure: u32,
    /// After the program had failed.
    pub process_failure: u32,
}

/// Output of the current attempt.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutputStatus {
    /// Bytes of standard output.
    pub stdout_bytes: Option<u64>,
    /// Bytes of standard error.
    pub stderr_bytes: Option<u64>,
    /// The last lines of both streams, at most 1 KiB, with control bytes escaped (see `spec.output.tailInStatus`).
    pub tail: Option<String>,
}

/// One attempt to run the program.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AttemptStatus {
    /// Number of the attempt, from 1.
    pub number: u32,
    /// Name of the pod of this attempt.
    pub pod_name: Option<String>,
    /// UID of that pod.
    pub pod_uid: Option<String>,
    /// Node of that pod.
    pub node: Option<String>,
    /// When the attempt began. Its pod is created after that.
    pub begun_at: Option<Timestamp>,
    /// The operator replica that is the home of this attempt.
    pub relay: Option<String>,
    /// When the start was granted. If absent, nothing has run.
    pub granted_at: Option<Timestamp>,
    /// When the program was launched.
    pub started_at: Option<Timestamp>,
    /// When the program ended.
    pub finished_at: Option<Timestamp>,
    /// When the current pause began. Absent if the program is not paused.
    pub paused_at: Option<Timestamp>,
    /// Maximum number of seconds for which the program runs, as its agent knows it. Absent if there is no limit.
    pub run_seconds: Option<u32>,
    /// How the program ended.
    pub exit: Option<AttemptExit>,
    /// Resources that the program used, including its children.
    pub usage: Option<UsageStatus>,
    /// The sealed output.
    pub output: Option<AttemptOutput>,
}

/// Who reported the end of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExitSource {
    /// The entrypoint, which is the parent of the program: a verified record.
    Entrypoint,
    /// Only the kubelet's status of the container is known.
    Kubelet,
    /// Nothing reported the end.
    #[default]
    None,
}

/// How an attempt ended: an exit code, a signal, or neither if the end is not known.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AttemptExit {
    /// Exit code, 0 to 255.
    pub code: Option<i32>,
    /// Name of the signal that ended the program.
    pub signal: Option<String>,
    /// Which component reported the end.
    pub source: ExitSource,
    /// Reason, as one word.
    pub reason: Option<Reason>,
    /// The reason as a readable message.
    pub message: Option<String>,
    /// Who requested the end, if it was requested.
    pub stop: Option<StopStatus>,
    /// Number of processes that outlived the program and were ended.
    pub leftovers: Option<u32>,
    /// Number of processes in the container that the kernel killed because they ran out of memory.
    pub oom_kills: Option<u64>,
}

/// Who requested the end of a process.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StopStatus {
    /// The user who called the relay, or `NAME through spec.desiredState` with the user or the field manager, or a part
    /// of the system: `deadline`, `deletion`, `kubelet`, `entrypoint`.
    pub requested_by: String,
    /// The reason that was given.
    pub message: Option<String>,
}

/// Resources that a program used.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UsageStatus {
    /// CPU time in user and system mode, in seconds, for example 1.25.
    pub cpu_seconds: f64,
    /// Largest resident set of a single process, in bytes (getrusage(2), `ru_maxrss`).
    pub peak_memory_bytes: u64,
    /// Peak memory of the whole container, including page cache, in bytes. Absent if its cgroup does not report it.
    pub container_peak_memory_bytes: Option<u64>,
    /// Read from block devices, in bytes (getrusage(2), `ru_inblock`).
    pub read_bytes: u64,
    /// Written to block devices, in bytes (getrusage(2), `ru_oublock`).
    pub written_bytes: u64,
}

/// The sealed output of one attempt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AttemptOutput {
    /// Standard output.
    pub stdout: StreamStatus,
    /// Standard error.
    pub stderr: StreamStatus,
    /// Whether the archive holds every byte that the agent counted, unchanged.
    pub sealed: bool,
}

/// Byte count and hash of one stream.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamStatus {
    /// Bytes that the program wrote.
    pub bytes: u64,
    /// SHA-256 of them in hexadecimal.
    pub sha256: Option<String>,
    /// Number of these bytes that are permanently missing from the archive: the sum of all gaps. Absent if there are
    /// none.
    pub lost_bytes: Option<u64>,
}

/// How many of the first attempts, and of the last, keep a record in the status.
pub const KEPT_ATTEMPTS: u32 = 9;

impl AttemptStatus {
    /// Maximum run time of the program, as its agent knows it.
    pub fn run_deadline(&self) -> Option<Duration> {
        self.run_seconds.map(|seconds| Duration::from_secs(seconds.into()))
    }
}

impl RetriesStatus {
    /// Both kinds together.
    pub fn sum(&self) -> u32 {
        self.infrastructure.saturating_add(self.process_failure)
    }
}

impl RemoteProcessStatus {
    /// Whether attempt `number` keeps its record: the first nine and the last nine do. Each of the two writers leaves
    /// out all others.
    pub fn keeps(&self, number: u32) -> bool {
        number <= KEPT_ATTEMPTS || number.saturating_add(KEPT_ATTEMPTS) > self.attempt.unwrap_or_default()
    }

    /// Drops the records of the attempts in the middle.
    pub fn trim(&mut self) {
        let mut attempts = std::mem::take(&mut self.attempts);
        attempts.retain(|attempt| self.keeps(attempt.number));
        self.attempts = attempts;
    }

    /// The record of attempt `number`.
    pub fn attempt(&self, number: u32) -> Option<&AttemptStatus> {
        self.attempts.iter().find(|attempt| attempt.number == number)
    }

    /// Number of the newest attempt. The records count, too: an attempt is not begun a second time because a user has
    /// removed or lowered the field `attempt`.
    pub fn current_attempt(&self) -> Option<u32> {
        self.attempts
            .iter()
            .map(|attempt| attempt.number)
            .chain(self.attempt)
            .max()
    }

    /// The record of the newest attempt.
    pub fn latest_attempt(&self) -> Option<&AttemptStatus> {
        self.attempts.iter().max_by_key(|attempt| attempt.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_attempt_is_known_without_its_field() {
        let record = |number| AttemptStatus {
            number,
            ..AttemptStatus::default()
        };
        let current = |attempt, numbers: &[u32]| {
            let attempts = numbers.iter().copied().map(record).collect();
            let status = RemoteProcessStatus {
                attempt,
                attempts,
                ..RemoteProcessStatus::default()
            };
            status.current_attempt()
        };
        assert_eq!(current(None, &[]), None);
        assert_eq!(current(None, &[1, 2]), Some(2));
        assert_eq!(current(Some(1), &[1, 2]), Some(2));
        assert_eq!(current(Some(3), &[1, 2]), Some(3));
    }

    #[test]
    fn the_first_and_the_last_nine_attempts_are_kept() {
        let kept = |attempt| {
            let status = RemoteProcessStatus {
                attempt: Some(attempt),
                ..RemoteProcessStatus::default()
            };
            (1..=attempt).filter(|number| status.keeps(*number)).collect::<Vec<_>>()
        };
        assert_eq!(kept(18).len(), 18);
        assert_eq!(kept(100), (1..=9).chain(92..=100).collect::<Vec<_>>());
    }
}
