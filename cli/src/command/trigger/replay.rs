//! `rproc trigger replay`: sends dead letters to the source of their trigger again, through its bridge.

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::await_condition;
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::names::ANNOTATION_REPLAY;
use remoteprocess_api::trigger::{MAX_REPLAY, ReplayRequest, ReplayStatus};
use remoteprocess_client::{Cluster, Rule};
use serde_json::json;
use tokio::time::timeout_at;

use super::super::update;
use super::test::nonce;
use super::{found, triggers};
use crate::args::{GlobalArgs, duration, trigger_name};
use crate::failure::Failure;
use crate::print::print;
use crate::render::trigger::state;

/// Flags of `trigger replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ReplayArgs {
    /// Name of the trigger
    #[arg(value_parser = trigger_name, value_name = "NAME")]
    name: String,
    /// Most dead letters to send
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_REPLAY)))]
    limit: u32,
    /// Only print how many there are
    #[arg(long)]
    dry_run: bool,
    /// Maximum time to wait for the bridge; 0 for no limit
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "90s")]
    timeout: Duration,
}

const EXAMPLES: &str = "Examples:
  # How many are there?
  rproc trigger replay orders --dry-run

  # Send one again, and look at its process
  rproc trigger replay orders --limit 1
  rproc ps -l remoteprocess.dev/trigger=orders

A dead letter is removed after the source has confirmed its message, which then
becomes a new process. You need the right to patch the trigger.";

/// Asks the bridge, waits for its answer, and prints it.
pub(super) async fn run(global: &GlobalArgs, args: ReplayArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let name = &args.name;
    let trigger = found(&cluster, name, triggers(&cluster).get_opt(name).await)?;
    let request = ReplayRequest {
        nonce: nonce()?,
        time: Timestamp::now(),
        limit: if args.dry_run { 0 } else { args.limit },
    };
    ask(&cluster, &trigger, &request).await?;
    let answer = answer(&cluster, name, &request.nonce, args.timeout).await?;
    let text = sentence(&answer, args.dry_run)?;
    print(&format!("{text}\n"))?;
    Ok(0)
}

async fn ask(cluster: &Cluster, trigger: &ProcessTrigger, request: &ReplayRequest) -> Result<(), Failure> {
    let text = serde_json::to_string(request).map_err(|error| Failure::new(error.to_string()))?;
    let patch = json!({"metadata": {"uid": trigger.metadata.uid, "annotations": {ANNOTATION_REPLAY: text}}});
    let name = trigger.metadata.name.as_deref().unwrap_or_default();
    let asked = triggers(cluster)
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    let rule = Rule::trigger("patch", "remoteprocess-edit");
    asked.map_err(|error| cluster.error(&error, &rule, &format!("replay dead letters of trigger {name}")))?;
    Ok(())
}

/// The bridge's answer to a request.
fn answer_in<'a>(trigger: &'a ProcessTrigger, nonce: &str) -> Option<&'a ReplayStatus> {
    let replay = trigger.status.as_ref()?.replay.as_ref()?;
    (replay.nonce == nonce).then_some(replay)
}

async fn answer(cluster: &Cluster, name: &str, nonce: &str, patience: Duration) -> Result<ReplayStatus, Failure> {
    let is_there = |trigger: Option<&ProcessTrigger>| trigger.is_none_or(|trigger| answer_in(trigger, nonce).is_some());
    let answered = await_condition(triggers(cluster), name, is_there);
    let answered = match update::deadline(patience) {
        None => answered.await,
        Some(deadline) => match timeout_at(deadline, answered).await {
            Ok(answered) => answered,
            Err(_) => return Err(late(cluster, name).await),
        },
    };
    let trigger = answered.map_err(|error| Failure::new(format!("cannot watch trigger {name}: {error}")))?;
    let gone = || Failure::new(format!("trigger {name} was deleted"));
    let trigger = trigger.ok_or_else(gone)?;
    answer_in(&trigger, nonce).cloned().ok_or_else(gone)
}

async fn late(cluster: &Cluster, name: &str) -> Failure {
    let now = triggers(cluster).get_opt(name).await.ok().flatten();
    let state = now.as_ref().map_or_else(|| "it is gone".to_owned(), state);
    Failure::no(format!(
        "the bridge has not answered in time; the trigger: {state}. See: rproc trigger describe {name}"
    ))
}

/// What the bridge has done, or why not.
fn sentence(answer: &ReplayStatus, is_dry: bool) -> Result<String, Failure> {
    let left = answer.left.map_or_else(String::new, |left| format!(", {left} left"));
    match (&answer.message, answer.replayed, answer.left) {
        (Some(message), 0, _) => Err(Failure::new(message.clone())),
        (Some(message), replayed, _) => Err(Failure::new(format!(
            "{} sent; then: {message}",
            letters(replayed.into())
        ))),
        (None, _, Some(left)) if is_dry => Ok(letters(left)),
        (None, _, None) if is_dry => Ok("the broker does not tell how many there are".to_owned()),
        (None, replayed, _) => Ok(format!("{} sent{left}", letters(replayed.into()))),
    }
}

fn letters(number: u64) -> String {
    match number {
        1 => "1 dead letter".to_owned(),
        number => format!("{number} dead letters"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_a_sentence() {
        let answer = |replayed, left, message: Option<&str>| ReplayStatus {
            nonce: "n".into(),
            time: None,
            replayed,
            left,
            message: message.map(str::to_owned),
        };
        let said = |answer: &ReplayStatus, is_dry| sentence(answer, is_dry).map_err(|failure| failure.text);
        assert_eq!(
            said(&answer(1, Some(2), None), false),
            Ok("1 dead letter sent, 2 left".into())
        );
        assert_eq!(said(&answer(0, None, None), false), Ok("0 dead letters sent".into()));
        assert_eq!(said(&answer(0, Some(3), None), true), Ok("3 dead letters".into()));
        assert!(said(&answer(0, None, None), true).is_ok());
        assert_eq!(said(&answer(0, None, Some("set x")), false), Err("set x".into()));
        let partly = said(&answer(5, None, Some("the broker is away")), false);
        assert_eq!(partly, Err("5 dead letters sent; then: the broker is away".into()));
    }

    #[test]
    fn an_answer_to_another_request_is_none() {
        let mut trigger = ProcessTrigger::new("orders", remoteprocess_api::ProcessTriggerSpec::default());
        assert_eq!(answer_in(&trigger, "n"), None);
        trigger.status = serde_json::from_value(json!({"replay": {"nonce": "n", "replayed": 3}})).unwrap();
        assert_eq!(answer_in(&trigger, "n").map(|answer| answer.replayed), Some(3));
        assert_eq!(answer_in(&trigger, "m"), None);
    }
}
