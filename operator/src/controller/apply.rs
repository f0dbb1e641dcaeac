//! Creates the pod of an attempt, or says why the API server does not want it.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::core::Status;
use kube::{Client, ResourceExt};
use remoteprocess_api::{Reason, RemoteProcess};

use super::build::{AgentSettings, Profile, build_pod};
use super::error::Error;
use super::observe::is_owned;
use super::validate::Validated;

/// What came of the attempt to create a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// The pod is there, and it is ours.
    Pod(Box<Pod>),
    /// A pod of that name belongs to somebody else.
    Foreign(Box<Pod>),
    /// The API server does not want this pod.
    Refused(Refusal),
    /// The namespace is on its way out, or a pod of that name is: the watch will tell.
    Leaving,
}

/// Why the API server does not want a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As one word.
    pub reason: Reason,
    /// The API server's own sentence.
    pub message: String,
    /// Whether no later try can go better, because the specification cannot change.
    pub is_final: bool,
}

/// Creates the pod of attempt `attempt`. A refusal by Pod Security is answered once,
/// with the full `restricted` profile.
///
/// # Errors
/// [`Error::Apply`] when the API server did not decide.
pub async fn apply(
    client: &Client,
    owner: &RemoteProcess,
    process: &Validated<'_>,
    attempt: u32,
    settings: &AgentSettings,
) -> Result<Applied, Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), process.namespace);
    let mut profile = Profile::Ordinary;
    loop {
        let pod = build_pod(process, attempt, settings, profile);
        let status = match api.create(&PostParams::default(), &pod).await {
            Ok(created) => return Ok(Applied::Pod(Box::new(created))),
            Err(kube::Error::Api(status)) => status,
            Err(error) => return Err(Error::Apply(error)),
        };
        if profile == Profile::Ordinary && is_pod_security(&status) {
            profile = Profile::Restricted;
            continue;
        }
        return match judge(&status) {
            Judgement::Exists => adopt(&api, &pod.name_any(), owner).await,
            Judgement::Leaving => Ok(Applied::Leaving),
            Judgement::Refused(refusal) => Ok(Applied::Refused(refusal)),
            Judgement::Undecided => Err(Error::Apply(kube::Error::Api(status))),
        };
    }
}

/// Takes over a pod of the right name only if this process is its controller.
async fn adopt(api: &Api<Pod>, name: &str, owner: &RemoteProcess) -> Result<Applied, Error> {
    let Some(pod) = api.get_opt(name).await.map_err(Error::Apply)? else {
        return Ok(Applied::Leaving);
    };
    let pod = Box::new(pod);
    Ok(if is_owned(&pod, owner) {
        Applied::Pod(pod)
    } else {
        Applied::Foreign(pod)
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Exists,
    Leaving,
    Refused(Refusal),
    Undecided,
}

/// Reads the API server's refusal (admission plugins `ResourceQuota`, `LimitRanger`, `PodSecurity`,
/// `NamespaceLifecycle`, webhooks; registry validation answers 422).
fn judge(status: &Status) -> Judgement {
    let refused = |reason, is_final| {
        Judgement::Refused(Refusal {
            reason,
            message: status.message.clone(),
            is_final,
        })
    };
    match status.code {
        409 if status.reason == "AlreadyExists" => Judgement::Exists,
        403 if has_cause(status, "NamespaceTerminating") => Judgement::Leaving,
        404 => Judgement::Leaving,
        403 if status.message.contains("exceeded quota") || status.message.contains("failed quota") => {
            refused(Reason::Quota, false)
        }
        // Without the right to create pods at all the fault is the installation's, and it is said all the same.
        400 | 403 => refused(Reason::Admission, false),
        422 => refused(Reason::InvalidSpec, true),
        _ => Judgement::Undecided,
    }
}

fn is_pod_security(status: &Status) -> bool {
    status.code == 403 && status.message.contains("violates PodSecurity")
}

fn has_cause(status: &Status, reason: &str) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == reason)
}

#[cfg(test)]
mod tests;
