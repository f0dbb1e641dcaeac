//! The status under construction, changed step by step: phase, reason, conditions and the attempts' records.
//!
//! In: the status as it is, and what a step has decided. Out: the [`Decision`] with the whole new status. Calls [`ending`]
//! for the words of an end, and [`Renewal`] for how often a message may change.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use remoteprocess_api::condition::is_of_relay;
use remoteprocess_api::{
    AttemptExit, AttemptStatus, ConditionType, Phase, ReadyWhen, Reason, RemoteProcess, RemoteProcessStatus,
};

use super::ending::{self, Outcome};
use super::pod::pod_name;
use super::situation::{Action, Decision, Memory, Situation, should_stop};
use super::timer::Renewal;
use super::waiting::Wait;

/// Maximum length of a message in the status, in bytes; messages from other components can be long.
const MAX_MESSAGE: usize = 1024;

pub(super) struct Draft<'a> {
    process: &'a RemoteProcess,
    now: Timestamp,
    renewal: Renewal,
    /// When a message that came too soon may be written.
    renew_in: Option<Duration>,
    pub(super) status: RemoteProcessStatus,
}

impl<'a> Draft<'a> {
    pub(super) fn new(situation: &Situation<'a>) -> Self {
        let process = situation.process;
        let mut status = process.status.clone().unwrap_or_default();
        status.attempt = status.current_attempt();
        Self {
            process,
            now: situation.now,
            renewal: situation.memory.renewal.clone(),
            renew_in: None,
            status,
        }
    }

    pub(super) fn decision(mut self, action: Action, requeue_after: Option<Duration>, memory: Memory) -> Decision {
        self.tell_readiness();
        self.tell_generation();
        Decision {
            status: self.status,
            action,
            requeue_after: requeue_after.into_iter().chain(self.renew_in).min(),
            memory: Memory {
                renewal: self.renewal,
                ..memory
            },
        }
    }

    /// Begins attempt `number` and its conditions.
    pub(super) fn begin(&mut self, number: u32) {
        let (name, uid) = (self.process.name_any(), self.process.uid().unwrap_or_default());
        let pod_name = Some(pod_name(&name, &uid, number));
        self.status.attempt = Some(number);
        self.status.started_at = None;
        self.status.attempts.push(AttemptStatus {
            number,
            pod_name,
            begun_at: Some(self.now),
            ..AttemptStatus::default()
        });
        self.status.trim();
        let message = format!("attempt {number}: the pod is being created");
        self.say(Phase::Pending, Reason::Waiting, message.clone());
        self.set(ConditionType::Scheduled, "False", Reason::Waiting, &message);
        self.not_ended(Reason::Waiting);
    }

    /// Records the pod and its node.
    pub(super) fn see_pod(&mut self, pod: &Pod) {
        let Some(record) = self.record() else { return };
        record.pod_uid = pod.uid();
        record.node = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .or(record.node.take());
    }

    /// Records the end of an attempt for which the relay has no record.
    pub(super) fn record_end(&mut self, record: &AttemptStatus, exit: AttemptExit) {
        // If the relay has written the time, it stays.
        let finished = record.finished_at.unwrap_or(self.now);
        if let Some(record) = self.status.attempts.iter_mut().find(|own| own.number == record.number) {
            let message = exit.message.as_deref().map(shortened);
            record.exit = Some(AttemptExit { message, ..exit });
            record.finished_at = Some(finished);
        }
    }

    /// Waits. A new reason costs one write; each new message costs another, at growing intervals.
    pub(super) fn wait(&mut self, wait: &Wait) {
        if (self.status.phase, self.status.reason) != (Some(wait.phase), Some(wait.reason)) {
            self.renewal = Renewal::default();
        } else if !self.is_renewed(wait) {
            return;
        }
        self.say(wait.phase, wait.reason, wait.message.clone());
        if wait.scheduled {
            self.scheduled();
        } else {
            self.set(ConditionType::Scheduled, "False", wait.reason, &wait.message);
        }
        self.not_ended(wait.reason);
    }

