//! The life of one pod: its kubelet, and the agent in it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use remoteprocess_api::{DesiredState, Phase, RemoteProcess};
use remoteprocess_operator::relay::archive::Manifest;
use remoteprocess_operator::relay::attempt::{AttemptKey, Subject};
use remoteprocess_operator::relay::live::{Fact, Record};
use remoteprocess_operator::relay::status::{Claim, Error as GrantError};
use remoteprocess_proto::v1::{Exit, exit};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::scenarios::Held;
use super::world::{NAME, Seen, World, attempt_of, gone_is_fine};

/// Exit code of a program that was asked to end.
const ASKED: i32 = 5;
/// How long an agent that was refused waits before it asks again.
const AGAIN: Duration = Duration::from_millis(50);

/// What the agent of a running program learns next.
enum News {
    Ends(i32),
    Stopped(&'static str),
    Paused,
    Resumed,
    /// Its node is gone, and so is the agent.
    Lost,
}

/// Identifies the pod.
struct Place {
    pod: String,
    pod_uid: String,
    uid: String,
    attempt: u32,
}

impl Place {
    fn subject(&self, namespace: &str) -> Subject {
        Subject {
            namespace: namespace.to_owned(),
            name: NAME.to_owned(),
            pod_uid: self.pod_uid.clone(),
            key: AttemptKey {
                uid: self.uid.clone(),
                attempt: self.attempt,
            },
        }
    }

    /// Whether it is gone, or goes at this moment: the API server waits for no kubelet.
    fn is_gone(&self, seen: &Seen) -> bool {
        let pod = seen.pods.get(&self.pod_uid);
        pod.is_none_or(|pod| pod.metadata.deletion_grace_period_seconds == Some(0))
    }

    fn is_leaving(&self, seen: &Seen) -> bool {
        let pod = seen.pods.get(&self.pod_uid);
        pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    }
}

impl World {
    /// Plays the pod from its creation until nothing is left of it.
    pub(super) async fn live_pod(self: Arc<Self>, pod: Pod) -> Result<()> {
        let (uid, attempt) = attempt_of(&pod)?;
        let place = Place {
            pod: pod.name_any(),
            pod_uid: pod.uid().unwrap_or_default(),
            uid,
            attempt,
        };
        self.bind(&place).await?;
        let is_silent = place.attempt <= self.scenario.silent;
        if !self.scenario.kubelet_says.is_empty() {
            let waiting = json!({"waiting": {"reason": self.scenario.kubelet_says, "message": "not found"}});
            self.report(&place, "Pending", waiting).await?;
        } else {
            self.report(
                &place,
                "Running",
                json!({"running": {"startedAt": Timestamp::now().to_string()}}),
            )
            .await?;
            if !is_silent {
                self.run_program(&place).await?;
            }
        }
        self.until(|seen| place.is_leaving(seen).then_some(())).await;
        if is_silent {
            // It is removed only after it was seen that it is being deleted.
            self.until(|seen| (place.is_gone(seen) || seen.reason().as_deref() == Some("Interrupted")).then_some(()))
                .await;
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        let params = params.preconditions(Preconditions {
            uid: Some(place.pod_uid.clone()),
            resource_version: None,
        });
        gone_is_fine(self.pods().delete(&place.pod, &params).await)
    }

    /// The scheduler finds a node.
    async fn bind(&self, place: &Place) -> Result<()> {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": place.pod},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "node-1"},
        });
        let (api, params) = (self.pods(), PostParams::default());
        gone_is_fine(
            api.create_subresource::<Value, Value>("binding", &place.pod, &params, &binding)
                .await,
        )
    }

    /// The kubelet reports.
    async fn report(&self, place: &Place, phase: &str, main: Value) -> Result<()> {
        let outlives = self.scenario.is_outlived && main.get("terminated").is_some();
        let phase = if outlives { "Running" } else { phase };
        let agent = match phase {
            "Running" | "Pending" => json!({"running": {"startedAt": Timestamp::now().to_string()}}),
            _ => json!({"terminated": {"exitCode": 0}}),
        };
        let container = |name: &str, state: Value| json!({"name": name, "image": "x", "imageID": "", "ready": true, "restartCount": 0, "state": state});
        let foreign = outlives.then(|| container("proxy", json!({"running": {}})));
        let containers: Vec<_> = [container("main", main)].into_iter().chain(foreign).collect();
        let status = json!({"status": {
            "phase": phase, "containerStatuses": containers,
            "initContainerStatuses": [container("rproc-agent", agent)],
        }});
        let (api, params) = (self.pods(), PatchParams::default());
        gone_is_fine(api.patch_status(&place.pod, &params, &Patch::Merge(status)).await)
    }

