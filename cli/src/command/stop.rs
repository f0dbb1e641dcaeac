//! `rproc stop`: requests the stop, and waits for the end.

use std::sync::Arc;
use std::time::Duration;

use remoteprocess_api::{RemoteProcess, names, signal};
use remoteprocess_client::dial::CallError;
use remoteprocess_client::observe::Seen;
use remoteprocess_client::{Cluster, Dial, Relay};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::{ProcessKey, StopRequest};
use tokio::time::Instant;
use tonic::Code;

use super::selection::{self, Failures, Selection};
use super::update;
use crate::args::GlobalArgs;
use crate::args::{duration, signal_number};
use crate::failure::Failure;
use crate::output::complain;
use crate::print::{print, resource};

/// Flags of `stop`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct StopArgs {
    /// Which processes.
    #[command(flatten)]
    pub selection: Selection,
    /// Stop signal, instead of the one in the spec
    #[arg(long, value_name = "SIGNAL", value_parser = signal_number)]
    pub signal: Option<i32>,
    /// Seconds until SIGKILL, instead of the grace period in the spec
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub grace_period: Option<u32>,
    /// Reason, shown in the status and in Events
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub message: String,
    /// Wait until it has ended; --wait=false returns when the stop is requested
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = clap::ArgAction::Set)]
    pub wait: bool,
    /// Maximum time to wait; 0 for no limit
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0", hide_default_value = true)]
    pub timeout: Duration,
}

const EXAMPLES: &str = "Examples:
  # Send SIGTERM, then SIGKILL after the grace period, and wait for the end
  rproc stop build

  # Send SIGINT, then SIGKILL after 5 seconds
  rproc stop --signal INT --grace-period 5 build

A stopped process never starts again and never counts as succeeded.";

/// A stop that takes no longer than this needs no message.
const PATIENCE: Duration = Duration::from_secs(1);

/// How to stop; absent values come from the process's spec.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// Number of the first signal.
    pub signal: Option<i32>,
    /// Seconds until SIGKILL.
    pub grace_seconds: Option<u32>,
    /// The reason; may be empty.
    pub message: String,
}

/// Stops the processes one after the other, and waits for all of them. If one fails, the others are stopped
/// nevertheless.
pub async fn run(global: &GlobalArgs, args: StopArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let deadline = update::deadline(args.timeout);
    let manner = Manner {
        signal: args.signal,
        grace_seconds: args.grace_period,
        message: args.message,
    };
    let (mut asked, mut failures) = (Vec::new(), Failures::default());
    for name in args.selection.names(&cluster).await? {
        match failures.keep(begin(&cluster, &name, &manner).await)? {
            Some(Some(begun)) => asked.push(begun),
            Some(None) => print(&format!("{} has ended already\n", resource(&name)))?,
            None => {}
        }
    }
    for begun in asked {
        let what = if args.wait { "stopped" } else { "is stopping" };
        let is_done = !args.wait || failures.keep(begun.wait(&cluster, deadline).await)?.is_some();
        if is_done {
            print(&format!("{} {what}\n", resource(&begun.key.name)))?;
        }
    }
    failures.conclude()
}

/// A stop that was requested.
struct Begun {
    key: ProcessKey,
    /// What happens next, for a user who waits.
    course: String,
}

/// Requests the stop of one process; `None`: it has already ended.
async fn begin(cluster: &Arc<Cluster>, name: &str, manner: &Manner) -> Result<Option<Begun>, Failure> {
    let object = selection::get(cluster, name).await?;
    if object.is_final() {
        return Ok(None);
    }
    let key = ProcessKey {
        namespace: cluster.namespace.clone(),
        name: name.to_owned(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
    };
    ask(cluster, &key, manner).await?;
    let course = course(&object, manner);
    Ok(Some(Begun { key, course }))
}

/// Which signal was sent, and when SIGKILL follows.
fn course(object: &RemoteProcess, manner: &Manner) -> String {
    let first = manner.signal.map(signal::name);
    let first = first.unwrap_or_else(|| object.spec.stop_signal().to_owned());
    let grace = manner.grace_seconds.unwrap_or_else(|| object.spec.stop_grace_seconds());
    format!("{first} asks it to end; SIGKILL follows after {grace} s")
}

/// Asks the relay to stop the process; if the relay cannot be reached, sets `spec.desiredState`.
pub async fn ask(cluster: &Arc<Cluster>, key: &ProcessKey, manner: &Manner) -> Result<(), Failure> {
    let request = StopRequest {
        protocol: PROTOCOL,
        process: Some(key.clone()),
        signal: manner.signal,
        grace_seconds: manner.grace_seconds,
        message: manner.message.clone(),
    };
    let mut relay = Relay::new(cluster.clone());
    let answer = relay
        .call(|mut client| {
            let request = request.clone();
            async move { client.stop(request).await }
        })
        .await;
    let is_plain = manner.signal.is_none() && manner.grace_seconds.is_none();
    match answer {
        Ok(_) => Ok(()),
        // The relay may not know a new process yet, but the API server does.
        Err(CallError::Relay(status)) if is_plain && status.code() == Code::NotFound => {
            patch(cluster, key, &manner.message).await
        }
        Err(CallError::Dial(error)) if is_plain => patch(cluster, key, &manner.message)
            .await
            .map_err(|failure| Failure::new(format!("{error}\n{}", failure.text))),
        Err(error) => Err(error.into()),
    }
}

async fn patch(cluster: &Cluster, key: &ProcessKey, why: &str) -> Result<(), Failure> {
    let why = (!why.is_empty()).then_some(why);
    let metadata = serde_json::json!({"uid": key.uid, "annotations": {names::ANNOTATION_REASON: why}});
    let patch = serde_json::json!({"metadata": metadata, "spec": {"desiredState": "Stopped"}});
    match update::patch(cluster, &key.name, &patch).await {
        Ok(_) => Ok(()),
        // It was deleted in the meantime.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(update::refused(
            cluster,
            &error,
            "stop the process by spec.desiredState",
        )),
    }
}

impl Begun {
    /// Waits for the end. If that takes a while, prints why.
    async fn wait(&self, cluster: &Cluster, deadline: Option<Instant>) -> Result<(), Failure> {
        let has_ended = |seen: &Seen| seen.has_ended().then_some(Ok(()));
        let key = &self.key;
        let this = (key.name.as_str(), Some(key.uid.as_str()));
        let late = |_| format!("{} has been asked to stop and has not ended in time", key.name);
        let mut ended = std::pin::pin!(update::until(cluster, this, deadline, has_ended, late));
        tokio::select! {
            ended = &mut ended => return ended,
            () = tokio::time::sleep(PATIENCE) => complain(&format!("{}: {}", key.name, self.course)),
        }
        ended.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_waits_for_a_stop_learns_how_long_it_may_take() {
        let object = |stop: serde_json::Value| -> RemoteProcess {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "job"},
                "spec": {"image": "i", "command": ["x"], "stop": stop},
            }))
            .unwrap()
        };
        let said = course(
            &object(serde_json::json!({"signal": "SIGINT", "gracePeriodSeconds": 5})),
            &Manner::default(),
        );
        insta::assert_snapshot!(said, @"SIGINT asks it to end; SIGKILL follows after 5 s");
        let manner = Manner {
            signal: Some(1),
            grace_seconds: Some(0),
            ..Manner::default()
        };
        insta::assert_snapshot!(course(&object(serde_json::json!({})), &manner), @"SIGHUP asks it to end; SIGKILL follows after 0 s");
    }
}
