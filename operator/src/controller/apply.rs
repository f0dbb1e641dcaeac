//! Creates the pod of an attempt, or reports why the API server refuses it.

mod invalid;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::core::Status;
use kube::{Client, ResourceExt};
use remoteprocess_api::{Reason, RemoteProcess};

use super::build::{AgentSettings, Profile, build_pod};
use super::error::Error;
use super::validate::Validated;
use crate::phase::pod::{Refusal, is_owned};

/// Result of the attempt to create a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Applied {
    /// The pod exists, and belongs to this process.
    Pod(Box<Pod>),
    /// A pod of that name has another owner.
    Foreign(Box<Pod>),
    /// The API server refuses this pod.
    Refused(Refusal),
    /// The namespace, or a pod of that name, is being deleted: the watch will report it.
    Leaving,
}

/// Creates the pod of attempt `attempt`. After a refusal by Pod Security, it tries once more with the full `restricted`
/// profile.
///
/// # Errors
/// [`Error::Apply`] when the API server did not decide.
pub(crate) async fn apply(
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
        return match classify_refusal(&pod, &status) {
            PodRefusal::Exists => adopt(&api, &pod.name_any(), owner).await,
            PodRefusal::Leaving => Ok(Applied::Leaving),
            PodRefusal::Refused(refusal) => Ok(Applied::Refused(refusal)),
            PodRefusal::Undecided => Err(Error::Apply(kube::Error::Api(status))),
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
enum PodRefusal {
    Exists,
    Leaving,
    Refused(Refusal),
    Undecided,
}

/// Interprets the API server's refusal (admission plugins `ResourceQuota`, `LimitRanger`, `PodSecurity`,
/// `NamespaceLifecycle`, webhooks and policies, which answer with any code; registry validation answers 422).
///
/// A refusal is final only if the fault is in the pod that was sent. Quotas, policies, LimitRanges and webhooks may
/// change.
fn classify_refusal(sent: &Pod, status: &Status) -> PodRefusal {
    let refused = |reason, message, is_final| {
        PodRefusal::Refused(Refusal {
            reason,
            message,
            is_final,
        })
    };
    let said = status.message.clone();
    match status.code {
        409 if status.reason == "AlreadyExists" => PodRefusal::Exists,
        403 if has_cause(status, "NamespaceTerminating") => PodRefusal::Leaving,
        404 => PodRefusal::Leaving,
        403 if said.contains("exceeded quota") || said.contains("failed quota") => refused(Reason::Quota, said, false),
        400 if said.contains(NOT_DECODED) => refused(Reason::InvalidSpec, said, true),
        422 if invalid::is_in(sent, status) => refused(Reason::InvalidSpec, said, true),
        422 if said.starts_with("Pod \"") => {
            let message = format!("{said}; a LimitRange or a webhook of the namespace has set this, not spec");
            refused(Reason::Admission, message, false)
        }
        // If the operator may not create pods at all, the installation is at fault; the status reports it nevertheless.
        400 | 403 | 422 => refused(Reason::Admission, said, false),
        // A webhook that does not answer.
        500 if said.contains(WEBHOOK_FAILED) => refused(Reason::Admission, said, false),
        _ => PodRefusal::Undecided,
    }
}

/// What the API server answers to a pod that contains a malformed value, a quantity for example.
const NOT_DECODED: &str = "cannot be handled as a Pod";
/// What the API server answers if it cannot call a webhook.
const WEBHOOK_FAILED: &str = "failed calling webhook";

impl Refusal {
    /// The refusal to report when the API server repeatedly answers without a decision.
    pub(crate) fn of_undecided(status: &Status) -> Self {
        Self {
            reason: Reason::Admission,
            message: format!(
                "the API server does not create the pod: {} (code {}); the next try follows",
                status.message, status.code
            ),
            is_final: false,
        }
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
