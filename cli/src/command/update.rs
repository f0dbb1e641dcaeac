//! Changes an object with the user's own rights, and waits until the change has taken effect.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use remoteprocess_api::RemoteProcess;
use remoteprocess_client::observe::{self, Seen};
use remoteprocess_client::{Cluster, Rule};
use serde_json::Value;
use tokio::time::Instant;

use crate::failure::Failure;

/// Merges `patch` into an object; the field manager is rproc.
///
/// # Errors
/// The API server's answer; see [`refused`].
pub async fn patch(cluster: &Cluster, name: &str, patch: &Value) -> Result<RemoteProcess, kube::Error> {
    let ours = PatchParams {
        field_manager: Some("rproc".to_owned()),
        ..PatchParams::default()
    };
    cluster.processes().patch(name, &ours, &Patch::Merge(patch)).await
}

/// The failure for an object that may not be changed, or cannot be changed now.
pub fn refused(cluster: &Cluster, error: &kube::Error, what: &str) -> Failure {
    let rule = Rule::process("patch", "remoteprocess-edit");
    cluster.error(error, &rule, what).into()
}

/// When a wait of this duration ends; `None`: never, which is what 0 means.
pub fn deadline(timeout: Duration) -> Option<Instant> {
    (!timeout.is_zero()).then(|| Instant::now() + timeout)
}

/// Waits until `check` accepts the object.
///
/// # Errors
/// It can never be accepted: the name and the reason. It was not accepted in time: what `late` makes of the object as
/// it was last seen. Or the API server refuses.
pub async fn until(
    cluster: &Cluster,
    (name, uid): (&str, Option<&str>),
    deadline: Option<Instant>,
    check: impl FnMut(&Seen) -> Option<Result<(), String>>,
    late: impl FnOnce(Option<Box<RemoteProcess>>) -> String,
) -> Result<(), Failure> {
    match observe::until(&cluster.processes(), name, uid, deadline, check).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(Failure::no(format!("{name} {why}"))),
        Err(observe::Error::TimedOut(last)) => Err(Failure::no(late(last))),
        Err(observe::Error::Api(error)) => {
            let rule = Rule::process("get, watch", "remoteprocess-view");
            Err(cluster.error(&error, &rule, "watch the process").into())
        }
    }
}
