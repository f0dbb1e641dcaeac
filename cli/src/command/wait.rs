//! `rproc wait`: waits until a process reaches a state.

use std::str::FromStr;
use std::time::Duration;

use remoteprocess_api::{ConditionType, Phase, RemoteProcess, RemoteProcessStatus, condition};
use remoteprocess_client::observe::Seen;
use strum::VariantNames;

use super::selection::{Failures, Selection};
use super::update;
use crate::args::GlobalArgs;
use crate::args::duration;
use crate::failure::Failure;
use crate::print::{print, resource};

/// Flags of `wait`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct WaitArgs {
    /// Which processes.
    #[command(flatten)]
    pub selection: Selection,
    /// What to wait for: scheduled, started, paused, finished, succeeded, sealed, deleted,
    /// condition=TYPE[=STATUS] or phase=PHASE
    #[arg(long = "for", value_name = "WHAT", default_value = "finished")]
    pub goal: Goal,
    /// Maximum time to wait; 0 for no limit
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    pub timeout: Duration,
}

const EXAMPLES: &str = "Examples:
  # Wait until it has ended
  rproc wait build --timeout 10m

  # Wait until it has succeeded; returns at once if it fails
  rproc wait build --for succeeded --timeout 0

The exit code is 0 if the state was reached, and 1 if it was not or cannot be.";

/// What to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A condition has this status.
    Condition {
        /// Its type.
        kind: String,
        /// `True`, `False` or `Unknown`.
        status: String,
    },
    /// The phase is this one.
    Phase(Phase),
    /// The object is gone.
    Deleted,
}

/// The conditions that have a word of their own.
const CONDITIONS: [(&str, ConditionType); 6] = [
    ("scheduled", ConditionType::Scheduled),
    ("started", ConditionType::Started),
    ("paused", ConditionType::Paused),
    ("finished", ConditionType::Finished),
    ("succeeded", ConditionType::Succeeded),
    ("sealed", ConditionType::OutputSealed),
];

/// All goals as they are typed.
pub(crate) fn goals() -> impl Iterator<Item = String> {
    let words = CONDITIONS
        .iter()
        .map(|(word, _)| *word)
        .chain(["deleted"])
        .map(str::to_owned);
    let conditions = ConditionType::VARIANTS.iter().map(|kind| format!("condition={kind}"));
    let phases = Phase::VARIANTS.iter().map(|phase| format!("phase={phase}"));
    words.chain(conditions).chain(phases)
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        if let Some((_, kind)) = CONDITIONS.iter().find(|(word, _)| *word == text) {
            return Ok(Self::Condition {
                kind: kind.to_string(),
                status: "True".to_owned(),
            });
        }
        if matches!(text.as_str(), "delete" | "deleted") {
            return Ok(Self::Deleted);
        }
        if let Some(phase) = text.strip_prefix("phase=") {
            return capitalized(phase)
                .parse()
                .map(Self::Phase)
                .map_err(|_| format!("no such phase; expected one of {}", Phase::VARIANTS.join(", ")));
        }
        match text.strip_prefix("condition=") {
            Some(condition) if !condition.is_empty() => {
                let (kind, status) = condition.split_once('=').unwrap_or((condition, "True"));
                Ok(Self::Condition {
                    kind: kind.to_owned(),
                    status: status.to_owned(),
                })
            }
            _ => Err(
                "expected scheduled, started, paused, finished, succeeded, sealed, deleted, condition=TYPE[=STATUS] or \
                      phase=PHASE"
                    .to_owned(),
            ),
        }
    }
}

impl Goal {
    /// Whether it is true, once that is certain.
    fn check(&self, seen: &Seen) -> Option<Result<(), String>> {
        let object = match (self, seen) {
            (Self::Deleted, Seen::Gone) => return Some(Ok(())),
            (Self::Deleted, Seen::There(_)) => return None,
            (_, Seen::Gone) => return Some(Err("is not there".to_owned())),
            (_, Seen::There(object)) => object,
        };
        let status = object.status.clone().unwrap_or_default();
        let is_met = match self {
            Self::Condition { kind, status: wanted } => status
                .conditions
                .iter()
                .any(|condition| is(kind, &condition.type_) && is(wanted, &condition.status)),
            Self::Phase(phase) => status.phase.unwrap_or_default() == *phase,
            Self::Deleted => false,
        };
        if is_met {
            return Some(Ok(()));
        }
        self.is_hopeless(&status).then(|| Err(state(object)))
    }

