//! The bridges of triggers: a Deployment for each ProcessTrigger, and a Service for a webhook.
//!
//! As for processes, the steps in the middle are pure: [`build`] what a trigger needs, [`difference`] to what is there, and
//! the [`state`] of it, which becomes the condition `Deployed`. Everything else in a trigger's status is the bridge's.
//! The operator reads no Secret: the Deployment names them, and it runs under a ServiceAccount of the trigger's namespace.

mod apply;
mod build;
mod difference;
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
use kube::{Api, Client, Resource, ResourceExt};
use remoteprocess_api::trigger::TriggerCondition;
use remoteprocess_api::{ProcessTrigger, names};
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
pub use build::BridgeSettings;
use state::Deployed;

/// First and longest wait until a bridge that does not run is looked at again, if no event comes before.
const AGAIN: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(30));
/// How often to look for the definition of ProcessTrigger if it is not installed.
const NOT_INSTALLED: Duration = Duration::from_secs(60);
/// Number of pods of a bridge that are looked at. There is one, and another while it is replaced.
const PODS: u32 = 8;

/// What each reconcile needs.
struct Context {
    client: Client,
    settings: BridgeSettings,
    triggers: Store<ProcessTrigger>,
    deployments: Store<Deployment>,
    services: Store<Service>,
    reporter: Reporter,
    /// How often in a row a trigger had no running bridge, by trigger.
    waits: Mutex<HashMap<ObjectRef<ProcessTrigger>, u32>>,
}

/// Makes the bridges of all triggers in these namespaces (none: all) until `shutdown`; running reconciles finish first.
pub async fn run(client: Client, settings: BridgeSettings, namespaces: &[String], shutdown: CancellationToken) {
    let loops = Scope::of(namespaces).into_iter().map(|scope| {
        let (client, settings, shutdown) = (client.clone(), settings.clone(), shutdown.clone());
        async move {
            if shutdown.run_until_cancelled(installed(&client, &scope)).await.is_some() {
                run_in(client, settings, &scope, shutdown).await;
            }
        }
    });
    join_all(loops).await;
}

/// Waits until the API server knows ProcessTriggers. Says once that it does not.
async fn installed(client: &Client, scope: &Scope) {
    let api: Api<ProcessTrigger> = scope.api(client);
    let (mut is_said, mut backoff) = (false, Backoff::WATCH);
    loop {
        // Only the kind matters, not the objects.
        match api.list_metadata(&ListParams::default().limit(1)).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 404 => {
                if !std::mem::replace(&mut is_said, true) {
                    info!("the CustomResourceDefinition of ProcessTrigger is not installed: there are no triggers");
                }
                sleep(NOT_INSTALLED).await;
            }
            Err(error) => {
                warn!(%error, "cannot list the triggers, will try again");
                sleep(backoff.pause()).await;
            }
        }
    }
}

async fn run_in(client: Client, settings: BridgeSettings, scope: &Scope, shutdown: CancellationToken) {
    let watches = watch::start(&client, scope);
    let context = Arc::new(Context {
        reporter: Reporter::new(client.clone()),
        client,
        settings,
        triggers: watches.triggers.clone(),
        deployments: watches.deployments,
        services: watches.services,
        waits: Mutex::default(),
    });
    let changes = watches.changes.take_until(shutdown.cancelled_owned());
    reconcile_all(watches.triggers, changes, move |reference, trigger| {
        pass(reference, trigger, context.clone())
    })
    .await;
}

/// Reconciles one trigger. Returns when to do it again if nothing changes.
async fn pass(
    reference: ObjectRef<ProcessTrigger>,
    trigger: Arc<ProcessTrigger>,
    context: Arc<Context>,
) -> (ObjectRef<ProcessTrigger>, Option<Duration>) {
    let requeue_after = match measured(reconcile(&trigger, &context)).await {
        Ok(runs) => {
            metrics().count_reconcile(metrics::OK);
            context.requeue(&reference, runs)
        }
        Err(error) => {
            metrics().count_reconcile(error.category());
            let (namespace, name) = (trigger.namespace(), trigger.name_any());
            warn!(namespace, name, category = error.category(), %error, "will try again");
            context.requeue(&reference, false)
        }
    };
    (reference, requeue_after)
}

/// Makes what the trigger needs, and reports it. Returns whether the bridge runs. If everything is as it should be, it
/// makes no call that changes something.
#[instrument(skip_all, fields(namespace = trigger.namespace(), name = trigger.name_any()))]
async fn reconcile(trigger: &ProcessTrigger, context: &Context) -> Result<bool, Error> {
    if trigger.metadata.deletion_timestamp.is_some() {
        // The garbage collector deletes what the trigger owns.
        return Ok(true);
    }
    let deployed = deploy(trigger, context).await?;
    let runs = deployed.is_so();
    report(trigger, deployed, context).await?;
    Ok(runs)
}

