//! The write of a status. Controller and relay share the status: each replaces all of it, and only in the version of the
//! object that it has read. So neither overwrites what the other has written in the meantime.

use jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use kube::{Client, ResourceExt};
use remoteprocess_api::{AttemptStatus, RemoteProcess, RemoteProcessStatus};

use crate::timeline::{self, Timed};
use crate::trace;

/// The result of a write that the API server has decided about.
#[derive(Debug)]
pub(crate) enum Written {
    /// The object as it is now.
    Done(Box<RemoteProcess>),
    /// The object has changed since it was read. In the words of the API server.
    Conflict(String),
    /// The object no longer exists.
    Gone,
}

/// Replaces the status of `process` by `next`, as this field manager.
pub(crate) async fn write(
    client: &Client,
    manager: &str,
    process: &RemoteProcess,
    next: RemoteProcessStatus,
) -> kube::Result<Written> {
    let (namespace, name) = (process.namespace().unwrap_or_default(), process.name_any());
    // The API server ignores the spec of this request, but does not accept an object without one.
    let object = RemoteProcess {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            uid: process.uid(),
            resource_version: process.resource_version(),
            ..ObjectMeta::default()
        },
        spec: process.spec.clone(),
        status: Some(next),
    };
    let params = PostParams {
        field_manager: Some(manager.to_owned()),
        ..PostParams::default()
    };
    let api: Api<RemoteProcess> = Api::namespaced(client.clone(), &namespace);
    match api.replace_status(&name, &params, &object).await {
        Ok(written) => {
            tell(process, &written);
            Ok(Written::Done(Box::new(written)))
        }
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Written::Conflict(status.message)),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Written::Gone),
        Err(error) => Err(error),
    }
}

/// Measures and traces what has ended: call it once for each step.
pub(crate) fn tell_steps(process: &RemoteProcess, attempt: &AttemptStatus, steps: &[Timed]) {
    timeline::measure(steps);
    trace::tell_steps(process, attempt, steps);
}

/// Measures and traces the steps that ended with this write.
fn tell(before: &RemoteProcess, written: &RemoteProcess) {
    let now = Timestamp::now();
    for attempt in written.status.iter().flat_map(|status| &status.attempts) {
        let known = before.status.as_ref().and_then(|status| status.attempt(attempt.number));
        tell_steps(written, attempt, &timeline::ended(known, attempt, now));
        if timeline::is_over(known, attempt) {
            trace::tell_attempt(written, attempt, now);
        }
    }
}

#[cfg(test)]
mod tests;
