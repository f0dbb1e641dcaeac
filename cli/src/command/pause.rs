//! `rproc pause` and `rproc resume`: the desired state of processes, set with the user's own rights.

use std::time::Duration;

use kube::ResourceExt;
use remoteprocess_api::{ConditionType, DesiredState, Phase, RemoteProcess, condition, names};
use remoteprocess_client::Cluster;
use remoteprocess_client::observe::Seen;
use serde_json::json;
use tokio::time::Instant;

use super::selection::{Failures, Selection};
use super::{update, wait};
use crate::args::GlobalArgs;
use crate::args::duration;
use crate::failure::Failure;
use crate::print::{print, resource};

/// Flags of `pause` and `resume`.
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    /// Which processes.
    #[command(flatten)]
    pub selection: Selection,
    /// Reason, shown in the status and in Events
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Wait until it is done; --wait=false returns at once
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = clap::ArgAction::Set)]
    pub wait: bool,
    /// Maximum time to wait; 0 for no limit
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    pub timeout: Duration,
}

/// Examples of `pause`.
pub const PAUSE_EXAMPLES: &str = "Examples:
  # Pause all processes of the program
  rproc pause build -m 'the license server is down'

If the program has not started, it does not start until you resume it. The time
in pause counts for the run deadline, unless spec.deadlines.countPaused is
false. rproc stop also ends a paused process.";

/// Examples of `resume`.
pub const RESUME_EXAMPLES: &str = "Examples:
  # Resume a paused process
  rproc resume build";

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
}

impl Verb {
    const fn state(self) -> DesiredState {
        match self {
            Self::Pause => DesiredState::Paused,
            Self::Resume => DesiredState::Running,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }

    /// The word for the state that was requested, or for the request.
    const fn done(self, is_so: bool) -> &'static str {
        match (self, is_so) {
            (Self::Pause, true) => "paused",
            (Self::Pause, false) => "is being paused",
            (Self::Resume, true) => "resumed",
            (Self::Resume, false) => "is being resumed",
        }
    }
}

/// Sets the desired state of each process, and waits until all have reached it. If one fails, the others are changed
/// nevertheless.
pub async fn run(global: &GlobalArgs, args: PauseArgs, verb: Verb) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let deadline = update::deadline(args.timeout);
    let (mut asked, mut failures) = (Vec::new(), Failures::default());
    for object in args.selection.objects(&cluster, &mut failures).await? {
        asked.extend(failures.keep(ask(&cluster, &object, &args, verb).await)?);
    }
    for object in asked {
        let name = object.name_any();
        let is_done = !args.wait || failures.keep(is_so(&cluster, &object, verb, deadline).await)?.is_some();
        if is_done {
            print(&format!("{} {}\n", resource(&name), verb.done(args.wait)))?;
        }
    }
    failures.conclude()
}

/// Refuses a request that cannot have an effect.
fn check(object: &RemoteProcess) -> Result<(), String> {
    if object.is_final() {
        return Err(format!("it {}", wait::state(object)));
    }
    if object.spec.desired_state == DesiredState::Stopped {
        return Err("it is being stopped, and does not run again".to_owned());
    }
    match object.metadata.deletion_timestamp {
        Some(_) => Err("it is being deleted".to_owned()),
        None => Ok(()),
    }
}

async fn ask(
    cluster: &Cluster,
    object: &RemoteProcess,
    args: &PauseArgs,
    verb: Verb,
) -> Result<RemoteProcess, Failure> {
    let name = &object.name_any();
    check(object).map_err(|why| Failure::no(format!("cannot {} {name}: {why}", verb.word())))?;
    // An earlier reason is removed if none is given.
    let metadata = json!({"uid": object.metadata.uid, "annotations": {names::ANNOTATION_REASON: args.message}});
    let patch = json!({"metadata": metadata, "spec": {"desiredState": verb.state()}});
    let patched = update::patch(cluster, name, &patch).await;
    patched.map_err(|error| update::refused(cluster, &error, &format!("{} the process", verb.word())))
}

/// Waits until the process has reached the requested state.
async fn is_so(
    cluster: &Cluster,
    object: &RemoteProcess,
    verb: Verb,
    deadline: Option<Instant>,
) -> Result<(), Failure> {
    let name = &object.name_any();
    let generation = object.metadata.generation.unwrap_or_default();
    let this = (name.as_str(), object.metadata.uid.as_deref());
    let is_as_asked = |seen: &Seen| settled(seen, verb, generation);
    update::until(cluster, this, deadline, is_as_asked, |last| {
        let (word, last) = (verb.word(), wait::and_it_is(last));
        format!("{name} has been asked to {word} and has not in time{last}. See: rproc describe {name}")
    })
    .await
}

/// Whether the process has reached the state that this generation of the object requests, once that is certain.
fn settled(seen: &Seen, verb: Verb, generation: i64) -> Option<Result<(), String>> {
    let Seen::There(object) = seen else {
        return Some(Err("has been deleted".to_owned()));
    };
    let status = object.status.clone().unwrap_or_default();
    let is_paused = condition::is_true(&status.conditions, ConditionType::Paused);
    let is_seen = status.observed_generation.unwrap_or_default() >= generation;
    if status.phase.is_some_and(Phase::is_final) {
        return Some(match verb {
            Verb::Resume => Ok(()),
            Verb::Pause => Err(wait::state(object)),
        });
    }
    if object.spec.desired_state != verb.state() {
        return Some(Err(format!(
            "is to be {} now: another user changed it",
            object.spec.desired_state
        )));
    }
    (is_seen && is_paused == (verb == Verb::Pause)).then_some(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(desired: &str, phase: &str, observed: i64) -> Seen {
        let paused = json!({"type": "Paused", "status": "True", "reason": "Paused", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let conditions = if phase == "Paused" { vec![paused] } else { vec![] };
        let object = json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "job"},
            "spec": {"image": "i", "command": ["x"], "desiredState": desired},
            "status": {"phase": phase, "observedGeneration": observed, "conditions": conditions},
        });
        Seen::There(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn what_is_asked_for_is_waited_for_at_its_generation() {
        assert_eq!(settled(&seen("Paused", "Running", 2), Verb::Pause, 2), None);
        assert_eq!(settled(&seen("Paused", "Paused", 2), Verb::Pause, 2), Some(Ok(())));
        assert_eq!(settled(&seen("Running", "Paused", 3), Verb::Resume, 3), None);
        assert_eq!(
            settled(&seen("Running", "Running", 2), Verb::Resume, 3),
            None,
            "not looked at yet"
        );
        assert_eq!(settled(&seen("Running", "Running", 3), Verb::Resume, 3), Some(Ok(())));
    }

    #[test]
    fn an_impossible_condition_is_reported_at_once() {
        let said = |seen: &Seen, verb| settled(seen, verb, 2).unwrap().unwrap_err();
        assert_eq!(said(&seen("Paused", "Failed", 2), Verb::Pause), "is Failed");
        assert!(said(&seen("Stopped", "Running", 2), Verb::Pause).contains("another user"));
        assert_eq!(said(&Seen::Gone, Verb::Resume), "has been deleted");
        assert_eq!(settled(&seen("Running", "Succeeded", 2), Verb::Resume, 2), Some(Ok(())));
    }
}
