//! The bridges of triggers and sinks: a Deployment for each ProcessTrigger and ProcessSink, and a Service for a webhook.
//!
//! As for processes, the steps in the middle are pure: [`build`] what an object needs, [`difference`] to what is there, and
//! the [`state`] of it, which becomes the condition `Deployed`. Everything else in the object's status is the bridge's. What
//! differs between the kinds is in [`kind`].
//! The operator reads no Secret: the Deployment names them, and it runs under a ServiceAccount of the object's namespace.

mod apply;
mod build;
mod difference;
mod kind;
mod state;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use remoteprocess_api::bridge::BridgeCondition;
use remoteprocess_api::{ProcessSink, ProcessTrigger, names};
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, instrument, warn};

use super::error::Error;
use super::metrics::{self, metrics};
use super::{measured, reconcile_all};
use crate::backoff::Backoff;
use crate::directory::Scope;
use crate::report::Reporter;

use apply::{Applied, apply};
pub use build::{BridgeSettings, RelaySettings};
use kind::Bridged;
use state::Deployed;

/// First and longest wait until a bridge that does not run is looked at again, if no event comes before.
const AGAIN: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(30));
/// How often to look for the definition of a kind that is not installed.
const NOT_INSTALLED: Duration = Duration::from_secs(60);
/// Number of pods of a bridge that are looked at. There is one, and another while it is replaced.
const PODS: u32 = 8;

/// What each reconcile needs.
struct Context<K: Bridged> {
    client: Client,
    settings: BridgeSettings,
    objects: Store<K>,
    deployments: Store<Deployment>,
    services: Store<Service>,
    reporter: Reporter,
    /// How often in a row an object had no running bridge.
    waits: Mutex<HashMap<ObjectRef<K>, u32>>,
}

/// Makes the bridges of all triggers and sinks in these namespaces (none: all) until `shutdown`; running reconciles finish
/// first.
pub async fn run(client: Client, settings: BridgeSettings, namespaces: &[String], shutdown: CancellationToken) {
    tokio::join!(
        run_kind::<ProcessTrigger>(&client, &settings, namespaces, &shutdown),
        run_kind::<ProcessSink>(&client, &settings, namespaces, &shutdown),
    );
}

async fn run_kind<K: Bridged>(
    client: &Client,
    settings: &BridgeSettings,
    namespaces: &[String],
    shutdown: &CancellationToken,
) {
    let loops = Scope::of(namespaces).into_iter().map(|scope| {
        let (client, settings, shutdown) = (client.clone(), settings.clone(), shutdown.clone());
        async move {
            let is_installed = shutdown.run_until_cancelled(installed::<K>(&client, &scope)).await;
            if is_installed.is_some() {
                run_in::<K>(client, settings, &scope, shutdown).await;
            }
        }
    });
    join_all(loops).await;
}

/// Waits until the API server knows the kind. Says once that it does not.
async fn installed<K: Bridged>(client: &Client, scope: &Scope) {
    let api: Api<K> = scope.api(client);
    let kind = K::kind(&());
    let (mut is_said, mut backoff) = (false, Backoff::WATCH);
    loop {
        // Only the kind matters, not the objects.
        match api.list_metadata(&ListParams::default().limit(1)).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 404 => {
                if !std::mem::replace(&mut is_said, true) {
                    info!(%kind, "the CustomResourceDefinition is not installed: there are no such bridges");
                }
                sleep(NOT_INSTALLED).await;
            }
            Err(error) => {
                warn!(%kind, %error, "cannot list the objects, will try again");
                sleep(backoff.pause()).await;
            }
        }
    }
}

async fn run_in<K: Bridged>(client: Client, settings: BridgeSettings, scope: &Scope, shutdown: CancellationToken) {
    let watches = watch::start::<K>(&client, scope);
    let context = Arc::new(Context {
        reporter: Reporter::new(client.clone()),
        client,
        settings,
        objects: watches.objects.clone(),
        deployments: watches.deployments,
        services: watches.services,
        waits: Mutex::default(),
    });
    let changes = watches.changes.take_until(shutdown.cancelled_owned());
    reconcile_all(watches.objects, changes, move |reference, object| {
        pass(reference, object, context.clone())
    })
    .await;
}

/// Reconciles one object. Returns when to do it again if nothing changes.
async fn pass<K: Bridged>(
    reference: ObjectRef<K>,
    object: Arc<K>,
    context: Arc<Context<K>>,
) -> (ObjectRef<K>, Option<Duration>) {
    let requeue_after = match measured(reconcile(&*object, &context)).await {
        Ok(runs) => {
            metrics().count_reconcile(metrics::OK);
            context.requeue(&reference, runs)
        }
        Err(error) => {
            metrics().count_reconcile(error.category());
            let (namespace, name) = (object.namespace(), object.name_any());
            warn!(kind = K::WORD, namespace, name, category = error.category(), %error, "will try again");
            context.requeue(&reference, false)
        }
    };
    (reference, requeue_after)
}

