//! A stage for whole runs: the real passes of the controller and the real writes of the relay against one fake cluster.
//! A test plays the kubelet and the agents.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::watcher::Event;
use remoteprocess_api::RemoteProcess;
use remoteprocess_proto::v1::{Cursor, Exit, exit};
use serde_json::{Value, json};

use super::super::*;
use crate::fake_cluster::FakeCluster;
use crate::relay::archive::{AttemptKey, Subject};
use crate::relay::record::{Claim, Error as GrantError, Recorder};
use crate::relay::session::{Ending, Record};

pub(super) const NAME: &str = "hello";

/// One controller with its caches, and the cluster that it shares with others.
pub(super) struct Stage {
    pub(super) cluster: FakeCluster,
    context: Arc<Context>,
    pods: Writer<Pod>,
    recorder: Recorder,
}

impl Stage {
    /// A process of this specification (flow YAML, begins with a comma), and nothing done about it yet.
    pub(super) fn new(spec: &str) -> Self {
        let cluster = FakeCluster::default();
        let process: RemoteProcess = serde_saphyr::from_str(&format!(
            "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
             metadata: {{name: {NAME}, namespace: team, uid: u, generation: 1, creationTimestamp: '2026-01-01T00:00:00Z'}}\n\
             spec: {{image: busybox, command: [id]{spec}}}\n"
        ))
        .unwrap();
        cluster.put("remoteprocesses", &process);
        Self::on(cluster)
    }

    /// A further controller on the same cluster, which remembers nothing.
    pub(super) fn on(cluster: FakeCluster) -> Self {
        let client = cluster.client();
        let (store, pods) = reflector::store();
        let context = Context {
            client: client.clone(),
            config: Config {
                agent: super::agent(),
                ca_bundle: Arc::new(|| "CA".into()),
                namespaces: vec![],
            },
            pods: store,
            remembered: Remembered::default(),
            reporter: Reporter::new(client.clone()),
        };
        Self {
            recorder: Recorder::new(client, "relay-0".into()),
            cluster,
            context: Arc::new(context),
            pods,
        }
    }

    pub(super) fn process(&self) -> RemoteProcess {
        self.cluster.process(NAME)
    }

    /// The status as JSON.
    pub(super) fn status(&self) -> Value {
        serde_json::to_value(self.process().status).unwrap()
    }

    fn pod_name(attempt: u32) -> String {
        build::pod_name(NAME, "u", attempt)
    }

    pub(super) fn pod(&self, attempt: u32) -> Option<Pod> {
        self.cluster.get("pods", &Self::pod_name(attempt))
    }

    /// One pass with caches that show everything.
    pub(super) async fn pass(&mut self) -> Result<Action, Error> {
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

    /// Passes until one of them changes nothing.
    pub(super) async fn settle(&mut self) {
        loop {
            let before = self.process().metadata.resource_version;
            self.pass().await.unwrap();
            if self.process().metadata.resource_version == before {
                return;
            }
        }
    }

    /// The kubelet reports this status (flow YAML) of the pod, which it has on a node.
    pub(super) fn kubelet(&self, attempt: u32, status: &str) {
        self.cluster.edit("pods", &Self::pod_name(attempt), |pod: &mut Pod| {
            pod.spec.as_mut().unwrap().node_name = Some("node-1".into());
            pod.status = Some(serde_saphyr::from_str(status).unwrap());
        });
    }

    /// The containers are there: the entrypoint waits for its agent.
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
        self.recorder.grant(&self.process(), &claim).await
    }

    /// The agent says that the program was launched.
    pub(super) async fn start(&self, attempt: u32) {
        let now = Timestamp::now().as_nanosecond();
        self.recorder
            .started(&self.subject(attempt), i64::try_from(now).unwrap())
            .await;
    }

    /// The entrypoint's record of an end with this code, and the output is whole.
    pub(super) async fn exit(&self, attempt: u32, code: i32) {
        let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap();
        let exit = Exit {
            outcome: exit::Outcome::Code.into(),
            value: code,
            source: exit::Source::Entrypoint.into(),
            sealed: true,
            started_unix_nanos: now,
            finished_unix_nanos: now,
            ..Exit::default()
        };
        self.record(attempt, exit).await;
    }

    async fn record(&self, attempt: u32, exit: Exit) {
        let ending = Ending {
            exit,
            end: Cursor::default(),
            lost: Cursor::default(),
            gaps: vec![],
            tail: vec![],
        };
        self.recorder.ended(&self.subject(attempt), &ending).await;
    }

    /// The whole life of an attempt, up to its exit record and the end of its pod.
    pub(super) async fn run(&mut self, attempt: u32, code: i32) {
        self.containers_run(attempt);
        self.settle().await;
        self.grant(attempt).await.unwrap();
        self.settle().await;
        self.start(attempt).await;
        self.settle().await;
        self.exit(attempt, code).await;
        self.settle().await;
        self.pod_ends(attempt, code);
        self.settle().await;
    }
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
