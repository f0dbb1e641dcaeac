//! What the relay has learned about an attempt, added to the status of the object. Pure functions.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use remoteprocess_api::condition::is_of_relay;
use remoteprocess_api::{
    AttemptOutput, AttemptStatus, ConditionType, DesiredState, OutputReason, OutputStatus, RemoteProcess,
    RemoteProcessStatus, StreamStatus, TailInStatus, UsageStatus,
};
use remoteprocess_proto::v1::{Exit, Gap, GapReason, Seal, SealReason, StreamSeal, Usage};

use super::condition::over;
use super::end::exit_to_status;
use super::tail::render_tail;
use crate::relay::archive::Manifest;
use crate::relay::live::Fact;

/// The request of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// UID of the process.
    pub uid: String,
    /// Number of the attempt.
    pub attempt: u32,
    /// UID of the pod in its certificate.
    pub pod_uid: String,
    /// The agent has already launched the program and only needs a home.
    pub launched: bool,
}

/// What to do with a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The grant is already in the status.
    Granted,
    /// It may be granted once this status is written.
    Write(Box<RemoteProcessStatus>),
    /// First see whether this pod is the agent's.
    CheckPod(String),
    /// Refused, and why.
    Refused(&'static str),
}

/// Whether an attempt may start, or continue. `pod` is its pod, if that has been read.
pub fn decide_grant(
    current: &RemoteProcess,
    claim: &Claim,
    replica: &str,
    now: Timestamp,
    pod: Option<&Pod>,
) -> Decision {
    let Some(attempt) = current.status.as_ref().and_then(|status| status.attempt(claim.attempt)) else {
        return Decision::Refused("there is no such attempt");
    };
    let is_known = attempt.pod_uid.is_some() && (attempt.granted_at.is_some() || attempt.node.is_some());
    match (&attempt.pod_uid, &attempt.pod_name) {
        (Some(pod_uid), _) if *pod_uid != claim.pod_uid => {
            return Decision::Refused("this pod is not the pod of this attempt");
        }
        _ if is_known || pod.is_some() => {}
        (_, Some(pod)) => return Decision::CheckPod(pod.clone()),
        (_, None) => return Decision::Refused("this attempt has no pod"),
    }
    if claim.launched {
        return resume(attempt);
    }
    if let Some(reason) = refusal(current, claim.attempt) {
        return Decision::Refused(reason);
    }
    if attempt.granted_at.is_some() {
        // The same pod asks again: the launch record on its spool ensures a single launch.
        return Decision::Granted;
    }
    let granted = |attempt: &mut AttemptStatus| {
        attempt.pod_uid = Some(claim.pod_uid.clone());
        let node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone());
        attempt.node = node.or(attempt.node.take());
        attempt.relay = Some(replica.to_owned());
        attempt.granted_at = Some(now);
    };
    let Some(mut next) = with_attempt(current, claim.attempt, granted) else {
        return Decision::Refused("there is no such attempt");
    };
    // The status of the output still describes the previous attempt.
    next.output = None;
    next.conditions.retain(|condition| !is_of_relay(condition));
    Decision::Write(Box::new(next))
}

/// The status after a change of the record of this attempt; `None` if it has no record, or if the change changes nothing.
fn with_attempt(
    current: &RemoteProcess,
    number: u32,
    change: impl FnOnce(&mut AttemptStatus),
) -> Option<RemoteProcessStatus> {
    let mut next = current.status.clone()?;
    next.trim();
    let attempt = next.attempts.iter_mut().find(|attempt| attempt.number == number)?;
    let before = attempt.clone();
    change(attempt);
    (*attempt != before).then_some(next)
}

/// A launched program may always continue, and its agent may always deliver its output.
fn resume(attempt: &AttemptStatus) -> Decision {
    match attempt.granted_at {
        Some(_) => Decision::Granted,
        None => Decision::Refused("this attempt was never granted"),
    }
}

