//! `rproc extend`: sets another run deadline, also for a running program.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use remoteprocess_api::{Phase, RemoteProcess};
use remoteprocess_client::Cluster;
use remoteprocess_client::observe::Seen;
use serde_json::json;
use tokio::time::Instant;

use super::selection;
use super::selection::{Failures, Selection};
use super::{update, wait};
use crate::args::GlobalArgs;
use crate::args::duration;
use crate::failure::Failure;
use crate::print::{print, resource};

/// Flags of `extend`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("time").required(true))]
pub struct ExtendArgs {
    /// Which processes.
    #[command(flatten)]
    pub selection: Selection,
    /// Time to add to the current deadline
    #[arg(long, value_name = "TIME", value_parser = duration, group = "time")]
    pub by: Option<Duration>,
    /// Total time to run, counted from the start of the program
    #[arg(long, value_name = "TIME", value_parser = duration, group = "time")]
    pub to: Option<Duration>,
    /// Let it run without a deadline
    #[arg(long, group = "time")]
    pub no_limit: bool,
    /// Wait until the agent has the new deadline; --wait=false returns at once
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = clap::ArgAction::Set)]
    pub wait: bool,
    /// Maximum time to wait; 0 for no limit
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    pub timeout: Duration,
}

const EXAMPLES: &str = "Examples:
  # Add an hour to the current deadline
  rproc extend build --by 1h

  # Allow three hours in total
  rproc extend build --to 3h

The deadline is spec.deadlines.runSeconds. It applies to each attempt.";

/// Maximum that the API accepts.
const LONGEST: u32 = 31_536_000;
/// Number of tries if another client changes the object in the meantime.
const TRIES: usize = 5;
const CONFLICT: u16 = 409;

/// Sets the run deadline of each process, and waits until all agents know it. If one fails, the others are changed
/// nevertheless.
pub async fn run(global: &GlobalArgs, args: ExtendArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let deadline = update::deadline(args.timeout);
    let (mut asked, mut failures) = (Vec::new(), Failures::default());
    for name in args.selection.names(&cluster).await? {
        asked.extend(failures.keep(ask(&cluster, &name, &args).await)?);
    }
    for object in asked {
        let name = object.name_any();
        let is_done = !args.wait || failures.keep(is_known(&cluster, &object, deadline).await)?.is_some();
        if is_done {
            print(&format!("{} {}\n", resource(&name), describe(&object)))?;
        }
    }
    failures.conclude()
}

async fn ask(cluster: &Cluster, name: &str, args: &ExtendArgs) -> Result<RemoteProcess, Failure> {
    for _ in 0..TRIES {
        let object = selection::get(cluster, name).await?;
        let seconds = limit(&object, args, Timestamp::now())
            .map_err(|why| Failure::no(format!("cannot extend {name}: {why}")))?;
        // The result depends on the current limit, so the patch applies to exactly this version.
        let metadata = json!({"uid": object.metadata.uid, "resourceVersion": object.metadata.resource_version});
        let patch = json!({"metadata": metadata, "spec": {"deadlines": {"runSeconds": seconds}}});
        match update::patch(cluster, name, &patch).await {
            Ok(patched) => return Ok(patched),
            Err(kube::Error::Api(status)) if status.code == CONFLICT => {}
            Err(error) => return Err(update::refused(cluster, &error, "extend the process")),
        }
    }
    Err(Failure::new(format!(
        "cannot extend {name}: it changes all the time; try again"
    )))
}

/// The new limit in seconds; `None`: no limit.
fn limit(object: &RemoteProcess, args: &ExtendArgs, now: Timestamp) -> Result<Option<u32>, String> {
    if object.is_final() {
        return Err(format!("it {}", wait::state(object)));
    }
    if args.no_limit {
        return Ok(None);
    }
    let seconds = match (args.by, args.to, object.spec.run_deadline()) {
        (Some(_), _, None) => return Err("it has no run deadline; give it one by --to".to_owned()),
        (Some(by), _, Some(now)) => by.as_secs().saturating_add(now.as_secs()),
        (None, to, _) => to.unwrap_or_default().as_secs(),
    };
    let has_run = started(object).map(|then| now.duration_since(then).as_secs());
    if let Some(has_run) =
        has_run.filter(|has_run| object.spec.counts_pauses() && u64::try_from(*has_run).is_ok_and(|s| s >= seconds))
    {
        return Err(format!(
            "it has run for {has_run} s already, and would be stopped at once. To end it: rproc stop"
        ));
    }
    match u32::try_from(seconds) {
        Ok(seconds @ 1..=LONGEST) => Ok(Some(seconds)),
        _ => Err(format!(
            "{seconds} s is not between 1 s and {LONGEST} s (a year); see --no-limit"
        )),
    }
}

