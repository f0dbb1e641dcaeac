//! How a process is paused and stopped, when it is retried, how long it may take, and when its object is deleted.

#![allow(unreachable_pub, reason = "KubeSchema makes a private copy of each struct")]

use std::time::Duration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use strum::{Display, EnumString, IntoStaticStr};

use super::{RemoteProcessSpec, signal_schema};
use crate::rules;

/// First wait before another attempt in seconds, if the spec does not set it.
pub const DEFAULT_BACKOFF_SECONDS: u32 = 10;
/// Longest wait before another attempt in seconds, if the spec does not set it.
pub const DEFAULT_MAX_BACKOFF_SECONDS: u32 = 300;

/// Whether the process should run.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum DesiredState {
    /// It should run.
    #[default]
    Running,
    /// It should be paused: no process of it runs, and none is started.
    Paused,
    /// It should end. There is no way back.
    Stopped,
}

/// How the process is stopped: the signal, then CONT, then after the grace period KILL.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StopSpec {
    /// Name of the first signal. Defaults to SIGTERM.
    #[serde(default)]
    #[schemars(schema_with = "signal_schema")]
    pub signal: Option<String>,
    /// Seconds between the first signal and KILL: 0 to 86400. Defaults to 30.
    #[schemars(range(min = 0, max = 86_400))]
    pub grace_period_seconds: Option<u32>,
}

/// What happens to processes that outlive the program. Kill (default) ends them with TERM and, after 2 s, KILL, and
/// counts them. Wait: the process finishes when the last of them has ended.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum Leftovers {
    /// They are ended and counted.
    #[default]
    Kill,
    /// The process finishes when the last of them has ended.
    Wait,
}

/// Whether another attempt follows an attempt that failed. A process that was stopped, that exceeded its deadline, or
/// whose spec is invalid is never retried.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::exit_codes_need_process_failure())]
pub struct RetriesSpec {
    /// Maximum number of retries after each kind of end, 0 to 100. Each kind is counted separately. Defaults to 0: the
    /// program runs at most once.
    #[schemars(range(min = 0, max = 100))]
    pub limit: Option<u32>,
    /// The kinds of end that are retried. Defaults to both: Infrastructure (the pod, the node or the agent was removed
    /// or lost) and ProcessFailure (the program ended with an exit code other than 0, by a signal, or because it ran
    /// out of memory).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    // Not `on`: YAML 1.1, and so kubectl, reads that as `true`.
    pub after: Vec<RetryAfter>,
    /// Which exit codes are retried after a ProcessFailure. Defaults to all.
    pub exit_codes: Option<ExitCodes>,
    /// The delay before another attempt.
    pub backoff: Option<BackoffSpec>,
}

/// A kind of end.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum RetryAfter {
    /// The pod, the node or the agent was removed or lost: the program did not end by itself.
    Infrastructure,
    /// The program ended with an exit code other than 0, by a signal, or because it ran out of memory.
    ProcessFailure,
}

/// Exit codes, as in the podFailurePolicy of a Job; 128 + n for signal n. Exactly one of the two lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::one_list_of_exit_codes())]
pub struct ExitCodes {
    /// Only these codes.
    #[serde(default, rename = "in", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 255), inner(range(min = 1, max = 255)))]
    pub within: Vec<i32>,
    /// All codes except these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 255), inner(range(min = 1, max = 255)))]
    pub not_in: Vec<i32>,
}

/// The delay before another attempt. It doubles with each attempt.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackoffSpec {
    /// Seconds before the second attempt: 0 to 3600. Defaults to 10.
    #[schemars(range(min = 0, max = 3600))]
    pub initial_seconds: Option<u32>,
    /// Maximum number of seconds before an attempt: 0 to 86400. Defaults to 300.
    #[schemars(range(min = 0, max = 86_400))]
    pub max_seconds: Option<u32>,
}

