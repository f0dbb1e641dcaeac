//! The first step: gets the pod of the current attempt from the cache, or from the API server if the cache must not be
//! trusted.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::{AttemptStatus, ExitSource, RemoteProcess, RemoteProcessStatus};
use tracing::warn;

use super::error::Error;
use crate::phase::pod::{is_owned, pod_name};
use crate::phase::{Memory, NodeSight, OUT_OF_SERVICE, Sight};

/// A process and the pod of its current attempt.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// The object.
    pub process: Arc<RemoteProcess>,
    /// The pod, whatever its owner.
    pub pod: Option<Arc<Pod>>,
    /// The node of a pod that is gone.
    pub node: NodeSight,
}

impl Observed {
    /// Whether the pod belongs to the process.
    pub(crate) fn sight(&self) -> Sight<'_> {
        match &self.pod {
            None => Sight::Missing,
            Some(pod) if is_owned(pod, &self.process) => Sight::Ours(pod),
            Some(pod) => Sight::Foreign(pod),
        }
    }
}

/// Observes the pod of a process.
///
/// A pod that has existed and is not in the cache is read from the API server, because the cache may be behind and the
/// pod's absence ends an attempt. So is a pod whose agent asked for its start and that has no node in the cache:
/// without the node's name nothing can be proven once the pod is lost.
///
/// # Errors
/// [`Error::Observe`] when the API server does not answer.
pub(crate) async fn observe(
    client: &Client,
    pods: &Store<Pod>,
    process: Arc<RemoteProcess>,
    memory: &Memory,
) -> Result<Observed, Error> {
    let seen = |process, pod| Observed {
        process,
        pod,
        node: NodeSight::default(),
    };
    let Some(number) = process.status.as_ref().and_then(RemoteProcessStatus::current_attempt) else {
        return Ok(seen(process, None));
    };
    let namespace = process.namespace().unwrap_or_default();
    let name = pod_name(&process.name_any(), &process.uid().unwrap_or_default(), number);
    let record = process.status.as_ref().and_then(|status| status.attempt(number));
    let is_behind =
        |pod: &Arc<Pod>| !process.is_final() && record.is_some_and(|record| is_older_than_grant(pod, record));
    let cached = pods.get(&ObjectRef::new(&name).within(&namespace));
    if let Some(pod) = cached.filter(|pod| !is_behind(pod)) {
        return Ok(seen(process, Some(pod)));
    }
    let Some(record) = record else {
        return Ok(seen(process, None));
    };
    if !is_worth_asking(&process, record, memory) {
        return Ok(seen(process, None));
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let pod = api.get_opt(&name).await.map_err(Error::Observe)?.map(Arc::new);
    let node = match &record.node {
        Some(node) if pod.is_none() && needs_node(&process, record) => look_at_node(client, node).await?,
        _ => NodeSight::default(),
    };
    Ok(Observed { process, pod, node })
}

/// Whether this pod was read before its agent was granted the start: by then it ran on a node.
fn is_older_than_grant(pod: &Pod, record: &AttemptStatus) -> bool {
    let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    record.granted_at.is_some() && !has_node
}

/// Whether the absence of the pod would be significant.
pub(crate) fn is_worth_asking(process: &RemoteProcess, record: &AttemptStatus, memory: &Memory) -> bool {
    let granted = record.granted_at.is_some();
    let existed = record.pod_uid.is_some()
        || granted
        || memory
            .created
            .as_ref()
            .is_some_and(|(attempt, _)| *attempt == record.number);
    // After an attempt that ran, another may follow once its pod is gone.
    existed && !process.is_final() && (record.exit.is_none() || granted)
}

/// Whether another attempt may follow one whose end the entrypoint did not report.
pub(crate) fn needs_node(process: &RemoteProcess, record: &AttemptStatus) -> bool {
    let verified = record
        .exit
        .as_ref()
        .is_some_and(|exit| exit.source == ExitSource::Entrypoint);
    process.spec.retries.is_some() && record.granted_at.is_some() && !verified
}

/// Whether a node may still run a pod that the API server does not know.
async fn look_at_node(client: &Client, name: &str) -> Result<NodeSight, Error> {
    let api: Api<Node> = Api::all(client.clone());
    match api.get_opt(name).await {
        Ok(None) => Ok(NodeSight::Gone),
        Ok(Some(node)) => Ok(judge_node(&node)),
        // An installation for some namespaces only may not read nodes: then nothing is known.
        Err(kube::Error::Api(status)) if status.code == 403 => {
            warn!(
                node = name,
                "no right to get nodes: the end of a lost pod cannot be proven"
            );
            Ok(NodeSight::Silent)
        }
        Err(error) => Err(Error::Observe(error)),
    }
}

fn judge_node(node: &Node) -> NodeSight {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    if taints.any(|taint| taint.key == OUT_OF_SERVICE) {
        return NodeSight::Gone;
    }
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.find(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready.map_or(NodeSight::Silent, |ready| NodeSight::Ready {
        since: ready
            .last_transition_time
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_cluster::FakeCluster;
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    #[tokio::test]
    async fn a_cache_without_the_node_of_a_granted_attempt_is_behind() {
        let mut process: RemoteProcess = serde_saphyr::from_str(
            "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
             metadata: {name: hello, namespace: team, uid: u}\nspec: {image: busybox, command: [id]}\n\
             status: {attempt: 1, attempts: [{number: 1, grantedAt: '2026-01-01T00:00:00Z'}]}\n",
        )
        .unwrap();
        let metadata = json!({"name": pod_name("hello", "u", 1), "namespace": "team"});
        let pod = |spec| -> Pod { serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap() };
        let cluster = FakeCluster::default();
        cluster.put("pods", &pod(json!({"containers": [], "nodeName": "node-1"})));
        let (pods, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Apply(pod(json!({"containers": []}))));
        let node = async |process: &RemoteProcess| {
            let (process, memory) = (Arc::new(process.clone()), Memory::default());
            let observed = observe(&cluster.client(), &pods, process, &memory).await.unwrap();
            observed.pod.unwrap().spec.as_ref().unwrap().node_name.clone()
        };
        assert_eq!(node(&process).await.as_deref(), Some("node-1"));
        process.status.as_mut().unwrap().attempts[0].granted_at = None;
        assert_eq!(node(&process).await, None, "before the grant the cache will do");
    }
}
