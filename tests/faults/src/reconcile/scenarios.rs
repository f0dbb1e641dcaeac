//! Lives of processes, each with the actions of its user.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use remoteprocess_api::Phase;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::world::World;

/// What waits for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Nothing,
    /// The agent does not ask for the start.
    Start,
    /// The program does not end by itself.
    End,
}

type User = for<'a> fn(&'a World) -> BoxFuture<'a, Result<()>>;

/// A life of a process.
pub(super) struct Scenario {
    pub name: &'static str,
    /// Its spec in addition to image and command.
    pub spec: fn() -> Value,
    /// The codes with which the attempts end by themselves; 0 beyond them.
    pub codes: &'static [i32],
    pub held: Held,
    /// The kubelet's reason for a container that it cannot start; empty if it can.
    pub kubelet_says: &'static str,
    /// Whether a container that is not ours outlives the program.
    pub is_outlived: bool,
    /// Agents of attempts up to this one never ask for the start.
    pub silent: u32,
    pub user: User,
}

const PLAIN: Scenario = Scenario {
    name: "success",
    spec: || json!({}),
    codes: &[],
    held: Held::Nothing,
    kubelet_says: "",
    is_outlived: false,
    silent: 0,
    user: |world| Box::pin(world.create()),
};

/// All scenarios; the slow ones come first. In the last two the object is gone at the end.
pub(super) const SCENARIOS: [Scenario; 16] = [
    Scenario {
        name: "node lost, and another attempt",
        spec: || json!({"retries": {"limit": 1, "backoff": {"initialSeconds": 0}}}),
        held: Held::End,
        user: |world| Box::pin(lose_the_node(world)),
        ..PLAIN
    },
    Scenario {
        name: "image missing until the start deadline",
        spec: || json!({"deadlines": {"startSeconds": 5}}),
        kubelet_says: "ErrImagePull",
        ..PLAIN
    },
    Scenario {
        name: "outlived by a container that is not ours",
        spec: || json!({"retries": {"limit": 1, "backoff": {"initialSeconds": 0}}}),
        codes: &[7, 0],
        is_outlived: true,
        ..PLAIN
    },
    PLAIN,
    Scenario {
        name: "no image can have that name",
        kubelet_says: "InvalidImageName",
        ..PLAIN
    },
    Scenario {
        name: "failure, and another attempt",
        spec: || json!({"retries": {"limit": 1, "backoff": {"initialSeconds": 0}}}),
        codes: &[7, 0],
        ..PLAIN
    },
    Scenario {
        name: "failure of all attempts",
        spec: || json!({"retries": {"limit": 1, "backoff": {"initialSeconds": 0}}}),
        codes: &[7, 8],
        ..PLAIN
    },
    Scenario {
        name: "stopped while it runs",
        held: Held::End,
        user: |world| Box::pin(stop_when(world, "Running")),
        ..PLAIN
    },
    Scenario {
        name: "stopped before its start",
        kubelet_says: "ErrImagePull",
        user: |world| Box::pin(stop_when(world, "ImagePull")),
        ..PLAIN
    },
    Scenario {
        name: "paused and resumed while it runs",
        held: Held::End,
        user: |world| Box::pin(pause_a_program(world)),
        ..PLAIN
    },
    Scenario {
        name: "paused before its start: the grant is refused",
        held: Held::Start,
        user: |world| Box::pin(pause_a_start(world)),
        ..PLAIN
    },
    Scenario {
        name: "pod taken away before its start",
        silent: 1,
        user: |world| Box::pin(take_the_pod(world)),
        ..PLAIN
    },
    Scenario {
        name: "refused by a quota for a while",
        user: |world| Box::pin(refuse_for_a_while(world)),
        ..PLAIN
    },
    Scenario {
        name: "deleted while it runs, and its name used again",
        held: Held::End,
        user: |world| Box::pin(replace(world)),
        ..PLAIN
    },
    Scenario {
        name: "deleted while it runs",
        held: Held::End,
        user: |world| {
            Box::pin(async move {
                world.create().await?;
                world.until_phase(Phase::Running).await;
                world.delete().await
            })
        },
        ..PLAIN
    },
    Scenario {
        name: "end of its time",
        spec: || json!({"ttl": {"secondsAfterSuccess": 0}}),
        user: |world| {
            Box::pin(async move {
                world.create().await?;
                world.until(|seen| seen.process.is_none().then_some(())).await;
                Ok(())
            })
        },
        ..PLAIN
    },
];

async fn lose_the_node(world: &World) -> Result<()> {
    world.create().await?;
    world.until_phase(Phase::Running).await;
    let pod = a_pod(world).await;
    let by_force = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    world.pods().delete(&pod, &by_force).await?;
    world.until(|seen| seen.pods.is_empty().then_some(())).await;
    world.release();
    Ok(())
}

async fn stop_when(world: &World, reason: &str) -> Result<()> {
    world.create().await?;
    world.until_reason(reason).await;
    world.want("Stopped").await
}

async fn pause_a_program(world: &World) -> Result<()> {
    world.create().await?;
    world.until_phase(Phase::Running).await;
    world.want("Paused").await?;
    world.until_phase(Phase::Paused).await;
    world.want("Running").await?;
    world.until_phase(Phase::Running).await;
    world.release();
    Ok(())
}

async fn pause_a_start(world: &World) -> Result<()> {
    world.create().await?;
    a_pod(world).await;
    world.want("Paused").await?;
    world.until_phase(Phase::Paused).await;
    world.release();
    world.until(|seen| (seen.refusals > 0).then_some(())).await;
    world.want("Running").await
}

async fn take_the_pod(world: &World) -> Result<()> {
    world.create().await?;
    let pod = a_pod(world).await;
    world.pods().delete(&pod, &DeleteParams::default()).await?;
    Ok(())
}

async fn refuse_for_a_while(world: &World) -> Result<()> {
    let quotas: Api<ResourceQuota> = Api::namespaced(world.server.clone(), &world.namespace);
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}});
    quotas
        .create(&PostParams::default(), &serde_json::from_value(quota)?)
        .await?;
    allow(&quotas, "0").await?;
    // Until the API server applies it.
    let any = json!({"metadata": {"name": "any"}, "spec": {"containers": [{"name": "any", "image": "x"}]}});
    let any: Pod = serde_json::from_value(any)?;
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    while world.pods().create(&dry_run, &any).await.is_ok() {
        sleep(Duration::from_millis(20)).await;
    }
    world.create().await?;
    world.until_reason("Quota").await;
    allow(&quotas, "9").await
}

async fn allow(quotas: &Api<ResourceQuota>, pods: &str) -> Result<()> {
    let (params, hard) = (PatchParams::default(), json!({"hard": {"pods": pods}}));
    quotas
        .patch("none", &params, &Patch::Merge(json!({"spec": hard})))
        .await?;
    let status = json!({"status": {"hard": {"pods": pods}, "used": {"pods": "0"}}});
    quotas.patch_status("none", &params, &Patch::Merge(status)).await?;
    Ok(())
}

async fn replace(world: &World) -> Result<()> {
    world.create().await?;
    world.until_phase(Phase::Running).await;
    world.delete().await?;
    world.create().await?;
    world.release();
    Ok(())
}

/// Name of a pod that has a node.
async fn a_pod(world: &World) -> String {
    let has_node = |pod: &&Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    world
        .until(|seen| seen.pods.values().find(has_node).map(ResourceExt::name_any))
        .await
}
