//! The controller's part of the status: which fields it owns, and the one write that changes them.

use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use remoteprocess_api::{
    AttemptStatus, ConditionType, ExitSource, RemoteProcess, RemoteProcessStatus, names::CONTROLLER_MANAGER,
};

use crate::controller::error::Error;

/// The fields of a status that the controller writes. What the relay writes (output, grant, launch, a verified exit,
/// the conditions of the output) is left out: a server-side apply that contained it would claim it.
#[must_use]
pub(crate) fn own_fields(status: &RemoteProcessStatus) -> RemoteProcessStatus {
    let RemoteProcessStatus {
        phase,
        reason,
        message,
        observed_generation,
        exit_code,
        signal,
        attempt,
        started_at,
        finished_at,
        duration,
        conditions,
        output: _,
        retries,
        attempts,
    } = status.clone();
    let own_condition = |name: &str| name.parse::<ConditionType>().is_ok_and(|kind| !kind.is_of_relay());
    RemoteProcessStatus {
        phase,
        reason,
        message,
        observed_generation,
        exit_code,
        signal,
        attempt,
        started_at,
        finished_at,
        duration,
        conditions: conditions
            .into_iter()
            .filter(|condition| own_condition(&condition.type_))
            .collect(),
        output: None,
        retries,
        attempts: attempts
            .into_iter()
            .filter(|attempt| status.keeps(attempt.number))
            .map(own_attempt_fields)
            .collect(),
    }
}

fn own_attempt_fields(attempt: AttemptStatus) -> AttemptStatus {
    let AttemptStatus {
        number,
        pod_name,
        pod_uid,
        node,
        begun_at,
        relay: _,
        granted_at: _,
        started_at: _,
        finished_at,
        paused_at: _,
        run_seconds: _,
        exit,
        usage: _,
        output: _,
    } = attempt;
    // The controller records an end that the entrypoint did not report.
    let exit = exit.filter(|exit| exit.source != ExitSource::Entrypoint);
    let finished_at = finished_at.filter(|_| exit.is_some());
    AttemptStatus {
        number,
        pod_name,
        pod_uid,
        node,
        begun_at,
        exit,
        finished_at,
        ..AttemptStatus::default()
    }
}

/// Writes `next` if it differs from what `process` shows; returns `None` if it does not.
///
/// The write succeeds only for the version of the object on which the decision was based, so that it cannot overrule a
/// grant that came in between.
///
/// # Errors
/// [`Error::Conflict`] when the object has changed in the meantime.
pub(crate) async fn write(
    client: &Client,
    process: &RemoteProcess,
    next: &RemoteProcessStatus,
) -> Result<Option<RemoteProcess>, Error> {
    let current = process.status.as_ref().map(own_fields).unwrap_or_default();
    if current == *next {
        return Ok(None);
    }
    let namespace = process.namespace().unwrap_or_default();
    let name = process.name_any();
    let patch = serde_json::json!({
        "apiVersion": RemoteProcess::api_version(&()),
        "kind": RemoteProcess::kind(&()),
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": process.metadata.uid,
            "resourceVersion": process.metadata.resource_version,
        },
        "status": next,
    });
    let api: Api<RemoteProcess> = Api::namespaced(client.clone(), &namespace);
    let params = PatchParams::apply(CONTROLLER_MANAGER);
    match api.patch_status(&name, &params, &Patch::Apply(&patch)).await {
        Ok(written) => Ok(Some(written)),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(Error::Conflict(status.message)),
        Err(source) => Err(Error::Status(source)),
    }
}

#[cfg(test)]
mod tests;
