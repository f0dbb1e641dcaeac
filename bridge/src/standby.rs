//! One bridge at a time: of the pods of a trigger or a sink, the one that holds the Lease works, and another one stands by.
//!
//! Two pods exist during an update, while a node does not answer, and always with `spec.bridge.replicas: 2`. What a bridge
//! does is safe to repeat, but only one at a time keeps order and limits, and sends each result once.

use std::fmt::Debug;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt as _};
use remoteprocess_api::bridge::{BridgeCondition, BridgeReason};
use remoteprocess_api::{ProcessSink, ProcessTrigger, names};
use remoteprocess_election::{Candidate, Election, Mark, Obstacle, Standing, Timing};
use remoteprocess_runtime::Gate;
use remoteprocess_runtime::prometheus_client::metrics::gauge::Gauge;
use remoteprocess_runtime::prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::engine;
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

/// The status gets another message about the same failure at most once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// Most tries to note that a bridge works, if others write the status at the same time.
const NOTE_TRIES: u32 = 10;

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

    /// Its status with this finding as the condition, as far as the bridge writes it.
    fn told(&self, condition: BridgeCondition, finding: &Finding, now: Timestamp) -> Option<Value>;

    /// Whether a bridge works, or has worked: only one that does writes the condition Connected.
    fn has_worked(&self) -> bool;

    /// What a bridge that begins says first about its connection.
    fn first() -> Finding;

    /// How an administrator gives its ServiceAccount its rights.
    fn remedy(&self) -> String;
}

impl Led for ProcessTrigger {
    const WORD: &'static str = "trigger";

    fn serves(&self) -> bool {
        self.spec.source.http.is_some()
    }

    fn told(&self, condition: BridgeCondition, finding: &Finding, now: Timestamp) -> Option<Value> {
        let mut board = status::Board::new(self, status::Metrics::default());
        board.set(condition, finding, now);
        board.unwritten()
    }

    fn has_worked(&self) -> bool {
        has_connected(self.status.as_ref().map(|status| &status.conditions[..]))
    }

    fn first() -> Finding {
        engine::first_finding()
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

    fn told(&self, condition: BridgeCondition, finding: &Finding, now: Timestamp) -> Option<Value> {
        let mut board = sink::board::Board::new(self, sink::Metrics::default());
        board.set(condition, finding, now);
        board.unwritten()
    }

    fn has_worked(&self) -> bool {
        has_connected(self.status.as_ref().map(|status| &status.conditions[..]))
    }

    fn first() -> Finding {
        sink::first_finding()
    }

    fn remedy(&self) -> String {
        let namespace = self.namespace().unwrap_or_default();
        remedy_for_sink(&self.name_any(), &namespace, &self.spec.service_account_name)
    }
}

fn has_connected(conditions: Option<&[Condition]>) -> bool {
    let mut conditions = conditions.unwrap_or_default().iter();
    conditions.any(|condition| condition.type_ == <&str>::from(BridgeCondition::Connected))
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
        // Each version has made it with this.
        mark: Mark::Owner(owner(&object)),
        timing: place.timing,
    };
    let begin = {
        let (kubernetes, name, uid) = (kubernetes.clone(), place.name.clone(), object.uid());
        move || is_first::<K>(kubernetes.clone(), name.clone(), uid.clone())
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
        () = election.run(shutdown, begin, lead) => {}
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

/// Notes in the status that a bridge works. Returns true if none has worked before: of several that try it at once, one
/// succeeds. If it cannot be noted, another one may have worked.
async fn is_first<K: Led>(kubernetes: Kubernetes, name: String, uid: Option<String>) -> bool {
    for _ in 0..NOTE_TRIES {
        let noted = match kubernetes.found::<K>(&name).await {
            // The work finds that it is gone.
            Ok(None) => return true,
            Ok(Some(object)) if object.uid() != uid => return true,
            Ok(Some(object)) if object.has_worked() => return false,
            Ok(Some(object)) => match object.told(BridgeCondition::Connected, &K::first(), Timestamp::now()) {
                Some(status) => kubernetes.apply_status_of(&object, &status).await,
                None => return false,
            },
            Err(error) => Err(error),
        };
        match noted {
            Ok(true) => return true,
            // Something else was written in the meantime.
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot note in the {} that its bridge works", K::WORD);
                return false;
            }
        }
    }
    false
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

/// Tells where this pod stands: readiness, the metric, and what keeps it from the Lease.
struct Watcher<K> {
    standing: watch::Receiver<Standing>,
    patience: Duration,
    kubernetes: Kubernetes,
    object: K,
    ready: Gate,
    metrics: Metrics,
}

/// What keeps this pod from the Lease, without the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    obstacle: Obstacle,
    is_free: bool,
}

impl Failure {
    fn of(standing: &Standing) -> Option<Self> {
        match *standing {
            Standing::Failing { obstacle, is_free, .. } => Some(Self { obstacle, is_free }),
            _ => None,
        }
    }

