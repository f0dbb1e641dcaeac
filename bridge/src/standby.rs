//! One bridge at a time: of the pods of a trigger or a sink, the one that holds the Lease works, and another one stands by.
//!
//! Two pods exist during an update, while a node does not answer, and always with `spec.bridge.replicas: 2`. What a bridge
//! does is safe to repeat, but only one at a time keeps order and limits, and sends each result once.

use std::fmt::Debug;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt as _};
use remoteprocess_api::bridge::{BridgeCondition, BridgeReason};
use remoteprocess_api::{ProcessSink, ProcessTrigger, names};
use remoteprocess_election::{Candidate, Election, Standing, Timing};
use remoteprocess_runtime::Gate;
use remoteprocess_runtime::prometheus_client::metrics::gauge::Gauge;
use remoteprocess_runtime::prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::kubernetes::{Kubernetes, remedy, remedy_for_sink};
use crate::sink;
use crate::status::{self, Finding};

/// The times of the election. A bridge renews less often than the operator: there can be many. It has longer to end, because
/// it settles what it has in hand.
pub const TIMING: Timing = Timing {
    lease_duration: Duration::from_secs(15),
    renew_deadline: Duration::from_secs(10),
    renew_period: Duration::from_secs(3),
    retry_period: Duration::from_secs(2),
    handover: Duration::from_secs(10),
};

/// Which bridge.
#[derive(Clone, Debug)]
pub struct Place {
    /// Namespace of the trigger or sink.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of this pod.
    pub identity: String,
    /// [`TIMING`], except in tests.
    pub timing: Timing,
}

/// Metrics of the election. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    leading: Gauge,
}

impl Metrics {
    /// Adds the metrics to the program's registry.
    pub fn register(&self, registry: &mut Registry) {
        let bridge = registry.sub_registry_with_prefix("remoteprocess_bridge");
        let help = "1 if this pod holds the lease of its trigger or sink, 0 if it stands by";
        bridge.register("leading", help, self.leading.clone());
    }
}

/// An object that one bridge at a time works for.
pub trait Led:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// The word for it, in names of objects.
    const WORD: &'static str;

    /// Whether its bridge serves requests, so that only the one that works may be ready.
    fn serves(&self) -> bool;

    /// Its status with this finding as the condition Ready, as far as the bridge writes it.
    fn told(&self, finding: &Finding, now: Timestamp) -> Option<Value>;

    /// How an administrator gives its ServiceAccount its rights.
    fn remedy(&self) -> String;
}

impl Led for ProcessTrigger {
    const WORD: &'static str = "trigger";

    fn serves(&self) -> bool {
        self.spec.source.http.is_some()
    }

    fn told(&self, finding: &Finding, now: Timestamp) -> Option<Value> {
        let mut board = status::Board::new(self, status::Metrics::default());
        board.set(BridgeCondition::Ready, finding, now);
        board.unwritten()
    }

    fn remedy(&self) -> String {
        let namespace = self.namespace().unwrap_or_default();
        remedy(&self.name_any(), &namespace, &self.spec.service_account_name)
    }
}

impl Led for ProcessSink {
    const WORD: &'static str = "sink";

    fn serves(&self) -> bool {
        false
    }

    fn told(&self, finding: &Finding, now: Timestamp) -> Option<Value> {
        let mut board = sink::board::Board::new(self, sink::Metrics::default());
        board.set(BridgeCondition::Ready, finding, now);
        board.unwritten()
    }

    fn remedy(&self) -> String {
        let namespace = self.namespace().unwrap_or_default();
        remedy_for_sink(&self.name_any(), &namespace, &self.spec.service_account_name)
    }
}

