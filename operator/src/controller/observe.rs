//! The first step: the pod of the current attempt, from the cache, and from the API
//! server where the cache must not be believed.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::RemoteProcess;

use super::build::pod_name;
use super::error::Error;
use super::phase::{Memory, Sight};

/// A process and the pod of its current attempt.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The object.
    pub process: Arc<RemoteProcess>,
    /// The pod, whoever owns it.
    pub pod: Option<Arc<Pod>>,
}

impl Observed {
    /// Whose pod it is.
    #[must_use]
    pub fn sight(&self) -> Sight<'_> {
        match &self.pod {
            None => Sight::Missing,
            Some(pod) if is_owned(pod, &self.process) => Sight::Ours(pod),
            Some(pod) => Sight::Foreign(pod),
        }
    }
}

/// Whether the process is the pod's controller.
#[must_use]
pub fn is_owned(pod: &Pod, process: &RemoteProcess) -> bool {
    let mut owners = pod.owner_references().iter();
    owners.any(|owner| owner.controller == Some(true) && Some(&owner.uid) == process.metadata.uid.as_ref())
}

/// Looks at the process's pod.
///
/// A pod that has existed and is not in the cache is asked for, because the cache may
/// be behind and its absence ends an attempt.
///
/// # Errors
/// [`Error::Observe`] when the API server does not answer that question.
pub async fn observe(
    client: &Client,
    pods: &Store<Pod>,
    process: Arc<RemoteProcess>,
    memory: &Memory,
) -> Result<Observed, Error> {
    let Some(number) = process.status.as_ref().and_then(|status| status.attempt) else {
        return Ok(Observed { process, pod: None });
    };
    let namespace = process.namespace().unwrap_or_default();
    let name = pod_name(&process.name_any(), &process.uid().unwrap_or_default(), number);
    if let Some(pod) = pods.get(&ObjectRef::new(&name).within(&namespace)) {
        return Ok(Observed {
            process,
            pod: Some(pod),
        });
    }
    let record = process.status.as_ref().and_then(|status| status.attempt(number));
    let existed = record.is_some_and(|record| record.pod_uid.is_some() || record.granted_at.is_some())
        || memory.created.as_ref().is_some_and(|(attempt, _)| *attempt == number);
    let ended = record.is_some_and(|record| record.exit.is_some());
    if !existed || ended {
        return Ok(Observed { process, pod: None });
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let pod = api.get_opt(&name).await.map_err(Error::Observe)?;
    Ok(Observed {
        process,
        pod: pod.map(Arc::new),
    })
}