    /// Plays the agent: asks for the start, launches, reports, delivers the output.
    async fn run_program(&self, place: &Place) -> Result<()> {
        if self.scenario.held == Held::Start {
            self.until(|seen| seen.is_released.then_some(())).await;
        }
        if !self.is_granted(place).await? {
            return Ok(());
        }
        self.launch(&place.uid, place.attempt)?;
        let started = Timestamp::now();
        self.tell(
            place,
            Fact::Started {
                at_unix_nanos: nanos(started)?,
                run_deadline: None,
            },
        )
        .await;
        let mut is_paused = false;
        let (code, by) = loop {
            match self.until(|seen| self.news(seen, place, is_paused)).await {
                News::Ends(code) => break (code, None),
                News::Stopped(by) => break (ASKED, Some(by)),
                News::Paused => self.tell(place, Fact::Paused(Some(Timestamp::now()))).await,
                News::Resumed => self.tell(place, Fact::Paused(None)).await,
                News::Lost => {
                    // The relay closes the output when the end is known.
                    self.until(|seen| seen.attempt(&place.uid, place.attempt)?.exit.as_ref().map(drop))
                        .await;
                    self.close(place, Exit::default()).await;
                    return Ok(());
                }
            }
            is_paused = !is_paused;
        };
        let stop = by.map(|by| exit::Stop {
            requested_by: by.to_owned(),
            ..exit::Stop::default()
        });
        let exit = Exit {
            outcome: exit::Outcome::Code.into(),
            value: code,
            source: exit::Source::Entrypoint.into(),
            sealed: true,
            stop,
            started_unix_nanos: nanos(started)?,
            finished_unix_nanos: nanos(Timestamp::now())?,
            ..Exit::default()
        };
        self.close(place, exit).await;
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        self.report(place, phase, json!({"terminated": {"exitCode": code}}))
            .await
    }

    fn news(&self, seen: &Seen, place: &Place, is_paused: bool) -> Option<News> {
        if place.is_gone(seen) {
            return Some(News::Lost);
        }
        let process = seen
            .process
            .as_ref()
            .filter(|process| process.uid().as_deref() == Some(&*place.uid));
        let Some(process) = process else {
            return Some(News::Stopped("deletion"));
        };
        if place.is_leaving(seen) {
            return Some(News::Stopped("kubelet"));
        }
        match (process.spec.desired_state, is_paused) {
            (DesiredState::Stopped, _) => Some(News::Stopped("spec.desiredState")),
            (DesiredState::Paused, false) => Some(News::Paused),
            (DesiredState::Running, true) => Some(News::Resumed),
            (DesiredState::Running, false) => {
                // It ends when all have seen that it runs.
                let is_held = self.scenario.held == Held::End && !seen.is_released;
                let runs = seen.phase() == Some(Phase::Running) && !is_held;
                let code = self.scenario.codes.get(place.attempt as usize - 1).copied();
                runs.then(|| News::Ends(code.unwrap_or_default()))
            }
            (DesiredState::Paused, true) => None,
        }
    }

    /// Asks until there is a final answer. An impostor in another pod asks too, and gets nothing.
    async fn is_granted(&self, place: &Place) -> Result<bool> {
        let claim = Claim {
            uid: place.uid.clone(),
            attempt: place.attempt,
            pod_uid: place.pod_uid.clone(),
            launched: false,
        };
        let impostor = Claim {
            pod_uid: "00000000-0000-0000-0000-000000000000".to_owned(),
            ..claim.clone()
        };
        loop {
            let known = self.until(|seen| seen.process.clone()).await;
            ensure!(
                self.ask_for_start(&known, &impostor).await.is_err(),
                "an agent of another pod was granted the start"
            );
            match self.ask_for_start(&known, &claim).await {
                Ok(()) => return Ok(true),
                Err(GrantError::Gone) => return Ok(false),
                Err(GrantError::Refused(sentence)) if sentence == "the process is paused" => self.refused(),
                Err(GrantError::Refused(_)) => return Ok(false),
                Err(GrantError::Api(_) | GrantError::Denied(_)) => {}
            }
            if place.is_leaving(&self.now()) {
                return Ok(false);
            }
            sleep(AGAIN).await;
        }
    }

    async fn ask_for_start(&self, known: &RemoteProcess, claim: &Claim) -> Result<(), GrantError> {
        self.ask(|recorder| {
            let (known, claim) = (known.clone(), claim.clone());
            Box::pin(async move { recorder.grant(&known, &claim).await.map(drop) })
        })
        .await
    }

    async fn tell(&self, place: &Place, fact: Fact) {
        let subject = place.subject(&self.namespace);
        self.ask(|recorder| {
            let (subject, fact) = (subject.clone(), fact.clone());
            Box::pin(async move { recorder.learned(&subject, fact).await })
        })
        .await;
    }

    async fn close(&self, place: &Place, exit: Exit) {
        let subject = place.subject(&self.namespace);
        let manifest = Manifest {
            sealed: exit.sealed,
            exit: Some(exit),
            ..Manifest::default()
        };
        self.ask(|recorder| {
            let (subject, manifest) = (subject.clone(), manifest.clone());
            Box::pin(async move { recorder.ended(&subject, &manifest, b"").await })
        })
        .await;
    }
}

fn nanos(at: Timestamp) -> Result<i64> {
    Ok(i64::try_from(at.as_nanosecond())?)
}
