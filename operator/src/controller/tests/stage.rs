//! A stage for whole runs: the real reconciles of the controller and the real writes of the relay against one fake
//! cluster. A test plays the kubelet and the agents.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::watcher::Event;
use remoteprocess_api::{DesiredState, RemoteProcess};
use remoteprocess_proto::v1::{Exit, Reason, exit};
use serde_json::{Value, json};

use super::super::*;
use crate::fake_cluster::{FakeCluster, Life};
use crate::relay::archive::Manifest;
use crate::relay::attempt::{AttemptKey, Subject};
use crate::relay::live::{Fact, Record};
use crate::relay::status::{Claim, Error as GrantError, Recorder};
use crate::timeline::Marks;

pub(super) const NAME: &str = "hello";

/// One controller with its caches, and the cluster that it shares with others.
pub(super) struct Stage {
    pub(super) cluster: FakeCluster,
    context: Arc<Context>,
    pods: Writer<Pod>,
    recorder: Recorder,
    life: Life,
    deaths: usize,
    /// Seconds that the clock is ahead.
    ahead: Arc<AtomicI64>,
}

impl Stage {
    /// A process with this spec (flow YAML, begins with a comma) that was not reconciled yet.
    pub(super) fn new(spec: &str) -> Self {
        let cluster = FakeCluster::default();
        let process: RemoteProcess = serde_saphyr::from_str(&format!(
            "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
             metadata: {{name: {NAME}, namespace: team, uid: u, generation: 1, creationTimestamp: '{}'}}\n\
             spec: {{image: busybox, command: [id]{spec}}}\n",
            Timestamp::now()
        ))
        .unwrap();
        cluster.put("remoteprocesses", &process);
        let ahead = Arc::new(AtomicI64::new(0));
        let life = Life::default();
        let (context, pods) = operator(&cluster, &life, &ahead);
        let mut stage = Self {
            recorder: Recorder::new(cluster.client(), "relay-0".into()),
            cluster,
            context,
            pods,
            life,
            deaths: 0,
            ahead,
        };
        stage.node("ready");
        stage
    }

    /// The operator dies right after this many calls that change something; the next one remembers nothing.
    pub(super) fn die_after(&mut self, calls: usize) {
        self.live(Life::ends_after(calls));
    }

    fn live(&mut self, life: Life) {
        (self.context, self.pods) = operator(&self.cluster, &life, &self.ahead);
        self.life = life;
    }

    pub(super) fn has_died(&self) -> bool {
        self.deaths > 0
    }

    /// Calls of the living operator that changed something.
    pub(super) fn calls(&self) -> usize {
        self.life.calls()
    }

    pub(super) fn exists(&self) -> bool {
        self.cluster.get::<RemoteProcess>("remoteprocesses", NAME).is_some()
    }

