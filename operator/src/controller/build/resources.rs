//! Requests and limits of the agent's container.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::super::validate::Validated;
use super::{AgentSettings, volumes};

/// CPU of an agent that must have a limit: enough to carry a stream. The usual request would throttle it too much.
const GUARANTEED_CPU: &str = "200m";
/// The two resources that determine a pod's class (Kubernetes, "Pod Quality of Service Classes").
const QOS_RESOURCES: [&str; 2] = ["cpu", "memory"];

/// The agent's resources: those of the object, or those of the installation. If the program is Guaranteed, requests and
/// limits are made equal, so that the pod stays Guaranteed.
pub(super) fn agent(process: &Validated<'_>, settings: &AgentSettings) -> ResourceRequirements {
    let given = process.spec.agent.as_ref().and_then(|agent| agent.resources.as_ref());
    let mut resources = given.unwrap_or(&settings.resources).clone();
    if process.spec.resources.as_ref().is_some_and(is_guaranteed) {
        equalise(&mut resources);
    }
    if settings.request_ephemeral_storage {
        let requests = resources.requests.get_or_insert_default();
        requests
            .entry("ephemeral-storage".into())
            .or_insert_with(|| volumes::spool_limit(process));
    }
    resources
}

/// Whether a container with these resources keeps a pod Guaranteed: it has limits for CPU and memory, and requests that
/// are equal to them or absent.
fn is_guaranteed(resources: &ResourceRequirements) -> bool {
    QOS_RESOURCES.iter().all(|name| {
        let limit = resources.limits.as_ref().and_then(|limits| limits.get(*name));
        let request = resources.requests.as_ref().and_then(|requests| requests.get(*name));
        limit.is_some() && request.is_none_or(|request| Some(request) == limit)
    })
}

fn equalise(resources: &mut ResourceRequirements) {
    for name in QOS_RESOURCES {
        let limit = resources.limits.as_ref().and_then(|limits| limits.get(name)).cloned();
        let request = resources
            .requests
            .as_ref()
            .and_then(|requests| requests.get(name))
            .cloned();
        let value = match (limit, name) {
            (Some(limit), _) => Some(limit),
            (None, "cpu") => Some(Quantity(GUARANTEED_CPU.into())),
            (None, _) => request,
        };
        if let Some(value) = value {
            resources
                .limits
                .get_or_insert_default()
                .insert(name.into(), value.clone());
            resources.requests.get_or_insert_default().insert(name.into(), value);
        }
    }
}