fn refusal(current: &RemoteProcess, number: u32) -> Option<&'static str> {
    let status = current.status.as_ref()?;
    if status.current_attempt() != Some(number) {
        return Some("this is not the current attempt");
    }
    if status.phase.is_some_and(remoteprocess_api::Phase::is_final)
        || status.attempt(number).is_some_and(|attempt| attempt.exit.is_some())
    {
        return Some("this attempt has ended");
    }
    if current.metadata.deletion_timestamp.is_some() {
        return Some("the process is being deleted");
    }
    match current.spec.desired_state {
        DesiredState::Running => None,
        // The agent asks again.
        DesiredState::Paused => Some("the process is paused"),
        DesiredState::Stopped => Some("the process is to be stopped"),
    }
}

/// The patch for a fact about a running program; `None` if it is already recorded, is no part of the status, or the
/// program has ended.
pub fn build_fact(current: &RemoteProcess, number: u32, fact: &Fact) -> Option<RemoteProcessStatus> {
    with_attempt(current, number, |attempt| match *fact {
        _ if attempt.exit.is_some() => {}
        Fact::Started {
            at_unix_nanos,
            run_deadline,
        } if attempt.started_at.is_none() => {
            if let Some(at) = time(at_unix_nanos) {
                attempt.started_at = Some(at);
                attempt.run_seconds = whole_seconds(run_deadline);
            }
        }
        Fact::Paused(Some(at)) => attempt.paused_at = attempt.paused_at.or(Some(at)),
        Fact::Paused(None) => attempt.paused_at = None,
        Fact::RunDeadline(run_deadline) => attempt.run_seconds = whole_seconds(run_deadline),
        Fact::Started { .. } | Fact::DeadlineNear(_) | Fact::PauseFailed { .. } => {}
    })
}

/// The patch for the end: exit, seal, usage and tail in one write; `None` if it is already recorded. If the entrypoint
/// did not report the end, the controller writes it; then only the output is recorded here.
pub fn build_end(
    current: &RemoteProcess,
    number: u32,
    manifest: &Manifest,
    tail: &[u8],
    now: Timestamp,
) -> Option<RemoteProcessStatus> {
    let exit = &manifest.exit_frame()?;
    let mut next = with_attempt(current, number, |attempt| {
        if attempt.output.is_some() {
            return;
        }
        attempt.started_at = attempt.started_at.or_else(|| time(exit.started_unix_nanos));
        attempt.finished_at = attempt.finished_at.or_else(|| time(exit.finished_unix_nanos));
        attempt.paused_at = None;
        if exit.source() == remoteprocess_proto::v1::exit::Source::Entrypoint && attempt.exit.is_none() {
            attempt.exit = Some(exit_to_status(exit));
        }
        attempt.usage = exit.usage.map(usage_to_status);
        attempt.output = Some(output(manifest, exit));
    })?;
    if next.current_attempt() == Some(number) {
        next.output = Some(OutputStatus {
            stdout_bytes: Some(manifest.stdout_bytes),
            stderr_bytes: Some(manifest.stderr_bytes),
            tail: shows_tail(current, exit)
                .then(|| render_tail(tail))
                .filter(|tail| !tail.is_empty()),
        });
        let (ours, others) = next.conditions.into_iter().partition(is_of_relay);
        next.conditions = others;
        next.conditions.extend(conditions(manifest, exit, now));
        next.conditions.extend(over(ours, now));
    }
    Some(next)
}

fn usage_to_status(usage: Usage) -> UsageStatus {
    let Usage {
        user_micros,
        system_micros,
        peak_memory_bytes,
        read_bytes,
        written_bytes,
        container_peak_memory_bytes,
    } = usage;
    UsageStatus {
        // Microseconds: exact in a double for 285 years of CPU.
        cpu_seconds: (user_micros + system_micros) as f64 / 1e6,
        peak_memory_bytes,
        container_peak_memory_bytes,
        read_bytes,
        written_bytes,
    }
}