/// Runs `lead` while this pod holds the lease of its trigger or sink, until `shutdown`. `lead` opens `ready` when it is. A
/// stand-by is ready, too, except if the bridge serves requests. `idle` is called when this pod does not work any more.
pub async fn run<K: Led, Work: Future<Output = ()>>(
    client: Client,
    place: Place,
    (ready, metrics): (Gate, Metrics),
    shutdown: CancellationToken,
    lead: impl FnMut(CancellationToken) -> Work,
    idle: impl Fn(),
) {
    let kubernetes = Kubernetes::new(client.clone(), &place.namespace);
    let finding = find::<K>(&kubernetes, &place.name);
    let Some(object) = shutdown.run_until_cancelled(finding).await else {
        return;
    };
    let candidate = Candidate {
        namespace: place.namespace.clone(),
        lease: names::bridge_object(&place.name, K::WORD),
        identity: place.identity.clone(),
        owner: Some(owner(&object)),
        timing: place.timing,
    };
    let election = Election::new(client, candidate);
    let watcher = Watcher {
        standing: election.standing(),
        patience: place.timing.lease_duration,
        kubernetes,
        object,
        ready,
        metrics,
    };
    tokio::select! {
        () = election.run(shutdown, lead) => {}
        () = watcher.watch(idle) => {}
    }
}

/// The object, as soon as it can be read.
async fn find<K: Led>(kubernetes: &Kubernetes, name: &str) -> K {
    let mut backoff = Backoff::default();
    loop {
        match kubernetes.object::<K>(name).await {
            Ok(object) => return object,
            Err(error) => tracing::warn!(%error, "cannot read the {}", K::WORD),
        }
        sleep(backoff.pause()).await;
    }
}

/// With the object, its Lease is deleted.
fn owner<K: Led>(object: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        controller: None,
        // Would require rights on finalizers where owner references are enforced.
        block_owner_deletion: None,
    }
}

/// Tells where this pod stands: readiness, the metric, and a missing right.
struct Watcher<K> {
    standing: watch::Receiver<Standing>,
    patience: Duration,
    kubernetes: Kubernetes,
    object: K,
    ready: Gate,
    metrics: Metrics,
}

impl<K: Led> Watcher<K> {
    /// Works until it is dropped.
    async fn watch(mut self, idle: impl Fn()) {
        // A holder that works tells of itself, and would not say again what this one has overwritten.
        let mut may_tell_after = self.patience;
        loop {
            let standing = self.standing.borrow_and_update().clone();
            let is_leading = standing == Standing::Leading;
            self.metrics.leading.set(is_leading.into());
            if !is_leading {
                idle();
            }
            let mut missing = None;
            match standing {
                Standing::Leading => may_tell_after = Duration::ZERO,
                Standing::StandBy { .. } => {
                    may_tell_after = self.patience;
                    self.show(!self.object.serves());
                }
                Standing::Failing { is_forbidden, message } => missing = is_forbidden.then_some(message),
                Standing::Unknown => {}
            }
            if !is_leading && self.object.serves() {
                self.show(false);
            }
            let mut standing = self.standing.clone();
            let telling = async {
                if let Some(said) = &missing {
                    sleep(may_tell_after).await;
                    self.tell(said).await;
                }
                std::future::pending().await
            };
            tokio::select! {
                changed = standing.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = telling => {}
            }
        }
    }

    fn show(&self, is_ready: bool) {
        match is_ready {
            true => self.ready.open(),
            false => self.ready.close(),
        }
    }

    /// Writes into the status which right is missing, and an Event. Tries again until it is written.
    async fn tell(&self, said: &str) {
        let finding = Finding {
            holds: false,
            reason: BridgeReason::Forbidden,
            message: format!("{said}; allow it: {}", self.object.remedy()),
        };
        let (name, mut backoff) = (self.object.name_any(), Backoff::default());
        loop {
            let written = match self.kubernetes.object::<K>(&name).await {
                Ok(object) => match object.told(&finding, Timestamp::now()) {
                    Some(status) => self.kubernetes.apply_status::<K>(&name, &status).await,
                    None => Ok(()),
                },
                Err(error) => Err(error),
            };
            match written {
                Ok(()) => break,
                Err(error) => tracing::warn!(%error, "cannot write the status of the {}", K::WORD),
            }
            sleep(backoff.pause()).await;
        }
        self.kubernetes
            .report(&self.object, BridgeCondition::Ready, &finding)
            .await;
    }
}