fn started(object: &RemoteProcess) -> Option<Timestamp> {
    object.status.as_ref()?.started_at
}

fn describe(object: &RemoteProcess) -> String {
    let Some(run_deadline) = object.spec.run_deadline() else {
        return "may run without a deadline".to_owned();
    };
    let span = SignedDuration::try_from(run_deadline).unwrap_or(SignedDuration::MAX);
    let until = started(object)
        .filter(|_| object.spec.counts_pauses())
        .and_then(|then| then.checked_add(span).ok());
    match until {
        Some(until) => format!("may run for {span:#}, until {until:.0}"),
        None => format!("may run for {span:#}"),
    }
}

/// Waits until its agent uses the new limit, or will use it from the start.
async fn is_known(cluster: &Cluster, object: &RemoteProcess, deadline: Option<Instant>) -> Result<(), Failure> {
    let name = &object.name_any();
    let this = (name.as_str(), object.metadata.uid.as_deref());
    update::until(cluster, this, deadline, check, |_| {
        format!("{name} has been asked, and its agent has not answered in time: it goes by the old deadline")
    })
    .await
}

fn check(seen: &Seen) -> Option<Result<(), String>> {
    let Seen::There(object) = seen else {
        return Some(Err("has been deleted".to_owned()));
    };
    let status = object.status.clone().unwrap_or_default();
    if status.phase.is_some_and(Phase::is_final) {
        return Some(Err(format!("{} meanwhile", wait::state(object))));
    }
    match status.latest_attempt().filter(|attempt| attempt.started_at.is_some()) {
        // It will start with the new limit.
        None => Some(Ok(())),
        Some(attempt) => (attempt.run_deadline() == object.spec.run_deadline()).then_some(Ok(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::Value;

    fn object(deadlines: Value, status: Value) -> RemoteProcess {
        serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "job"},
            "spec": {"image": "i", "command": ["x"], "deadlines": deadlines}, "status": status,
        }))
        .unwrap()
    }

    fn args(words: &[&str]) -> ExtendArgs {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            args: ExtendArgs,
        }
        Only::try_parse_from([&["extend", "job"], words].concat()).unwrap().args
    }

    #[test]
    fn the_new_limit_is_more_than_it_has_run() {
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let running = object(
            json!({"runSeconds": 900}),
            json!({"phase": "Running", "startedAt": "2026-01-01T00:00:00Z"}),
        );
        let new = |object: &RemoteProcess, words: &[&str]| limit(object, &args(words), now);
        assert_eq!(new(&running, &["--by", "5m"]), Ok(Some(1200)));
        assert_eq!(new(&running, &["--to", "11m"]), Ok(Some(660)));
        assert_eq!(new(&running, &["--no-limit"]), Ok(None));
        assert!(
            new(&running, &["--to", "10m"])
                .unwrap_err()
                .contains("has run for 600 s already")
        );
        assert!(new(&running, &["--to", "1000000h"]).unwrap_err().contains("--no-limit"));
        let paused = object(
            json!({"runSeconds": 900, "countPaused": false}),
            json!({"phase": "Running", "startedAt": "2026-01-01T00:00:00Z"}),
        );
        assert_eq!(
            new(&paused, &["--to", "1m"]),
            Ok(Some(60)),
            "it is not known how long it has run"
        );
        let unlimited = object(json!({}), json!({}));
        assert!(new(&unlimited, &["--by", "1h"]).unwrap_err().contains("--to"));
        let ended = object(
            json!({"runSeconds": 1}),
            json!({"phase": "Failed", "reason": "DeadlineExceeded"}),
        );
        assert!(new(&ended, &["--by", "1h"]).unwrap_err().contains("Failed"));
    }

    #[test]
    fn the_agent_has_the_limit_when_the_status_shows_it() {
        let seen = |run_seconds: u32| {
            let attempt = json!({"number": 1, "startedAt": "2026-01-01T00:00:00Z", "runSeconds": run_seconds});
            let status = json!({"phase": "Running", "attempt": 1, "attempts": [attempt]});
            Seen::There(Box::new(object(json!({"runSeconds": 900}), status)))
        };
        assert_eq!((check(&seen(600)), check(&seen(900))), (None, Some(Ok(()))));
        let pending = Seen::There(Box::new(object(
            json!({"runSeconds": 900}),
            json!({"phase": "Pending"}),
        )));
        assert_eq!(check(&pending), Some(Ok(())));
        insta::assert_snapshot!(
            describe(&object(json!({"runSeconds": 5400}), json!({"startedAt": "2026-01-01T00:00:00Z"}))),
            @"may run for 1h 30m, until 2026-01-01T01:30:00Z"
        );
    }
}