/// Makes what the object needs, and reports it. Returns whether the bridge runs. If everything is as it should be, it
/// makes no call that changes something.
#[instrument(skip_all, fields(kind = K::WORD, namespace = object.namespace(), name = object.name_any()))]
async fn reconcile<K: Bridged>(object: &K, context: &Context<K>) -> Result<bool, Error> {
    if object.meta().deletion_timestamp.is_some() {
        // The garbage collector deletes what the object owns.
        return Ok(true);
    }
    let deployed = deploy(object, context).await?;
    let runs = deployed.is_so();
    report(object, deployed, context).await?;
    Ok(runs)
}

async fn deploy<K: Bridged>(object: &K, context: &Context<K>) -> Result<Deployed, Error> {
    let client = &context.client;
    let wanted = build::build_deployment(object, &context.settings);
    let found = context.deployments.get(&ObjectRef::from_obj(&wanted));
    let deployment = match apply(client, object, &wanted, found.as_deref()).await? {
        Applied::There(deployment) => deployment,
        Applied::Refused(message) => return Ok(Deployed::refused(message)),
        Applied::Leaving => return Ok(Deployed::leaving()),
    };
    let wanted = build::build_service(object);
    let reference = ObjectRef::new(&build::object_name(object)).within(&object.namespace().unwrap_or_default());
    let found = context.services.get(&reference);
    match (&wanted, found) {
        (Some(wanted), found) => match apply(client, object, wanted, found.as_deref()).await? {
            Applied::There(_) => {}
            Applied::Refused(message) => return Ok(Deployed::refused(message)),
            Applied::Leaving => return Ok(Deployed::leaving()),
        },
        // The source was a webhook before.
        (None, Some(service)) => apply::delete(client, object, &*service).await?,
        (None, None) => {}
    }
    let deployed = state::deployed(&deployment, &[], object);
    if deployed.is_so() {
        return Ok(deployed);
    }
    let pods = pods::<K>(client, &deployment).await?;
    Ok(state::deployed(&deployment, &pods, object))
}

/// The pods of a bridge that does not run: they say why.
async fn pods<K: Bridged>(client: &Client, deployment: &Deployment) -> Result<Vec<Pod>, Error> {
    let Some(uid) = deployment.labels().get(K::LABEL_UID) else {
        return Ok(Vec::new());
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), &deployment.namespace().unwrap_or_default());
    let params = ListParams::default()
        .labels(&format!("{}={uid}", K::LABEL_UID))
        .limit(PODS);
    Ok(api.list(&params).await.map_err(Error::Observe)?.items)
}

/// Writes the condition `Deployed`, and an Event, if it is not there yet.
async fn report<K: Bridged>(object: &K, deployed: Deployed, context: &Context<K>) -> Result<(), Error> {
    let kind = BridgeCondition::Deployed.to_string();
    let former = object.conditions().iter().find(|condition| condition.type_ == kind);
    let Some(condition) = deployed.condition(former, object.meta().generation, Timestamp::now()) else {
        return Ok(());
    };
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
    let params = PatchParams::apply(names::CONTROLLER_MANAGER).force();
    let patch = Patch::Apply(status_patch(object, &condition));
    match api.patch_status(&object.name_any(), &params, &patch).await {
        Ok(_) => {
            let is_news = former.is_none_or(|former| {
                (&former.status, &former.reason, &former.message)
                    != (&condition.status, &condition.reason, &condition.message)
            });
            if is_news {
                info!(reason = condition.reason, said = condition.message, "the bridge");
                context.reporter.report_bridge(object, &condition).await;
            }
            Ok(())
        }
        // It is gone, or another one has its name now: the watch will say so.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(Error::Status(error)),
    }
}

/// What the operator owns of an object's status, for the object with this uid.
fn status_patch<K: Bridged>(object: &K, condition: &Condition) -> serde_json::Value {
    json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name_any(), "uid": object.uid()},
        "status": {"conditions": [condition]},
    })
}

impl<K: Bridged> Context<K> {
    /// When to look again at an object: sooner at one whose bridge began to fail.
    fn requeue(&self, reference: &ObjectRef<K>, runs: bool) -> Option<Duration> {
        let mut waits = self.waits();
        if runs {
            waits.remove(reference);
            return None;
        }
        waits.retain(|known, _| self.objects.get(known).is_some());
        let count = waits.entry(reference.clone()).or_default();
        *count = count.saturating_add(1);
        Some(AGAIN.after(*count))
    }

    fn waits(&self) -> MutexGuard<'_, HashMap<ObjectRef<K>, u32>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