async fn deploy(trigger: &ProcessTrigger, context: &Context) -> Result<Deployed, Error> {
    let client = &context.client;
    let wanted = build::build_deployment(trigger, &context.settings);
    let found = context.deployments.get(&ObjectRef::from_obj(&wanted));
    let deployment = match apply(client, trigger, &wanted, found.as_deref()).await? {
        Applied::There(deployment) => deployment,
        Applied::Refused(message) => return Ok(Deployed::refused(message)),
        Applied::Leaving => return Ok(Deployed::leaving()),
    };
    let wanted = build::build_service(trigger);
    let reference = ObjectRef::new(&build::object_name(trigger)).within(&trigger.namespace().unwrap_or_default());
    let found = context.services.get(&reference);
    match (&wanted, found) {
        (Some(wanted), found) => match apply(client, trigger, wanted, found.as_deref()).await? {
            Applied::There(_) => {}
            Applied::Refused(message) => return Ok(Deployed::refused(message)),
            Applied::Leaving => return Ok(Deployed::leaving()),
        },
        // The source was a webhook before.
        (None, Some(service)) => apply::delete(client, trigger, &*service).await?,
        (None, None) => {}
    }
    let deployed = state::deployed(&deployment, &[], &trigger.spec.source);
    if deployed.is_so() {
        return Ok(deployed);
    }
    let pods = pods(client, &deployment).await?;
    Ok(state::deployed(&deployment, &pods, &trigger.spec.source))
}

/// The pods of a bridge that does not run: they say why.
async fn pods(client: &Client, deployment: &Deployment) -> Result<Vec<Pod>, Error> {
    let Some(uid) = deployment.labels().get(names::LABEL_TRIGGER_UID) else {
        return Ok(Vec::new());
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), &deployment.namespace().unwrap_or_default());
    let params = ListParams::default()
        .labels(&format!("{}={uid}", names::LABEL_TRIGGER_UID))
        .limit(PODS);
    Ok(api.list(&params).await.map_err(Error::Observe)?.items)
}

/// Writes the condition `Deployed`, and an Event, if it is not there yet.
async fn report(trigger: &ProcessTrigger, deployed: Deployed, context: &Context) -> Result<(), Error> {
    let kind = TriggerCondition::Deployed.to_string();
    let conditions = trigger.status.iter().flat_map(|status| &status.conditions);
    let former = conditions.into_iter().find(|condition| condition.type_ == kind);
    let Some(condition) = deployed.condition(former, trigger.metadata.generation, Timestamp::now()) else {
        return Ok(());
    };
    let namespace = trigger.namespace().unwrap_or_default();
    let api: Api<ProcessTrigger> = Api::namespaced(context.client.clone(), &namespace);
    let params = PatchParams::apply(names::CONTROLLER_MANAGER).force();
    let patch = Patch::Apply(status_patch(trigger, &condition));
    match api.patch_status(&trigger.name_any(), &params, &patch).await {
        Ok(_) => {
            let is_news = former.is_none_or(|former| {
                (&former.status, &former.reason, &former.message)
                    != (&condition.status, &condition.reason, &condition.message)
            });
            if is_news {
                info!(reason = condition.reason, said = condition.message, "the bridge");
                context.reporter.report_bridge(trigger, &condition).await;
            }
            Ok(())
        }
        // It is gone, or another one has its name now: the watch will say so.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(Error::Status(error)),
    }
}

/// What the operator owns of a trigger's status, for the trigger with this uid.
fn status_patch(trigger: &ProcessTrigger, condition: &Condition) -> serde_json::Value {
    json!({
        "apiVersion": ProcessTrigger::api_version(&()),
        "kind": ProcessTrigger::kind(&()),
        "metadata": {"name": trigger.name_any(), "uid": trigger.uid()},
        "status": {"conditions": [condition]},
    })
}

impl Context {
    /// When to look again at a trigger: sooner at one whose bridge began to fail.
    fn requeue(&self, reference: &ObjectRef<ProcessTrigger>, runs: bool) -> Option<Duration> {
        let mut waits = self.waits();
        if runs {
            waits.remove(reference);
            return None;
        }
        waits.retain(|known, _| self.triggers.get(known).is_some());
        let count = waits.entry(reference.clone()).or_default();
        *count = count.saturating_add(1);
        Some(AGAIN.after(*count))
    }

    fn waits(&self) -> MutexGuard<'_, HashMap<ObjectRef<ProcessTrigger>, u32>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