/// Time limits of the process. You can change only `runSeconds` after creation.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::warn_signal_needs_its_time())]
pub struct DeadlinesSpec {
    /// Maximum number of seconds from the creation of the object to the start of the program: 1 to 604800. By default,
    /// there is no limit. A further attempt has the same time from its own beginning. A process that has not started by
    /// then fails, and the reason says why it waited.
    #[schemars(range(min = 1, max = 604_800))]
    pub start_seconds: Option<u32>,
    /// Maximum number of seconds for which the program of each attempt runs: 1 to 31536000. By default, there is no
    /// limit. After that, the program is stopped, and the process fails with reason DeadlineExceeded. Its exit code
    /// does not matter. You can change the limit at any time, also while the program runs. If the program has already
    /// run for longer, it is stopped at once.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub run_seconds: Option<u32>,
    /// Number of seconds before the end of `runSeconds` at which the Event DeadlineNear is created and `warnSignal` is
    /// sent: 1 to 31536000. By default, there is no warning. Each new `runSeconds` has its own warning.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub warn_before_seconds: Option<u32>,
    /// Name of a signal that is then sent to the program itself. By default, none is sent.
    #[serde(default)]
    #[schemars(schema_with = "signal_schema")]
    pub warn_signal: Option<String>,
    /// Whether the time for which the program is paused counts for `runSeconds`. Defaults to true.
    pub count_paused: Option<bool>,
}

/// When the object and its pods are deleted after the end. The deletion waits until the output is sealed or closed.
/// Archived output stays. If a tool applies the object again (GitOps), the command runs again.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TtlSpec {
    /// Seconds after the phase Succeeded: 0 to 31536000. By default, the object is not deleted.
    #[schemars(range(min = 0, max = 31_536_000))]
    pub seconds_after_success: Option<u32>,
    /// Seconds after the phase Failed: 0 to 31536000. By default, the object is not deleted.
    #[schemars(range(min = 0, max = 31_536_000))]
    pub seconds_after_failure: Option<u32>,
}

/// When the condition Ready is true. `helm --wait` and GitOps tools use it. Started (default): once the program was
/// launched. Finished: once the program has succeeded.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum ReadyWhen {
    /// The program was launched, and has not failed.
    #[default]
    Started,
    /// The program has succeeded.
    Finished,
}

impl RemoteProcessSpec {
    /// Seconds from creation to the start of the program; for an attempt after one that ran, seconds from its own
    /// beginning.
    pub fn start_seconds(&self) -> Option<u32> {
        self.deadlines.as_ref().and_then(|deadlines| deadlines.start_seconds)
    }

    /// Maximum run time of the program of an attempt.
    pub fn run_deadline(&self) -> Option<Duration> {
        let seconds = self.deadlines.as_ref()?.run_seconds?;
        Some(Duration::from_secs(seconds.into()))
    }

    /// Whether the time for which the program is paused counts for [`Self::run_deadline`].
    pub fn counts_pauses(&self) -> bool {
        let deadlines = self.deadlines.as_ref();
        deadlines.and_then(|deadlines| deadlines.count_paused).unwrap_or(true)
    }

    /// When the condition Ready is true.
    pub fn ready_when(&self) -> ReadyWhen {
        self.ready_when.unwrap_or_default()
    }
}

impl RetriesSpec {
    /// Whether ends of this kind are retried at all.
    pub fn is_after(&self, kind: RetryAfter) -> bool {
        self.limit.is_some_and(|limit| limit > 0) && (self.after.is_empty() || self.after.contains(&kind))
    }

    /// Seconds before the attempt that follows `retries` others; they double each time.
    pub fn backoff_seconds(&self, retries: u32) -> u32 {
        let backoff = self.backoff.clone().unwrap_or_default();
        let first = backoff.initial_seconds.unwrap_or(DEFAULT_BACKOFF_SECONDS);
        let longest = backoff.max_seconds.unwrap_or(DEFAULT_MAX_BACKOFF_SECONDS);
        first.saturating_mul(1 << retries.min(20)).min(longest)
    }
}

impl ExitCodes {
    /// Whether this rule applies to an end with this code.
    pub fn matches(&self, code: i32) -> bool {
        (self.within.is_empty() || self.within.contains(&code)) && !self.not_in.contains(&code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        let waits = |retries: &RetriesSpec| [0, 1, 2, 5, 99].map(|n| retries.backoff_seconds(n));
        assert_eq!(waits(&RetriesSpec::default()), [10, 20, 40, 300, 300]);
        let backoff = Some(BackoffSpec {
            initial_seconds: Some(0),
            max_seconds: None,
        });
        let at_once = RetriesSpec {
            backoff,
            ..RetriesSpec::default()
        };
        assert_eq!(waits(&at_once), [0; 5]);
    }

    #[test]
    fn codes_are_in_or_not_in() {
        let within = ExitCodes {
            within: vec![3, 137],
            not_in: vec![],
        };
        assert_eq!([3, 137, 1].map(|code| within.matches(code)), [true, true, false]);
        let not_in = ExitCodes {
            within: vec![],
            not_in: vec![3],
        };
        assert_eq!([3, 1].map(|code| not_in.matches(code)), [false, true]);
    }
}