    /// Whether the wait has a new message that may be written now.
    fn is_renewed(&mut self, wait: &Wait) -> bool {
        if !wait.is_news || self.status.message.as_deref() == Some(&*shortened(&wait.message)) {
            return false;
        }
        self.renew_in = self.renewal.left(self.now);
        if self.renew_in.is_none() {
            self.renewal = self.renewal.next(self.now);
        }
        self.renew_in.is_none()
    }

    /// Waits, unless it is part of every start and has not lasted; then it returns when to look again.
    pub(super) fn wait_unless_usual(&mut self, wait: &Wait) -> Option<Duration> {
        if wait.is_worth_a_write(self.now) {
            self.wait(wait);
        }
        wait.usual_for(self.now)
    }

    /// The program runs, or is paused.
    pub(super) fn launched(&mut self, record: &AttemptStatus) {
        self.started(record);
        match (record.paused_at, self.status.phase) {
            (None, _) => self.say(Phase::Running, Reason::Running, "the program is running".into()),
            (Some(_), Some(Phase::Paused)) => {}
            (Some(_), _) => {
                let message = format!("the program is paused {}", self.process.requester());
                self.say(Phase::Paused, Reason::Paused, message);
            }
        }
    }

    pub(super) fn stopping(&mut self, record: &AttemptStatus, reason: Reason, message: String) {
        if (self.status.phase, self.status.reason) == (Some(Phase::Stopping), Some(reason)) {
            return;
        }
        if record.started_at.is_some() {
            self.started(record);
        }
        self.say(Phase::Stopping, reason, message);
    }

    /// Finishes the process: phase, code and conditions in their final form.
    pub(super) fn finish(&mut self, record: &AttemptStatus, exit: &AttemptExit, disruption: Option<(Reason, String)>) {
        let Outcome { phase, reason, message } = ending::conclude(exit, should_stop(self.process), disruption);
        if record.started_at.is_some() {
            self.started(record);
        } else {
            if record.granted_at.is_some() {
                self.scheduled();
            }
            self.set(ConditionType::Started, "False", reason, &message);
        }
        let finished = record.finished_at.unwrap_or(self.now);
        self.status.exit_code = exit.code;
        self.status.signal.clone_from(&exit.signal);
        self.status.finished_at = Some(finished);
        self.status.duration = record.started_at.map(|started| duration_text(started, finished));
        self.set_at(ConditionType::Finished, "True", reason, &message, finished);
        let succeeded = if phase == Phase::Succeeded { "True" } else { "False" };
        let last_lines = self.with_tail(&message, phase);
        self.set_at(ConditionType::Succeeded, succeeded, reason, &last_lines, finished);
        self.say(phase, reason, message);
    }

    fn scheduled(&mut self) {
        let message = "the pod has a node";
        self.set(ConditionType::Scheduled, "True", Reason::ContainerCreating, message);
    }

    fn started(&mut self, record: &AttemptStatus) {
        self.status.started_at = record.started_at;
        let at = record.started_at.unwrap_or(self.now);
        self.scheduled();
        self.set_at(
            ConditionType::Started,
            "True",
            Reason::Running,
            "the program was launched",
            at,
        );
        if !self.status.phase.is_some_and(Phase::is_final) {
            self.not_finished(Reason::Running);
        }
    }

    fn not_ended(&mut self, reason: Reason) {
        self.set(
            ConditionType::Started,
            "False",
            reason,
            "the program was not launched yet",
        );
        self.not_finished(reason);
    }

    fn not_finished(&mut self, reason: Reason) {
        self.set(ConditionType::Finished, "False", reason, "the process has not ended");
        self.set(ConditionType::Succeeded, "Unknown", reason, "the process has not ended");
    }