    /// The node of all pods: `ready`, `silent` or `deleted`.
    pub(super) fn node(&mut self, state: &str) {
        if state == "deleted" {
            return self.cluster.remove("nodes", "node-1");
        }
        let ready = if state == "ready" { "True" } else { "Unknown" };
        let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        self.cluster.put(
            "nodes",
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "status": {"conditions": [condition]}}),
        );
    }

    pub(super) fn process(&self) -> RemoteProcess {
        self.cluster.process(NAME)
    }

    /// The status as JSON.
    pub(super) fn status(&self) -> Value {
        serde_json::to_value(self.process().status).unwrap()
    }

    fn pod_name(attempt: u32) -> String {
        phase::pod::pod_name(NAME, "u", attempt)
    }

    pub(super) fn pod(&self, attempt: u32) -> Option<Pod> {
        self.cluster.get("pods", &Self::pod_name(attempt))
    }

    /// One reconcile with caches that show everything.
    pub(super) async fn pass(&mut self) -> Result<Option<Duration>, Error> {
        let process = self.process();
        let numbers = 1..=process
            .status
            .as_ref()
            .and_then(|status| status.attempt)
            .unwrap_or_default();
        let pods: Vec<Pod> = numbers.filter_map(|number| self.pod(number)).collect();
        self.pods.apply_watcher_event(&Event::Init);
        for pod in pods {
            self.pods.apply_watcher_event(&Event::InitApply(pod));
        }
        self.pods.apply_watcher_event(&Event::InitDone);
        reconcile(Arc::new(process), self.context.clone()).await
    }

    /// Reconciles until nothing changes. An operator that dies is followed by another.
    pub(super) async fn settle(&mut self) {
        while self.exists() {
            let before = self.cluster.version();
            let outcome = self.pass().await;
            if self.life.is_over() {
                self.deaths += 1;
                self.live(Life::default());
                continue;
            }
            outcome.unwrap();
            if self.cluster.version() == before {
                return;
            }
        }
    }

    /// Time passes, followed by a reconcile.
    pub(super) async fn wait(&mut self, seconds: i64) {
        self.settle().await;
        self.pass_unseen(seconds);
        self.settle().await;
    }

    /// Time passes without a reconcile.
    pub(super) fn pass_unseen(&self, seconds: i64) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }

    pub(super) fn ask_to_stop(&self) {
        self.want(DesiredState::Stopped);
    }

    /// Sets the desired state, as `kubectl patch` would.
    pub(super) fn want(&self, state: DesiredState) {
        let setter = json!({
            "manager": "kubectl-patch", "operation": "Update", "time": Timestamp::now().to_string(),
            "fieldsV1": {"f:spec": {"f:desiredState": {}}},
        });
        self.cluster
            .edit("remoteprocesses", NAME, |process: &mut RemoteProcess| {
                process.spec.desired_state = state;
                process.metadata.managed_fields = Some(vec![serde_json::from_value(setter).unwrap()]);
            });
    }

    /// A user annotates the object.
    pub(super) fn annotate(&self, key: &str, value: &str) {
        self.cluster
            .edit("remoteprocesses", NAME, |process: &mut RemoteProcess| {
                process.annotations_mut().insert(key.into(), value.into());
            });
    }

    /// A user changes a field that may change at any time.
    pub(super) fn change_ttl(&self, seconds: u32) {
        self.cluster
            .edit("remoteprocesses", NAME, |process: &mut RemoteProcess| {
                process.spec.ttl = serde_json::from_value(json!({"secondsAfterSuccess": seconds})).unwrap();
                process.metadata.generation = process.metadata.generation.map(|generation| generation + 1);
            });
    }

    /// The status that the API server shows before the first write.
    pub(super) fn show_default_status(&self) {
        let version = remoteprocess_api::crd::crd().spec.versions.remove(0);
        let mut schema = version.schema.and_then(|schema| schema.open_api_v3_schema).unwrap();
        let status = schema.properties.as_mut().unwrap().remove("status").unwrap();
        self.cluster
            .edit("remoteprocesses", NAME, |process: &mut RemoteProcess| {
                process.status = serde_json::from_value(status.default.unwrap().0).unwrap();
            });
    }

    /// The kubelet reports this status (flow YAML) of the pod, which has a node.
    pub(super) fn kubelet(&self, attempt: u32, status: &str) {
        self.cluster.edit("pods", &Self::pod_name(attempt), |pod: &mut Pod| {
            pod.spec.as_mut().unwrap().node_name = Some("node-1".into());
            pod.status = Some(serde_saphyr::from_str(status).unwrap());
        });
    }

    pub(super) fn remove_pod(&self, attempt: u32) {
        self.cluster.remove("pods", &Self::pod_name(attempt));
    }

    /// The containers run: the entrypoint waits for its agent.
    pub(super) fn containers_run(&self, attempt: u32) {
        self.kubelet(
            attempt,
            &containers(
                &format!("{{running: {{startedAt: '{}'}}}}", Timestamp::now()),
                "Running",
            ),
        );
    }

    /// The container of the program and then the agent's have ended.
    pub(super) fn pod_ends(&self, attempt: u32, code: i32) {
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        self.kubelet(
            attempt,
            &containers(&format!("{{terminated: {{exitCode: {code}}}}}"), phase),
        );
    }

    fn subject(&self, attempt: u32) -> Subject {
        Subject {
            namespace: "team".into(),
            name: NAME.into(),
            pod_uid: self.pod_uid(attempt),
            key: AttemptKey {
                uid: "u".into(),
                attempt,
            },
        }
    }

    fn pod_uid(&self, attempt: u32) -> String {
        self.pod(attempt).and_then(|pod| pod.uid()).unwrap_or_default()
    }

    /// The agent asks for the start.
    pub(super) async fn grant(&self, attempt: u32) -> Result<(), GrantError> {
        let claim = Claim {
            uid: "u".into(),
            attempt,
            pod_uid: self.pod_uid(attempt),
            launched: false,
        };
        let now = Some(Timestamp::now());
        let marks = Marks {
            agent: now,
            entrypoint: now,
            ..Marks::default()
        };
        if let Some(granted) = self.recorder.grant(&self.process(), &claim).await? {
            self.recorder.tell_start(granted, attempt, marks).await;
        }
        Ok(())
    }

    /// The agent reports that the program was launched.
    pub(super) async fn start(&self, attempt: u32) {
        let now = Timestamp::now().as_nanosecond();
        let at_unix_nanos = i64::try_from(now).unwrap();
        let run_deadline = self.process().spec.run_deadline();
        self.learn(
            attempt,
            Fact::Started {
                at_unix_nanos,
                run_deadline,
            },
        )
        .await;
    }

    /// The relay learns a fact about the program.
    pub(super) async fn learn(&self, attempt: u32, fact: Fact) {
        self.recorder.learned(&self.subject(attempt), fact).await;
    }

    /// The entrypoint's record of an end with this code, and the output is whole.
    pub(super) async fn exit(&self, attempt: u32, code: i32) {
        let reason = if code == 0 {
            Reason::Completed
        } else {
            Reason::NonZeroExit
        };
        self.exit_of(attempt, code, reason, None).await;
    }

    /// As [`Self::exit`], for a program that was stopped at its run deadline.
    pub(super) async fn exit_at_deadline(&self, attempt: u32, code: i32) {
        let stop = exit::Stop {
            requested_by: "deadline".into(),
            message: "it has run for 60 s".into(),
        };
        self.exit_of(attempt, code, Reason::DeadlineExceeded, Some(stop)).await;
    }

    async fn exit_of(&self, attempt: u32, code: i32, reason: Reason, stop: Option<exit::Stop>) {
        let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap();
        let exit = Exit {
            outcome: exit::Outcome::Code.into(),
            value: code,
            source: exit::Source::Entrypoint.into(),
            sealed: true,
            reason: reason.into(),
            stop,
            started_unix_nanos: now,
            finished_unix_nanos: now,
            ..Exit::default()
        };
        self.record(attempt, exit).await;
    }

    /// The relay closes the output of an attempt whose end it does not know.
    pub(super) async fn close(&self, attempt: u32) {
        self.record(attempt, Exit::default()).await;
    }

    async fn record(&self, attempt: u32, exit: Exit) {
        let manifest = Manifest {
            sealed: exit.sealed,
            exit: Some(exit),
            ..Manifest::default()
        };
        self.recorder.ended(&self.subject(attempt), &manifest, b"").await;
    }

    pub(super) fn image_is_missing(&self, attempt: u32) {
        self.kubelet(
            attempt,
            &containers("{waiting: {reason: ErrImagePull, message: not found}}", "Pending"),
        );
    }

    /// The program and its agent have ended; a container that a webhook added has not.
    pub(super) fn foreign_container_keeps_running(&self, attempt: u32) {
        self.foreign_container_runs(attempt, "containerStatuses");
    }

    /// As above, with a container of this list, such as `ephemeralContainerStatuses` (`kubectl debug`).
    pub(super) fn foreign_container_runs(&self, attempt: u32, list: &str) {
        let mut status: Value = serde_json::from_str(&containers("{terminated: {exitCode: 7}}", "Running")).unwrap();
        let mut foreign = status["containerStatuses"][0].clone();
        foreign["name"] = json!("proxy");
        foreign["state"] = json!({"running": {}});
        let mut all = status[list].as_array().cloned().unwrap_or_default();
        all.push(foreign);
        status[list] = json!(all);
        self.kubelet(attempt, &status.to_string());
    }

    /// The pod is removed by force, with this state of its node; enough time passes.
    pub(super) async fn pod_vanishes_on(&mut self, attempt: u32, node: &str) {
        self.node(node);
        self.remove_pod(attempt);
        self.wait(11).await;
        self.wait(1).await;
    }

    /// An attempt up to the launch of its program.
    pub(super) async fn launch(&mut self, attempt: u32) {
        self.containers_run(attempt);
        self.settle().await;
        self.grant(attempt).await.unwrap();
        self.settle().await;
        self.start(attempt).await;
        self.settle().await;
    }

    /// The whole life of an attempt, up to its exit record and the end of its pod.
    pub(super) async fn run(&mut self, attempt: u32, code: i32) {
        self.launch(attempt).await;
        self.exit(attempt, code).await;
        self.settle().await;
        self.pod_ends(attempt, code);
        self.settle().await;
    }
}

