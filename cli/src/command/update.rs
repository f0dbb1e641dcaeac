//! Changes of an object with the user's own rights, and the wait until what was asked for is so.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use remoteprocess_api::RemoteProcess;
use remoteprocess_client::observe::{self, Seen};
use remoteprocess_client::{Cluster, Rule};
use serde_json::Value;
use tokio::time::Instant;

use crate::failure::Failure;

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

/// Waits until an object is as `judge` wants it.
///
/// # Errors
/// It cannot become so: the name and the reason. It did not in time: what `late` makes of the object as it was last seen.
/// Or the API server refuses.
pub async fn until(
    cluster: &Cluster,
    (name, uid): (&str, Option<&str>),
    deadline: Option<Instant>,
    judge: impl FnMut(&Seen) -> Option<Result<(), String>>,
    late: impl FnOnce(Option<Box<RemoteProcess>>) -> String,
) -> Result<(), Failure> {
    match observe::until(&cluster.processes(), name, uid, deadline, judge).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(Failure::no(format!("{name} {why}"))),
        Err(observe::Error::TimedOut(last)) => Err(Failure::no(late(last))),
        Err(observe::Error::Api(error)) => {
            let rule = Rule::process("get, watch", "remoteprocess-view");
            Err(cluster.error(&error, &rule, "watch the process").into())
        }
    }
}