    /// Sets Ready, Reconciling and Stalled, as kstatus reads them, and Paused: all except Ready are present only while
    /// they are true. They follow from the phase, so they cost no write of their own; a final status is never changed
    /// again.
    fn tell_readiness(&mut self) {
        let was_final = self.process.status.as_ref().and_then(|status| status.phase);
        let (Some(phase), false) = (self.status.phase, was_final.is_some_and(Phase::is_final)) else {
            return;
        };
        let reason = self.status.reason.unwrap_or(Reason::Waiting);
        let message = self.status.message.clone().unwrap_or_default();
        let is_ready = match self.process.spec.ready_when() {
            ReadyWhen::Started => match phase {
                Phase::Running | Phase::Succeeded => true,
                // A paused process is as it should be, once it has run.
                Phase::Paused => self.status.started_at.is_some(),
                _ => false,
            },
            ReadyWhen::Finished => phase == Phase::Succeeded,
        };
        let ready = if is_ready { "True" } else { "False" };
        self.set(ConditionType::Ready, ready, reason, &message);
        for (kind, holds) in [
            (ConditionType::Paused, phase == Phase::Paused),
            (ConditionType::Reconciling, !is_ready && phase != Phase::Failed),
            (ConditionType::Stalled, phase == Phase::Failed),
        ] {
            if holds {
                self.set(kind, "True", reason, &message);
            } else {
                let name = kind.to_string();
                self.status.conditions.retain(|condition| condition.type_ != name);
            }
        }
    }

    /// Sets the generation of each condition of the process to that of the status, also after the end: `kubectl wait`
    /// ignores conditions of an older generation. A change of the spec costs one write.
    fn tell_generation(&mut self) {
        let generation = self.process.metadata.generation;
        if generation.is_some() && self.status.observed_generation == generation {
            let conditions = self.status.conditions.iter_mut();
            for condition in conditions.filter(|condition| !is_of_relay(condition)) {
                condition.observed_generation = generation;
            }
        }
    }

    /// Adds the output's last lines, which the relay wrote together with the exit record.
    fn with_tail(&self, sentence: &str, phase: Phase) -> String {
        let output = self.process.status.as_ref().and_then(|status| status.output.as_ref());
        match output
            .and_then(|output| output.tail.as_deref())
            .filter(|tail| !tail.is_empty())
        {
            Some(tail) if phase == Phase::Succeeded => tail.to_owned(),
            Some(tail) => format!("{sentence}\n{tail}"),
            None => sentence.to_owned(),
        }
    }

    fn say(&mut self, phase: Phase, reason: Reason, message: String) {
        self.status.phase = Some(phase);
        self.status.reason = Some(reason);
        self.status.message = Some(shortened(&message));
    }

    fn record(&mut self) -> Option<&mut AttemptStatus> {
        let current = self.status.current_attempt()?;
        self.status.attempts.iter_mut().find(|record| record.number == current)
    }

    fn set(&mut self, kind: ConditionType, status: &str, reason: Reason, message: &str) {
        self.set_at(kind, status, reason, message, self.now);
    }

    /// Sets a condition; its time changes only with its status (API conventions, `lastTransitionTime`).
    fn set_at(&mut self, kind: ConditionType, status: &str, reason: Reason, message: &str, at: Timestamp) {
        let previous = self
            .status
            .conditions
            .iter()
            .position(|condition| condition.type_ == kind.to_string());
        let kept = previous
            .map(|index| &self.status.conditions[index])
            .filter(|condition| condition.status == status);
        let next = Condition {
            type_: kind.to_string(),
            status: status.to_owned(),
            reason: reason.to_string(),
            message: if kind == ConditionType::Succeeded {
                message.to_owned()
            } else {
                shortened(message)
            },
            observed_generation: self.process.metadata.generation,
            last_transition_time: kept.map_or_else(|| Time(at), |condition| condition.last_transition_time.clone()),
        };
        match previous {
            Some(index) => self.status.conditions[index] = next,
            None => self.status.conditions.push(next),
        }
    }
}

/// At most [`MAX_MESSAGE`] bytes, cut between characters.
pub(crate) fn shortened(text: &str) -> String {
    if text.len() <= MAX_MESSAGE {
        return text.to_owned();
    }
    let end = (0..=MAX_MESSAGE - 3)
        .rev()
        .find(|index| text.is_char_boundary(*index))
        .unwrap_or(0);
    format!("{}...", &text[..end])
}

/// A duration for a table: 0.4s, 12s, 1m30s, 2h05m, 3d04h.
fn duration_text(from: Timestamp, to: Timestamp) -> String {
    let millis = to.duration_since(from).as_millis().max(0);
    let seconds = millis / 1000;
    match seconds {
        0..10 => format!("{}.{}s", seconds, millis % 1000 / 100),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}
