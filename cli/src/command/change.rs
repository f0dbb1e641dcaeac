//! Changes of an object with the user's own rights, and the wait until what was asked for is so.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use remoteprocess_api::RemoteProcess;
use serde_json::Value;
use tokio::time::Instant;

use super::Failure;
use crate::connect::{Cluster, Rule};
use crate::observe::{self, Seen};

/// Merges `patch` into an object, which tells by its field manager that it was rproc.
///
/// # Errors
/// What the API server answers; see [`refused`].
pub async fn patch(cluster: &Cluster, name: &str, patch: &Value) -> Result<RemoteProcess, kube::Error> {
    let ours = PatchParams {
        field_manager: Some("rproc".to_owned()),
        ..PatchParams::default()
    };
    cluster.processes().patch(name, &ours, &Patch::Merge(patch)).await
}

/// An object that may not be changed, or cannot be now.
pub fn refused(cluster: &Cluster, error: &kube::Error, what: &str) -> Failure {
    let rule = Rule::process("patch", "remoteprocess-edit");
    cluster.error(error, &rule, what).into()
}

/// When a wait of so long ends; `None`: never, which is what 0 means.
pub fn deadline(timeout: Duration) -> Option<Instant> {
    (!timeout.is_zero()).then(|| Instant::now() + timeout)
}

/// Waits until an object is as `judge` wants it. `None`: it is so; else why not, which is said of its name, or what `late`
/// makes of the object as it was last seen.
///
/// # Errors
/// The API server refuses.
pub async fn until(
    cluster: &Cluster,
    (name, uid): (&str, Option<&str>),
    deadline: Option<Instant>,
    judge: impl FnMut(&Seen) -> Option<Result<(), String>>,
    late: impl FnOnce(Option<Box<RemoteProcess>>) -> String,
) -> Result<Option<String>, Failure> {
    match observe::until(&cluster.processes(), name, uid, deadline, judge).await {
        Ok(Ok(())) => Ok(None),
        Ok(Err(why)) => Ok(Some(format!("{name} {why}"))),
        Err(observe::Error::TimedOut(last)) => Ok(Some(late(last))),
        Err(observe::Error::Api(error)) => {
            let rule = Rule::process("get, watch", "remoteprocess-view");
            Err(cluster.error(&error, &rule, "watch the process").into())
        }
    }
}

/// The end of a verb on several processes.
///
/// # Errors
/// Why some of them are not so, if any; the code is 1.
pub fn conclude(failures: &[String]) -> Result<u8, Failure> {
    match failures {
        [] => Ok(0),
        _ => Err(Failure::no(failures.join("\n"))),
    }
}