    /// After the end only the conditions of the output can still become true, and only if there is output.
    fn is_hopeless(&self, status: &RemoteProcessStatus) -> bool {
        let is_over = status.phase.is_some_and(Phase::is_final);
        let has_finished = condition::is_true(&status.conditions, ConditionType::Finished);
        let of_output: [&str; 2] = [ConditionType::OutputSealed.into(), ConditionType::OutputLost.into()];
        let is_of_output = matches!(self, Self::Condition { kind, .. } if of_output.iter().any(|of| is(kind, of)));
        let may_come = status
            .latest_attempt()
            .is_some_and(|attempt| attempt.granted_at.is_some() && attempt.output.is_none());
        is_over && has_finished && !(is_of_output && may_come)
    }
}

/// `running` becomes `Running`.
fn capitalized(text: &str) -> String {
    let (first, rest) = text.split_at_checked(1).unwrap_or_default();
    first.to_ascii_uppercase() + rest
}

/// Types and statuses of conditions are compared without case, as in kubectl.
fn is(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// The state of a process as the end of a sentence: `is Failed: NonZeroExit: exit code 7`.
pub(super) fn state(object: &RemoteProcess) -> String {
    let status = object.status.clone().unwrap_or_default();
    let parts = [
        status.phase.map(|phase| phase.to_string()),
        status.reason.map(|reason| reason.to_string()),
        status.message,
    ];
    let text = parts
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(": ");
    format!("is {}", if text.is_empty() { "Pending" } else { &text })
}

/// How an object was last seen, appended to a message.
pub fn and_it_is(last: Option<Box<RemoteProcess>>) -> String {
    last.map(|object| format!("; it {}", state(&object)))
        .unwrap_or_default()
}

/// Waits for each process in turn.
///
/// # Errors
/// It did not become true in time, or cannot; the code is then 1.
pub async fn run(global: &GlobalArgs, args: WaitArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    // An API server that becomes unavailable later is awaited. One that was never reachable is an error.
    cluster.reach().await?;
    let deadline = update::deadline(args.timeout);
    let mut failures = Failures::default();
    let names = args.selection.names(&cluster).await?;
    if names.is_empty() {
        // As with kubectl: nothing became true.
        return Ok(1);
    }
    for name in &names {
        let late = |last| format!("timed out waiting for {name}{}", and_it_is(last));
        let check = |seen: &Seen| args.goal.check(seen);
        let met = update::until(&cluster, (name, None), deadline, check, late).await;
        if failures.keep(met)?.is_some() {
            print(&format!("{} condition met\n", resource(name)))?;
        }
    }
    failures.conclude()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: serde_json::Value) -> Seen {
        let object = serde_json::json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "job"},
            "spec": {"image": "i", "command": ["x"]}, "status": status,
        });
        Seen::There(serde_json::from_value(object).unwrap())
    }

    fn condition(kind: &str, status: &str) -> serde_json::Value {
        serde_json::json!({"type": kind, "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn goals_are_read() {
        let finished = Goal::Condition {
            kind: "Finished".into(),
            status: "True".into(),
        };
        assert_eq!("finished".parse(), Ok(finished.clone()));
        for text in [
            "condition=Finished",
            "condition=finished",
            "condition=Finished=True",
            "Condition=finished=true",
        ] {
            let goal: Goal = text.parse().unwrap();
            let status = serde_json::json!({"conditions": [condition("Finished", "True")]});
            assert_eq!(goal.check(&seen(status)), Some(Ok(())), "{text}");
        }
        for text in ["phase=Running", "phase=running"] {
            assert_eq!(text.parse(), Ok(Goal::Phase(Phase::Running)), "{text}");
        }
        assert_eq!("delete".parse(), Ok(Goal::Deleted));
        for wrong in ["", "done", "phase=Done", "condition="] {
            assert!(wrong.parse::<Goal>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_impossible_condition_is_reported_at_once() {
        let failed = seen(serde_json::json!({
            "phase": "Failed", "reason": "NonZeroExit", "message": "exit code 7",
            "conditions": [condition("Finished", "True"), condition("Succeeded", "False")],
        }));
        let check = |goal: &str| goal.parse::<Goal>().unwrap().check(&failed);
        assert_eq!(check("finished"), Some(Ok(())));
        assert_eq!(
            check("succeeded"),
            Some(Err("is Failed: NonZeroExit: exit code 7".into()))
        );
        assert_eq!(
            check("phase=Running"),
            Some(Err("is Failed: NonZeroExit: exit code 7".into()))
        );
        assert!(check("sealed").unwrap().is_err(), "it never ran");
        let ran = seen(serde_json::json!({
            "phase": "Failed", "conditions": [condition("Finished", "True")], "attempt": 1,
            "attempts": [{"number": 1, "grantedAt": "2026-01-01T00:00:00Z"}],
        }));
        assert_eq!(
            "sealed".parse::<Goal>().unwrap().check(&ran),
            None,
            "its output may come"
        );
        assert_eq!(check("deleted"), None);
        assert_eq!(Goal::Deleted.check(&Seen::Gone), Some(Ok(())));
    }
}
