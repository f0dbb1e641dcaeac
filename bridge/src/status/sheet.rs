//! The status of a trigger or a sink: its conditions, and what of it is written.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use remoteprocess_api::bridge::{BridgeCondition, BridgeReason};
use remoteprocess_api::{ProcessSinkStatus, ProcessTriggerStatus, sanitize};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Finding, whole_seconds};

/// Longest message of a condition, in characters.
const MAX_MESSAGE: usize = 1024;

/// What both statuses have.
pub(crate) trait Status: Clone + Default + PartialEq + Serialize + DeserializeOwned {
    /// The conditions, and the generation that they describe.
    fn conditions(&mut self) -> (&mut Vec<Condition>, Option<i64>);
}

impl Status for ProcessTriggerStatus {
    fn conditions(&mut self) -> (&mut Vec<Condition>, Option<i64>) {
        (&mut self.conditions, self.observed_generation)
    }
}

impl Status for ProcessSinkStatus {
    fn conditions(&mut self) -> (&mut Vec<Condition>, Option<i64>) {
        (&mut self.conditions, self.observed_generation)
    }
}

/// A status, and what of it was written last.
#[derive(Debug)]
pub(crate) struct Sheet<S> {
    pub(crate) status: S,
    written: Option<S>,
}

impl<S: Status> Sheet<S> {
    /// Continues from the status that the object has. The condition of the operator is not ours to write.
    pub(crate) fn after(status: Option<S>) -> Self {
        let mut status = status.unwrap_or_default();
        let own = [BridgeCondition::Ready, BridgeCondition::Connected].map(<&str>::from);
        let (conditions, _) = status.conditions();
        conditions.retain(|condition| own.contains(&condition.type_.as_str()));
        Self { status, written: None }
    }

    /// Sets a condition. Returns whether that is news for people: another status, or another reason for False.
    pub(crate) fn set(&mut self, condition: BridgeCondition, finding: &Finding, now: Timestamp) -> bool {
        let (conditions, generation) = self.status.conditions();
        let kind = condition.to_string();
        let status = if finding.holds { "True" } else { "False" };
        let former = conditions.iter().find(|condition| condition.type_ == kind);
        let same = former.filter(|former| former.status == status);
        let since = same.map_or(Time(whole_seconds(now)), |former| former.last_transition_time.clone());
        let reason = finding.reason.to_string();
        let is_news =
            former.is_some_and(|former| former.status != status || (!finding.holds && former.reason != reason));
        let next = Condition {
            type_: kind.clone(),
            status: status.to_owned(),
            reason,
            message: sanitize::plain(&finding.message, MAX_MESSAGE),
            last_transition_time: since,
            observed_generation: generation,
        };
        conditions.retain(|condition| condition.type_ != kind);
        conditions.push(next);
        conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
        is_news && finding.reason != BridgeReason::Waiting
    }

    /// Whether a condition has another status, or another reason for False, than was written: that does not wait.
    pub(crate) fn is_urgent(&self) -> bool {
        let (mut status, mut written) = (self.status.clone(), self.written.clone().unwrap_or_default());
        let (conditions, written) = (status.conditions().0, written.conditions().0);
        let is_written = |condition: &Condition| {
            let same = written.iter().find(|written| written.type_ == condition.type_);
            same.is_some_and(|same| {
                same.status == condition.status && (condition.status == "True" || same.reason == condition.reason)
            })
        };
        !conditions.iter().all(is_written)
    }

    /// The status to write, if it differs from what was written last.
    pub(crate) fn unwritten(&self) -> Option<Value> {
        let is_new = self.written.as_ref() != Some(&self.status);
        is_new.then(|| serde_json::to_value(&self.status).ok()).flatten()
    }

    /// What was written last.
    pub(crate) fn last(&self) -> Option<&S> {
        self.written.as_ref()
    }

    /// Notes what was written.
    pub(crate) fn written(&mut self, status: Value) {
        self.written = serde_json::from_value(status).ok();
    }
}
