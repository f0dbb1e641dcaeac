//! Users who do nothing wrong: they follow, call and start processes, and notice how long that takes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use remoteprocess_api::RemoteProcess;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{GetStateRequest, ProcessKey, WatchOutputRequest};
use remoteprocess_tls::Role;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tonic::transport::Channel;

use super::agent::{Agent, LINE, Part};
use super::target::Target;

/// Streams that stay open.
const FOLLOWERS: usize = 10;
/// Name of the process whose output is in the archive.
pub(super) const ARCHIVED: &str = "archived";
/// Lines of it that are read each time.
const TAIL: u64 = 10;
/// Pause between two calls, between two reads of the archive, and between two starts.
const CALLS: Duration = Duration::from_millis(50);
const READS: Duration = Duration::from_millis(500);
const STARTS: Duration = Duration::from_secs(1);
/// Much longer than a call or a start may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long something took, each time.
#[derive(Default)]
pub(super) struct Times {
    took: Vec<Duration>,
    /// What failed.
    pub errors: Vec<String>,
}

/// What users noticed.
pub(super) struct Experience {
    pub calls: Times,
    /// Of the end of an archived output.
    pub reads: Times,
    pub starts: Times,
    /// The part of `starts` that the API server takes before the operator can know of the process.
    pub creations: Times,
}

/// Runs a process that writes about this number of bytes, until the archive has them.
pub(super) async fn archive(target: &Target, bytes: u64) -> Result<()> {
    let lines = Part::Lines(bytes / LINE as u64);
    Agent::play(&target.site(), "good", ARCHIVED, lines).await?.end().await
}

/// The users, and the namespace of their processes.
pub(super) struct Bystanders {
    processes: Api<RemoteProcess>,
    pods: Api<Pod>,
    relay: RelayClient<Channel>,
    started: AtomicUsize,
    creations: Mutex<Times>,
    cut: Arc<AtomicUsize>,
    _followers: JoinSet<()>,
}

impl Times {
    pub(super) fn len(&self) -> usize {
        self.took.len()
    }

    pub(super) fn p50(&self) -> Duration {
        self.at(50)
    }

    pub(super) fn p99(&self) -> Duration {
        self.at(99)
    }

    fn at(&self, percent: usize) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort();
        let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or(Duration::MAX)
    }
}

impl Bystanders {
    /// Begins to follow.
    pub(super) async fn arrive(target: &Target) -> Result<Self> {
        let channel = target
            .user("alice", &["system:masters"])
            .connect(&target.main.to_string(), &Role::Operator)
            .await?;
        let mut followers = JoinSet::new();
        let cut = Arc::<AtomicUsize>::default();
        let mut bystanders = Self {
            processes: Api::namespaced(target.client.clone(), "good"),
            pods: Api::namespaced(target.client.clone(), "good"),
            relay: RelayClient::new(channel),
            started: AtomicUsize::new(0),
            creations: Mutex::default(),
            cut: cut.clone(),
            _followers: JoinSet::new(),
        };
        bystanders.start().await?;
        for _ in 0..FOLLOWERS {
            let request = WatchOutputRequest {
                protocol: PROTOCOL,
                process: process(&name(0)),
                follow: true,
                ..WatchOutputRequest::default()
            };
            let opened = bystanders.relay.clone().watch_output(request).await?;
            let (mut frames, cut) = (opened.into_inner(), cut.clone());
            followers.spawn(async move {
                while let Ok(Some(_)) = frames.message().await {}
                cut.fetch_add(1, Ordering::Relaxed);
            });
        }
        bystanders._followers = followers;
        Ok(bystanders)
    }

    /// Whether each stream is still open.
    pub(super) fn all_follow(&self) -> bool {
        self.cut.load(Ordering::Relaxed) == 0
    }

    /// Calls, reads and starts processes until `event`.
    pub(super) async fn live_until(&self, event: impl Future<Output = ()>) -> Experience {
        let over = AtomicBool::new(false);
        let event = async {
            event.await;
            over.store(true, Ordering::Relaxed);
        };
        let is_over = || over.load(Ordering::Relaxed);
        let calls = repeat(CALLS, is_over, || self.call());
        let reads = repeat(READS, is_over, || self.read());
        let starts = repeat(STARTS, is_over, || self.start());
        let ((), calls, reads, starts) = tokio::join!(event, calls, reads, starts);
        let creations = std::mem::take(&mut *self.creations());
        Experience {
            calls,
            reads,
            starts,
            creations,
        }
    }

    /// Reads the last lines of the archived output.
    async fn read(&self) -> Result<()> {
        let request = WatchOutputRequest {
            protocol: PROTOCOL,
            process: process(ARCHIVED),
            tail_lines: Some(TAIL),
            ..WatchOutputRequest::default()
        };
        let mut frames = self.relay.clone().watch_output(request).await?.into_inner();
        let mut bytes = 0;
        while let Some(frame) = frames.message().await? {
            if let Some(Frame::Data(data)) = frame.frame {
                bytes += data.bytes.len();
            }
        }
        let expected = LINE * usize::try_from(TAIL)?;
        ensure!(bytes == expected, "{bytes} bytes instead of {expected}");
        Ok(())
    }

    async fn call(&self) -> Result<()> {
        let request = GetStateRequest {
            protocol: PROTOCOL,
            process: process(&name(0)),
        };
        self.relay.clone().get_state(request).await?;
        Ok(())
    }

    fn creations(&self) -> MutexGuard<'_, Times> {
        self.creations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a process and waits until the operator has created its pod.
    async fn start(&self) -> Result<()> {
        let name = name(self.started.fetch_add(1, Ordering::Relaxed));
        let object: RemoteProcess = serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"name": name}, "spec": {"image": "busybox", "command": ["true"]},
        }))?;
        let begin = Instant::now();
        self.processes.create(&PostParams::default(), &object).await?;
        self.creations().took.push(begin.elapsed());
        loop {
            let status = self.processes.get(&name).await?.status.unwrap_or_default();
            let pod = status.attempts.first().and_then(|attempt| attempt.pod_name.as_deref());
            if let Some(pod) = pod
                && self.pods.get_opt(pod).await?.is_some()
            {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Does something at intervals until it is over, and measures it.
async fn repeat<F: Future<Output = Result<()>>>(
    pause: Duration,
    is_over: impl Fn() -> bool,
    act: impl Fn() -> F,
) -> Times {
    let (mut times, mut pace) = (Times::default(), interval(pause));
    while !is_over() {
        pace.tick().await;
        let begin = Instant::now();
        match timeout(PATIENCE, act()).await {
            Ok(Ok(())) => times.took.push(begin.elapsed()),
            Ok(Err(error)) => times.errors.push(format!("{error:#}")),
            // Too late, which counts only where the time does.
            Err(_) => times.took.push(PATIENCE),
        }
    }
    times
}

fn name(number: usize) -> String {
    format!("job-{number}")
}

fn process(name: &str) -> Option<ProcessKey> {
    Some(ProcessKey {
        namespace: "good".to_owned(),
        name: name.to_owned(),
        ..ProcessKey::default()
    })
}
