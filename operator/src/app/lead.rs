//! The work of the replica that holds the lease.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use remoteprocess_api::names;
use remoteprocess_election::{Candidate, Election, Mark, Timing};
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::args::Config;
use crate::authority::AuthorityHandle;
use crate::controller::{self, bridge::BridgeSettings};
use crate::directory::Directory;

/// Annotation of the ConfigMap `remoteprocess-connect`: a replica leads, or has led. It stays when the Lease is deleted.
const ANNOTATION_LED: &str = "remoteprocess.dev/led";
/// Most tries to write it, if others write at the same time.
const TRIES: u32 = 5;
/// How long that may take.
const IN_TIME: Duration = Duration::from_secs(5);

/// Reconciles, and keeps the archive within its limits, while this replica holds the lease.
pub(super) fn lead<Retain: Future<Output = ()>>(
    config: &Config,
    client: &Client,
    authority: &Arc<AuthorityHandle>,
    directory: &Directory,
    retain: impl Fn() -> Retain,
    shutdown: &CancellationToken,
) -> impl Future<Output = ()> {
    let candidate = Candidate {
        namespace: config.namespace.clone(),
        lease: names::LEASE.to_owned(),
        identity: config.replica.clone(),
        mark: mark(),
        timing: Timing::default(),
    };
    let bundle = authority.clone();
    let settings = controller::Config {
        agent: config.agent.clone(),
        ca_bundle: Arc::new(move || bundle.bundle_pem()),
        namespaces: config.watch_namespaces.clone(),
        traces: config.tracing.is_some(),
    };
    let (client, directory, bridge) = (client.clone(), directory.clone(), config.bridge.clone());
    let begin = {
        let (client, namespace) = (client.clone(), config.namespace.clone());
        move || is_first(client.clone(), namespace.clone())
    };
    Election::new(client.clone(), candidate).run(shutdown.clone(), begin, move |term| {
        let processes = controller::run(client.clone(), settings.clone(), directory.clone(), term.clone());
        let making = bridges(client.clone(), bridge.clone(), settings.namespaces.clone(), term);
        let retain = retain();
        async move {
            tokio::select! {
                ((), ()) = async { tokio::join!(processes, making) } => {}
                () = retain => {}
            }
        }
    })
}

/// Makes the bridges of triggers and sinks, if there are any.
async fn bridges(client: Client, settings: Option<BridgeSettings>, namespaces: Vec<String>, term: CancellationToken) {
    if let Some(settings) = settings {
        controller::bridge::run(client, settings, &namespaces, term).await;
    }
}

/// What tells our Lease from one of another program. Those of versions before this one have no labels.
fn mark() -> Mark {
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Mark::Labels(vec![
        label("app.kubernetes.io/name", names::APP_NAME),
        label("app.kubernetes.io/managed-by", names::MANAGED_BY),
    ])
}

/// Notes that a replica leads. Returns true if none has led before: of several that try it at once, one succeeds. If it
/// cannot be noted, another one may have led.
async fn is_first(client: Client, namespace: String) -> bool {
    let maps = Api::namespaced(client, &namespace);
    match timeout(IN_TIME, note(&maps)).await {
        Ok(Ok(is_first)) => is_first,
        Ok(Err(error)) => {
            warn!(%error, "cannot note that this replica leads");
            false
        }
        Err(_) => {
            warn!("cannot note that this replica leads: no answer from the API server");
            false
        }
    }
}

async fn note(maps: &Api<ConfigMap>) -> kube::Result<bool> {
    // The authority has published it before anything leads.
    let name = names::CONNECT_CONFIG_MAP;
    for _ in 0..TRIES {
        let found = maps.get(name).await?;
        if found.annotations().contains_key(ANNOTATION_LED) {
            return Ok(false);
        }
        let metadata = json!({"resourceVersion": found.resource_version(), "annotations": {ANNOTATION_LED: "true"}});
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        match maps.patch_metadata(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            patched => return patched.map(|_| true),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