fn shows_tail(current: &RemoteProcess, exit: &Exit) -> bool {
    let succeeded = exit.outcome() == remoteprocess_proto::v1::exit::Outcome::Code && exit.value == 0;
    match current.spec.tail_in_status() {
        TailInStatus::Always => true,
        TailInStatus::OnFailure => !succeeded || exit.stop.is_some(),
        TailInStatus::Never => false,
    }
}

fn output(manifest: &Manifest, exit: &Exit) -> AttemptOutput {
    let seal = exit.seal.clone().unwrap_or_default();
    let stream = |seal: Option<StreamSeal>, archived: u64, lost: u64| StreamStatus {
        bytes: seal.as_ref().map_or(archived, |seal| seal.bytes),
        sha256: seal
            .filter(|seal| !seal.sha256.is_empty())
            .map(|seal| hex::encode(&seal.sha256)),
        lost_bytes: (lost > 0).then_some(lost),
    };
    AttemptOutput {
        stdout: stream(seal.stdout, manifest.stdout_bytes, manifest.stdout_lost_bytes),
        stderr: stream(seal.stderr, manifest.stderr_bytes, manifest.stderr_lost_bytes),
        sealed: exit.sealed,
    }
}

fn conditions(manifest: &Manifest, exit: &Exit, now: Timestamp) -> Vec<Condition> {
    let condition = |kind: ConditionType, status: bool, reason: &str, message: String| Condition {
        type_: kind.to_string(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: None,
        last_transition_time: Time(now),
    };
    let (stdout, stderr) = (manifest.stdout_bytes, manifest.stderr_bytes);
    let sealed = if exit.sealed {
        let message = format!("{stdout} bytes of stdout and {stderr} bytes of stderr are in the archive");
        condition(
            ConditionType::OutputSealed,
            true,
            OutputReason::Archived.into(),
            message,
        )
    } else {
        let reason = unsealed_reason(manifest, exit);
        let message = format!(
            "the archive holds stdout up to {stdout} and stderr up to {stderr}, and completeness is not confirmed"
        );
        condition(ConditionType::OutputSealed, false, reason, message)
    };
    let mut conditions = vec![sealed];
    if let Some(first) = manifest.gaps.first() {
        let endless = manifest.gaps.iter().any(|gap| gap.to.is_none());
        let message = format!(
            "{} bytes of stdout and {} bytes of stderr{} are permanently lost",
            manifest.stdout_lost_bytes,
            manifest.stderr_lost_bytes,
            if endless { " or more" } else { "" },
        );
        conditions.push(condition(ConditionType::OutputLost, true, lost_reason(first), message));
    }
    conditions
}

fn unsealed_reason(manifest: &Manifest, exit: &Exit) -> &'static str {
    let sealed = exit.seal.as_ref().map(Seal::reason).unwrap_or_default();
    match (sealed, manifest.gaps.first()) {
        (SealReason::Unspecified, Some(first)) => lost_reason(first),
        (SealReason::Unspecified, None) => GapReason::NeverSealed.into(),
        (reason, _) => reason.into(),
    }
}

/// The schema of conditions allows no empty reason: an older archive may contain an unknown one.
fn lost_reason(gap: &Gap) -> &'static str {
    match gap.reason() {
        GapReason::Unspecified => OutputReason::Incomplete.into(),
        reason => reason.into(),
    }
}

/// Nanoseconds since the epoch; `None` for 0, which means unknown. Whole seconds would lose the order of short runs.
fn time(unix_nanos: i64) -> Option<Timestamp> {
    (unix_nanos > 0)
        .then(|| Timestamp::from_nanosecond(i128::from(unix_nanos)).ok())
        .flatten()
}

/// A run deadline as the status has it; the spec has whole seconds, too.
fn whole_seconds(run_deadline: Option<Duration>) -> Option<u32> {
    run_deadline.and_then(|span| span.as_secs().try_into().ok())
}

#[cfg(test)]
mod tests;