    /// Whether it is told in the status. Another pod that works would not say again what is overwritten. `follows`: this
    /// one has seen that another one works.
    fn is_for_status(self, follows: bool) -> bool {
        match self.obstacle {
            Obstacle::Forbidden | Obstacle::Foreign => true,
            Obstacle::Refused | Obstacle::Unanswered => self.is_free || !follows,
        }
    }

    fn reason(self) -> BridgeReason {
        match self.obstacle {
            Obstacle::Forbidden => BridgeReason::Forbidden,
            Obstacle::Foreign | Obstacle::Refused => BridgeReason::Refused,
            Obstacle::Unanswered => BridgeReason::Waiting,
        }
    }
}

impl<K: Led> Watcher<K> {
    /// Works until it is dropped.
    async fn watch(mut self, idle: impl Fn()) {
        // The account of a former holder has lost the same right.
        let (mut until_forbidden, mut follows) = (self.patience, false);
        let (mut since, mut told) = (None, None);
        loop {
            let standing = self.standing.borrow_and_update().clone();
            let (is_leading, failure) = (standing == Standing::Leading, Failure::of(&standing));
            self.metrics.leading.set(is_leading.into());
            if !is_leading {
                idle();
            }
            match standing {
                Standing::Leading => (until_forbidden, follows) = (Duration::ZERO, false),
                Standing::StandBy { .. } => {
                    (until_forbidden, follows) = (self.patience, true);
                    self.show(!self.object.serves());
                }
                Standing::Failing { .. } | Standing::Unknown => {}
            }
            if !is_leading && self.object.serves() {
                self.show(false);
            }
            since = failure.map(|_| since.unwrap_or_else(Instant::now));
            told = told.filter(|_| failure.is_some());
            let is_forbidden = failure.is_some_and(|failure| failure.obstacle == Obstacle::Forbidden);
            let patience = if is_forbidden { until_forbidden } else { self.patience };
            let lasting = failure.zip(since.map(|since| since + patience));
            // The words alone are no other failure: they can be new each time.
            let is_other = |now: &Standing| Failure::of(now) != failure || (failure.is_none() && *now != standing);
            let mut changes = self.standing.clone();
            let changed = async { changes.wait_for(is_other).await.is_ok() };
            tokio::select! {
                is_open = changed => if !is_open {
                    return std::future::pending().await;
                },
                () = self.tell_of(lasting, follows, &mut told) => {}
            }
        }
    }

    /// Writes a failure into the status if it lasts until this moment, and later messages about it. `told` is the last
    /// message that was written, and when. Never ends.
    async fn tell_of(&self, lasting: Option<(Failure, Instant)>, follows: bool, told: &mut Option<(String, Instant)>) {
        let Some((failure, until)) = lasting else {
            return std::future::pending().await;
        };
        sleep_until(until).await;
        self.show(false);
        if !failure.is_for_status(follows) {
            return std::future::pending().await;
        }
        loop {
            let again = told.as_ref().map(|(_, at)| *at + TELL_AGAIN);
            sleep_until(again.unwrap_or(until)).await;
            let said = match &*self.standing.borrow() {
                Standing::Failing { message, .. } => Some(message.clone()),
                _ => None,
            };
            let Some(said) = said else {
                // It is over, and this is about to end.
                return std::future::pending().await;
            };
            if told.as_ref().is_none_or(|(told, _)| *told != said) {
                self.tell(failure, &said).await;
            }
            *told = Some((said, Instant::now()));
        }
    }

    fn show(&self, is_ready: bool) {
        match is_ready {
            true => self.ready.open(),
            false => self.ready.close(),
        }
    }

    /// Writes into the status what keeps this pod from the Lease, and an Event. Tries again until it is written.
    async fn tell(&self, failure: Failure, said: &str) {
        let message = match failure.obstacle {
            Obstacle::Forbidden => format!("{said}; allow it: {}", self.object.remedy()),
            _ => said.to_owned(),
        };
        let finding = Finding {
            holds: false,
            reason: failure.reason(),
            message,
        };
        let (name, mut backoff) = (self.object.name_any(), Backoff::default());
        loop {
            let written = match self.kubernetes.object::<K>(&name).await {
                Ok(object) => match object.told(BridgeCondition::Ready, &finding, Timestamp::now()) {
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
