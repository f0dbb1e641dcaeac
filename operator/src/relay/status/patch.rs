//! The server-side-apply patches of field manager `remoteprocess-relay`, built from the current object.
//!
//! Each patch repeats every field that the relay owns: the API server removes what an apply leaves out.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use remoteprocess_api::{
    AttemptOutput, AttemptStatus, ConditionType, DesiredState, ExitSource, OutputStatus, RemoteProcess, StreamStatus,
    TailInStatus, UsageStatus,
};
use remoteprocess_proto::v1::{Exit, GapReason, Seal, SealReason, StreamSeal};
use serde_json::{Value, json};

use super::condition::over;
use super::end::exit_to_status;
use super::tail::render_tail;
use crate::relay::archive::StoredGap;
use crate::relay::live::{Ending, Fact};

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
    /// It is granted once this is written.
    Write(Value),
    /// First check whether this pod is the agent's.
    CheckPod(String),
    /// Refused, and why.
    Refused(&'static str),
}

/// Whether an attempt may start, or continue.
#[must_use]
pub fn decide_grant(
    current: &RemoteProcess,
    claim: &Claim,
    replica: &str,
    now: Timestamp,
    pod_checked: bool,
) -> Decision {
    let Some(attempt) = current.status.as_ref().and_then(|status| status.attempt(claim.attempt)) else {
        return Decision::Refused("there is no such attempt");
    };
    match (&attempt.pod_uid, &attempt.pod_name) {
        (Some(pod_uid), _) if *pod_uid != claim.pod_uid => {
            return Decision::Refused("this pod is not the pod of this attempt");
        }
        (Some(_), _) => {}
        (None, _) if pod_checked => {}
        (None, Some(pod)) => return Decision::CheckPod(pod.clone()),
        (None, None) => return Decision::Refused("this attempt has no pod"),
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
    let mut owned = Owned::of(current);
    // The status of the output still describes the previous attempt.
    owned.output = None;
    owned.conditions.clear();
    let granted = owned.attempt(claim.attempt);
    granted.pod_uid = Some(claim.pod_uid.clone());
    granted.relay = Some(replica.to_owned());
    granted.granted_at = Some(now);
    Decision::Write(owned.patch(current))
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
    if status.attempt != Some(number) {
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
#[must_use]
pub fn build_fact(current: &RemoteProcess, number: u32, fact: &Fact) -> Option<Value> {
    let mut owned = Owned::of(current);
    if !is_kept(current, number) || has_exit(current, number) {
        return None;
    }
    let attempt = owned.attempt(number);
    let before = attempt.clone();
    match *fact {
        Fact::Started {
            at_unix_nanos,
            run_seconds,
        } if attempt.started_at.is_none() => {
            attempt.started_at = Some(time(at_unix_nanos)?);
            attempt.run_seconds = run_seconds;
        }
        Fact::Paused(Some(at)) => attempt.paused_at = attempt.paused_at.or(Some(at)),
        Fact::Paused(None) => attempt.paused_at = None,
        Fact::RunSeconds(seconds) => attempt.run_seconds = seconds,
        Fact::Started { .. } | Fact::DeadlineNear(_) | Fact::PauseFailed { .. } => {}
    }
    (*attempt != before).then(|| owned.patch(current))
}

/// The patch for the end: exit, seal, usage and tail in one write; `None` if it is already recorded. If the entrypoint
/// did not report the end, the controller writes it; then only the output is recorded here.
#[must_use]
pub fn build_end(current: &RemoteProcess, number: u32, ending: &Ending, now: Timestamp) -> Option<Value> {
    let mut owned = Owned::of(current);
    let has_exit = has_exit(current, number);
    if !is_kept(current, number) {
        return None;
    }
    let attempt = owned.attempt(number);
    if attempt.output.is_some() {
        return None;
    }
    let exit = &ending.exit;
    attempt.started_at = attempt.started_at.or_else(|| time(exit.started_unix_nanos));
    attempt.finished_at = attempt.finished_at.or_else(|| time(exit.finished_unix_nanos));
    attempt.paused_at = None;
    if exit.source() == remoteprocess_proto::v1::exit::Source::Entrypoint && !has_exit {
        attempt.exit = Some(exit_to_status(exit));
    }
    attempt.usage = exit.usage.map(|usage| UsageStatus {
        // Microseconds: exact in a double for 285 years of CPU time.
        cpu_seconds: (usage.user_micros + usage.system_micros) as f64 / 1e6,
        peak_memory_bytes: usage.peak_memory_bytes,
        container_peak_memory_bytes: usage.container_peak_memory_bytes,
        read_bytes: usage.read_bytes,
        written_bytes: usage.written_bytes,
    });
    attempt.output = Some(output(ending));
    if current.status.as_ref().and_then(|status| status.attempt) == Some(number) {
        owned.output = Some(OutputStatus {
            stdout_bytes: Some(ending.end.stdout),
            stderr_bytes: Some(ending.end.stderr),
            tail: shows_tail(current, exit)
                .then(|| render_tail(&ending.tail))
                .filter(|tail| !tail.is_empty()),
        });
        let past = over(std::mem::take(&mut owned.conditions), now);
        owned.conditions = conditions(ending, now);
        owned.conditions.extend(past);
    }
    Some(owned.patch(current))
}

fn shows_tail(current: &RemoteProcess, exit: &Exit) -> bool {
    let succeeded = exit.outcome() == remoteprocess_proto::v1::exit::Outcome::Code && exit.value == 0;
    match current.spec.tail_in_status() {
        TailInStatus::Always => true,
        TailInStatus::OnFailure => !succeeded || exit.stop.is_some(),
        TailInStatus::Never => false,
    }
}

fn output(ending: &Ending) -> AttemptOutput {
    let seal = ending.exit.seal.clone().unwrap_or_default();
    let stream = |seal: Option<StreamSeal>, archived: u64, lost: u64| StreamStatus {
        bytes: seal.as_ref().map_or(archived, |seal| seal.bytes),
        sha256: seal
            .filter(|seal| !seal.sha256.is_empty())
            .map(|seal| hex::encode(&seal.sha256)),
        lost_bytes: (lost > 0).then_some(lost),
    };
    AttemptOutput {
        stdout: stream(seal.stdout, ending.end.stdout, ending.lost.stdout),
        stderr: stream(seal.stderr, ending.end.stderr, ending.lost.stderr),
        sealed: ending.exit.sealed,
    }
}

fn conditions(ending: &Ending, now: Timestamp) -> Vec<Condition> {
    let condition = |kind: ConditionType, status: bool, reason: &str, message: String| Condition {
        type_: kind.to_string(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: None,
        last_transition_time: Time(now),
    };
    let (stdout, stderr) = (ending.end.stdout, ending.end.stderr);
    let sealed = if ending.exit.sealed {
        let message = format!("{stdout} bytes of stdout and {stderr} bytes of stderr are in the archive");
        condition(ConditionType::OutputSealed, true, "Archived", message)
    } else {
        let reason = unsealed_reason(ending);
        let message = format!("the archive holds stdout up to {stdout} and stderr up to {stderr}, and not all is sure");
        condition(ConditionType::OutputSealed, false, reason, message)
    };
    let mut conditions = vec![sealed];
    if let Some(first) = ending.gaps.first() {
        let endless = ending.gaps.iter().any(|gap| gap.to.is_none());
        let message = format!(
            "{} bytes of stdout and {} bytes of stderr{} will never be there",
            ending.lost.stdout,
            ending.lost.stderr,
            if endless { " or more" } else { "" },
        );
        conditions.push(condition(ConditionType::OutputLost, true, lost_reason(first), message));
    }
    conditions
}

fn unsealed_reason(ending: &Ending) -> &'static str {
    let sealed = ending.exit.seal.as_ref().map(Seal::reason).unwrap_or_default();
    match (sealed, ending.gaps.first()) {
        (SealReason::Unspecified, Some(first)) => lost_reason(first),
        (SealReason::Unspecified, None) => GapReason::NeverSealed.into(),
        (reason, _) => reason.into(),
    }
}

/// The schema of conditions allows no empty reason: an older archive may contain an unknown one.
fn lost_reason(gap: &StoredGap) -> &'static str {
    match gap.reason {
        GapReason::Unspecified => "Incomplete",
        reason => reason.into(),
    }
}

/// Nanoseconds since the epoch; `None` for 0, which means unknown. Whole seconds would lose the order of short runs.
fn time(unix_nanos: i64) -> Option<Timestamp> {
    (unix_nanos > 0)
        .then(|| Timestamp::from_nanosecond(i128::from(unix_nanos)).ok())
        .flatten()
}

/// Whether the status has room for this attempt; the archive has it in any case.
fn is_kept(current: &RemoteProcess, number: u32) -> bool {
    current.status.as_ref().is_some_and(|status| status.keeps(number))
}

fn has_exit(current: &RemoteProcess, number: u32) -> bool {
    let attempt = current.status.as_ref().and_then(|status| status.attempt(number));
    attempt.is_some_and(|attempt| attempt.exit.is_some())
}

/// The part of the status that belongs to the relay.
pub(super) struct Owned {
    pub(super) conditions: Vec<Condition>,
    output: Option<OutputStatus>,
    attempts: Vec<AttemptStatus>,
}

impl Owned {
    pub(super) fn of(current: &RemoteProcess) -> Self {
        let mut status = current.status.clone().unwrap_or_default();
        status.trim();
        let attempts = status.attempts.into_iter().map(ours).filter(has_facts).collect();
        let is_ours = |condition: &Condition| {
            condition
                .type_
                .parse::<ConditionType>()
                .is_ok_and(ConditionType::is_of_relay)
        };
        Self {
            conditions: status.conditions.into_iter().filter(is_ours).collect(),
            output: status.output,
            attempts,
        }
    }

    fn attempt(&mut self, number: u32) -> &mut AttemptStatus {
        let at = self
            .attempts
            .iter()
            .position(|attempt| attempt.number == number)
            .unwrap_or_else(|| {
                self.attempts.push(AttemptStatus {
                    number,
                    ..AttemptStatus::default()
                });
                self.attempts.len() - 1
            });
        &mut self.attempts[at]
    }

    pub(super) fn patch(&self, current: &RemoteProcess) -> Value {
        let mut status = json!({"attempts": self.attempts});
        if !self.conditions.is_empty() {
            status["conditions"] = json!(self.conditions);
        }
        if let Some(output) = &self.output {
            status["output"] = json!(output);
        }
        json!({
            "apiVersion": format!("{}/{}", remoteprocess_api::names::GROUP, remoteprocess_api::names::VERSION),
            "kind": "RemoteProcess",
            "metadata": {
                "name": current.name_any(),
                "namespace": current.namespace(),
                "uid": current.uid(),
                "resourceVersion": current.resource_version(),
            },
            "status": status,
        })
    }
}

fn ours(attempt: AttemptStatus) -> AttemptStatus {
    AttemptStatus {
        pod_name: None,
        // A grant names its pod, even if the controller has not recorded that pod yet.
        pod_uid: attempt.pod_uid.filter(|_| attempt.granted_at.is_some()),
        node: None,
        begun_at: None,
        exit: attempt.exit.filter(|exit| exit.source == ExitSource::Entrypoint),
        ..attempt
    }
}

fn has_facts(attempt: &AttemptStatus) -> bool {
    *attempt
        != AttemptStatus {
            number: attempt.number,
            ..AttemptStatus::default()
        }
}

#[cfg(test)]
mod tests;
