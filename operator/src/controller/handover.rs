//! How the entrypoint gets into the user's container: by a volume with the agent's image, if every node can mount one,
//! otherwise by a hook of the agent's container, which works everywhere. The status of the nodes decides; there is no
//! setting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use tokio::time::sleep;
use tracing::info;

use super::build::Handover;
use super::metrics::metrics;
use crate::backoff::WATCH_PAGE;

/// Pause between two reads of the nodes.
const LOOK: Duration = Duration::from_secs(300);
/// The first version of Kubernetes in which image volumes are always available.
const KUBELET: (u32, u32) = (1, 36);
/// Runtimes that mount images, each with the first version that does.
const RUNTIMES: [(&str, (u32, u32)); 2] = [("containerd", (2, 1)), ("cri-o", (1, 31))];

/// What the nodes support, as far as known. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Detected(Arc<AtomicBool>);

impl Detected {
    /// For a pod that is created now.
    pub(super) fn handover(&self) -> Handover {
        match self.0.load(Ordering::Relaxed) {
            true => Handover::ImageVolume,
            false => Handover::Hook,
        }
    }

    /// Reads the nodes repeatedly; never returns.
    pub(super) async fn keep(&self, client: Client) {
        let mut said = None;
        loop {
            let obstacle = obstacle(&client).await;
            self.0.store(obstacle.is_none(), Ordering::Relaxed);
            metrics().image_volumes.set(obstacle.is_none().into());
            if said.as_ref() != Some(&obstacle) {
                match &obstacle {
                    None => info!("new pods get the entrypoint by an image volume"),
                    Some(why) => info!(why, "new pods get the entrypoint by a postStart hook"),
                }
                said = Some(obstacle);
            }
            sleep(LOOK).await;
        }
    }
}

/// Why image volumes are not used; `None` if every node mounts them.
async fn obstacle(client: &Client) -> Option<String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut params = ListParams::default().limit(WATCH_PAGE);
    let mut is_empty = true;
    loop {
        let page = match nodes.list(&params).await {
            Ok(page) => page,
            Err(error) => return Some(format!("the nodes cannot be listed: {error}")),
        };
        is_empty &= page.items.is_empty();
        if let Some(why) = page.items.iter().find_map(lacks) {
            return Some(why);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None if is_empty => return Some("there are no nodes".to_owned()),
            None => return None,
        }
    }
}

/// Why a node does not mount images; `None` if it does, or if no pod of ours can run there.
fn lacks(node: &Node) -> Option<String> {
    let info = node.status.as_ref()?.node_info.as_ref()?;
    if info.operating_system == "windows" {
        return None;
    }
    let (runtime, version) = info.container_runtime_version.split_once("://").unwrap_or_default();
    let first = RUNTIMES
        .iter()
        .find(|(name, _)| *name == runtime)
        .map(|(_, first)| *first);
    let is_new = |text: &str, first| parse(text).is_some_and(|version| version >= first);
    let mounts = is_new(info.kubelet_version.trim_start_matches('v'), KUBELET)
        && first.is_some_and(|first| is_new(version, first));
    (!mounts).then(|| {
        format!(
            "node {} has kubelet {} and {}",
            node.name_any(),
            info.kubelet_version,
            info.container_runtime_version
        )
    })
}

/// Major and minor version.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::fake_api::{self, refusal};

    fn node(kubelet: &str, runtime: &str, system: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"nodeInfo": {
            "kubeletVersion": kubelet, "containerRuntimeVersion": runtime, "operatingSystem": system,
            "architecture": "", "bootID": "", "kernelVersion": "", "kubeProxyVersion": "", "machineID": "",
            "osImage": "", "systemUUID": "",
        }}}))
        .unwrap()
    }

    #[rstest]
    #[case("v1.36.3", "containerd://2.4.2+unknown", "linux", true)]
    #[case("v1.36.0-eks-abc", "containerd://2.1.0-rc.1", "linux", true)]
    #[case("v1.37.0", "cri-o://1.31.2", "linux", true)]
    #[case("v1.35.9", "containerd://2.4.2", "linux", false)]
    #[case("v1.36.3", "containerd://2.0.5", "linux", false)]
    #[case("v1.36.3", "containerd://1.7.28", "linux", false)]
    #[case("v1.36.3", "docker://29.0.1", "linux", false)]
    #[case("v1.36.3", "", "linux", false)]
    #[case("v1.36.3", "containerd://1.7.28", "windows", true)]
    fn a_node_says_whether_it_mounts_images(
        #[case] kubelet: &str,
        #[case] runtime: &str,
        #[case] system: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(lacks(&node(kubelet, runtime, system)).is_none(), expected);
    }

    #[tokio::test]
    async fn one_old_node_on_any_page_is_enough_for_the_hook() {
        let new = node("v1.36.3", "containerd://2.4.2", "linux");
        let old = node("v1.34.1", "containerd://2.4.2", "linux");
        for (last, expected) in [(&new, None), (&old, Some("node n has kubelet v1.34.1"))] {
            let pages = [json!([new]), json!([last])];
            let client = fake_api::client(move |call| {
                let is_last = call.query.contains("continue=next");
                let token = if is_last { "" } else { "next" };
                let items = pages[usize::from(is_last)].clone();
                (200, json!({"metadata": {"continue": token}, "items": items}))
            });
            let found = obstacle(&client).await;
            match expected {
                None => assert_eq!(found, None),
                Some(words) => assert!(found.as_ref().is_some_and(|why| why.contains(words)), "{found:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_is_not_known_means_the_hook() {
        let client = fake_api::client(|_| refusal(403, "Forbidden"));
        assert!(obstacle(&client).await.is_some());
        let client = fake_api::client(|_| (200, json!({"metadata": {}, "items": []})));
        assert!(obstacle(&client).await.is_some());
        assert_eq!(Detected::default().handover(), Handover::Hook);
    }
}