fn operator(cluster: &FakeCluster, life: &Life, ahead: &Arc<AtomicI64>) -> (Arc<Context>, Writer<Pod>) {
    let client = cluster.mortal_client(life.clone());
    let (store, pods) = reflector::store();
    let ahead = ahead.clone();
    let context = Context {
        client: client.clone(),
        config: Config {
            agent: super::agent(),
            ca_bundle: Arc::new(|| "CA".into()),
            namespaces: vec![],
            traces: false,
        },
        pods: store,
        in_memory: InMemory::default(),
        reporter: Reporter::new(client),
        detected: handover::Detected::default(),
        clock: Arc::new(move || Timestamp::now() + SignedDuration::from_secs(ahead.load(Ordering::Relaxed))),
    };
    (Arc::new(context), pods)
}

fn containers(main: &str, phase: &str) -> String {
    let agent = if phase == "Running" {
        "{running: {}}"
    } else {
        "{terminated: {exitCode: 0}}"
    };
    let container = |name: &str, state: &str| {
        json!({"name": name, "image": "x", "imageID": "", "ready": true, "restartCount": 0,
            "state": serde_saphyr::from_str::<Value>(state).unwrap()})
    };
    json!({
        "phase": phase,
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": Timestamp::now().to_string()}],
        "containerStatuses": [container("main", main)],
        "initContainerStatuses": [container("rproc-agent", agent)],
    })
    .to_string()
}
