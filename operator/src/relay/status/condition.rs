//! Conditions of the object that report what holds the output up.
//!
//! The conditions of the relay carry no `observedGeneration`: they do not depend on the spec, and `kubectl wait` then
//! reads that of the status, which the controller maintains.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use remoteprocess_api::{ConditionType, OutputReason, RemoteProcess, RemoteProcessStatus};

use crate::relay::live::OutputCondition;

/// A condition of the current attempt; `None` if the status already has it, or the attempt is recorded as ended.
pub fn build_condition(
    current: &RemoteProcess,
    number: u32,
    notice: &OutputCondition,
    now: Timestamp,
) -> Option<RemoteProcessStatus> {
    let mut next = current.status.clone()?;
    if next.attempt != Some(number) || next.attempt(number)?.output.is_some() {
        return None;
    }
    let kind = notice.kind.to_string();
    let known = next.conditions.iter().position(|known| known.type_ == kind);
    let status = word(notice.is_true);
    let mut condition = Condition {
        type_: kind,
        status: status.to_owned(),
        reason: notice.reason.to_string(),
        message: notice.message.clone(),
        observed_generation: None,
        last_transition_time: Time(now),
    };
    match known {
        None if !notice.is_true => return None,
        None => next.conditions.push(condition),
        Some(at) => {
            let known = &mut next.conditions[at];
            if known.status == status {
                if !notice.is_true || known.reason == notice.reason.to_string() {
                    return None;
                }
                condition.last_transition_time = known.last_transition_time.clone();
            }
            *known = condition;
        }
    }
    Some(next)
}

/// Conditions that held while the attempt ran, in their form after its end.
pub(super) fn over(conditions: Vec<Condition>, now: Timestamp) -> Vec<Condition> {
    let hinders = [ConditionType::OutputBlocked, ConditionType::ArchiveUnavailable].map(|kind| kind.to_string());
    let past = conditions
        .into_iter()
        .filter(|condition| hinders.contains(&condition.type_));
    past.map(|condition| match condition.status.as_str() {
        "True" => Condition {
            status: word(false).to_owned(),
            reason: OutputReason::Resolved.to_string(),
            message: format!(
                "was True from {:.0} until the attempt ended",
                condition.last_transition_time.0
            ),
            last_transition_time: Time(now),
            ..condition
        },
        _ => condition,
    })
    .collect()
}

fn word(is_true: bool) -> &'static str {
    if is_true { "True" } else { "False" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use remoteprocess_api::{AttemptStatus, RemoteProcessSpec, RemoteProcessStatus};

    fn process(conditions: Vec<Condition>) -> RemoteProcess {
        let mut process = RemoteProcess::new("hello", RemoteProcessSpec::default());
        process.status = Some(RemoteProcessStatus {
            attempt: Some(1),
            attempts: vec![AttemptStatus {
                number: 1,
                ..AttemptStatus::default()
            }],
            conditions,
            ..RemoteProcessStatus::default()
        });
        process
    }

    fn notice(is_true: bool, reason: OutputReason) -> OutputCondition {
        OutputCondition {
            kind: ConditionType::OutputBlocked,
            is_true,
            reason,
            message: "why".to_owned(),
        }
    }

    #[test]
    fn what_begins_and_ends_is_written_once_each() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(
            build_condition(&process(Vec::new()), 1, &notice(false, OutputReason::Resolved), at(1)),
            None
        );
        let begun = build_condition(&process(Vec::new()), 1, &notice(true, OutputReason::SpoolFull), at(2));
        let blocked = begun.unwrap().conditions;
        assert_eq!(
            (blocked[0].status.as_str(), blocked[0].last_transition_time.0),
            ("True", at(2))
        );
        let known = process(blocked.clone());
        assert_eq!(
            build_condition(&known, 1, &notice(true, OutputReason::SpoolFull), at(3)),
            None
        );
        assert_eq!(
            build_condition(&known, 2, &notice(false, OutputReason::Resolved), at(3)),
            None,
            "another attempt"
        );
        let other = build_condition(&known, 1, &notice(true, OutputReason::Incomplete), at(3))
            .unwrap()
            .conditions;
        assert_eq!(
            (other[0].reason.as_str(), other[0].last_transition_time.0),
            ("Incomplete", at(2))
        );
        let ended = build_condition(&known, 1, &notice(false, OutputReason::Resolved), at(4))
            .unwrap()
            .conditions;
        assert_eq!(
            (ended[0].status.as_str(), ended[0].last_transition_time.0),
            ("False", at(4))
        );
        let after = over(blocked, at(5));
        assert_eq!(
            (after[0].status.as_str(), after[0].message.as_str()),
            ("False", "was True from 1970-01-01T00:00:02Z until the attempt ended")
        );
    }
}
