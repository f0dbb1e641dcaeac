//! Agents that the test plays: their processes and pods are objects of the API server, no program runs, and the operator
//! talks to them as to any other agent.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::Stream;
use futures::stream;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use remoteprocess_api::RemoteProcess;
use remoteprocess_proto::v1::Stream as WireStream;
use remoteprocess_proto::v1::executor_server::{Executor, ExecutorServer};
use remoteprocess_proto::v1::exit::{Outcome, Source};
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{
    AttachRequest, AttachResponse, CommitRequest, CommitResponse, Data, ExecRequest, ExecResponse,
    ExecutorGetStateRequest, ExecutorGetStateResponse, ExecutorPauseRequest, ExecutorPauseResponse,
    ExecutorSetDeadlineRequest, ExecutorSetDeadlineResponse, ExecutorSignalRequest, ExecutorSignalResponse,
    ExecutorStopRequest, ExecutorStopResponse, ExecutorWatchOutputRequest, Exit, Gap, GapReason, OutputFrame, Phase,
    Seal, StartRequest, State, StreamSeal,
};
use remoteprocess_proto::{Checksum, MAX_CHUNK, PROTOCOL};
use remoteprocess_tls::{ClientAuth, Limits, Role, serve};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

use super::attackers::Count;
use super::canaries::CANARY;
use super::target::Site;

/// How long a pod, a grant and an end may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const AGAIN: Duration = Duration::from_millis(50);
/// Bytes of a line.
pub(super) const LINE: usize = 64;
/// Bytes of a text that is almost too long for a message.
const LONG: usize = 900_000;

/// What an agent reports.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// This number of numbered lines of [`LINE`] bytes, and a success at the end.
    Lines(u64),
    /// Gaps, holes and long texts without end, as fast as the operator takes them.
    Nonsense(&'static Count),
}

/// A running agent. Dropping it ends it.
pub(super) struct Agent {
    processes: Api<RemoteProcess>,
    name: String,
    _serving: DropGuard,
}

impl Agent {
    /// Creates a process, and becomes its agent.
    ///
    /// # Errors
    /// When the operator makes no pod, or does not grant the start.
    pub(super) async fn play(site: &Site, namespace: &str, name: &str, part: Part) -> Result<Self> {
        let processes: Api<RemoteProcess> = Api::namespaced(site.client.clone(), namespace);
        let object = serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": name},
            "spec": {"image": "busybox", "command": ["true", CANARY], "env": [{"name": "SECRET", "value": CANARY}]},
        }))?;
        let process = processes.create(&PostParams::default(), &object).await?;
        let pods = Api::namespaced(site.client.clone(), namespace);
        let pod = timeout(PATIENCE, pod(&processes, &pods, name))
            .await
            .context("no pod")??;
        let role = Role::Agent {
            namespace: namespace.to_owned(),
            pod_uid: pod.uid().context("a pod has a uid")?,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let request = StartRequest {
            protocol: PROTOCOL,
            process_uid: process.uid().context("a process has a uid")?,
            attempt: 1,
            address: listener.local_addr()?.to_string(),
            ..StartRequest::default()
        };
        let cut = CancellationToken::new();
        tokio::spawn(serve(
            listener,
            site.identity(&role, None),
            ClientAuth::OperatorOnly,
            ExecutorServer::new(Service(Arc::new(part))),
            Limits::default(),
            cut.clone(),
        ));
        let serving = cut.drop_guard();
        timeout(PATIENCE, start(site, &role, request))
            .await
            .context("no grant")??;
        Ok(Self {
            processes,
            name: name.to_owned(),
            _serving: serving,
        })
    }

    /// Waits until the end is in the status: then the output is archived.
    ///
    /// # Errors
    /// When that takes too long.
    pub(super) async fn end(self) -> Result<()> {
        let ended = async {
            while !self.processes.get(&self.name).await?.is_final() {
                sleep(AGAIN).await;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, ended).await.context("no end")?
    }
}

/// The pod of the first attempt, as soon as there is one.
async fn pod(processes: &Api<RemoteProcess>, pods: &Api<Pod>, name: &str) -> Result<Pod> {
    loop {
        let status = processes.get(name).await?.status.unwrap_or_default();
        let pod = status.attempts.first().and_then(|attempt| attempt.pod_name.as_deref());
        if let Some(pod) = pod
            && let Some(pod) = pods.get_opt(pod).await?
        {
            return Ok(pod);
        }
        sleep(AGAIN).await;
    }
}

/// Asks for the start until it is granted: the watch of a replica can be behind.
async fn start(site: &Site, role: &Role, request: StartRequest) -> Result<()> {
    let dialer = site.dialer(role, None);
    let channel = dialer.connect(&site.main.to_string(), &Role::Operator).await?;
    let mut relay = RelayClient::new(channel);
    loop {
        match relay.start(request.clone()).await {
            Ok(answer) if answer.get_ref().granted => return Ok(()),
            Ok(_) | Err(_) => sleep(AGAIN).await,
        }
    }
}

/// The executor.
struct Service(Arc<Part>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `length` bytes of the lines, from an offset on.
fn lines(from: u64, length: usize) -> Bytes {
    let skipped = usize::try_from(from % LINE as u64).unwrap_or_default();
    let (first, count) = (from / LINE as u64, (skipped + length).div_ceil(LINE) as u64);
    let width = LINE - 1;
    let text: String = (first..first + count)
        .map(|number| format!("{number:0width$}\n"))
        .collect();
    Bytes::from(text).slice(skipped..skipped + length)
}

/// The frames of [`Part::Lines`].
fn honest(from: u64, count: u64) -> impl Iterator<Item = Frame> {
    let size = count * LINE as u64;
    let chunks = (from..size).step_by(MAX_CHUNK).map(move |offset| {
        let length = usize::try_from(size - offset).map_or(MAX_CHUNK, |left| left.min(MAX_CHUNK));
        Frame::Data(Data {
            stream: WireStream::Stdout.into(),
            offset,
            time_unix_nanos: 1,
            bytes: lines(offset, length),
        })
    });
    chunks.chain(std::iter::once_with(move || Frame::Exit(exit(size))))
}

fn exit(size: u64) -> Exit {
    let (mut hash, mut checksum) = (Sha256::new(), Checksum::default());
    for offset in (0..size).step_by(MAX_CHUNK) {
        let length = usize::try_from(size - offset).map_or(MAX_CHUNK, |left| left.min(MAX_CHUNK));
        let lines = lines(offset, length);
        hash.update(&lines);
        checksum.update(&lines);
    }
    let seal = |bytes: u64, sha256: Vec<u8>, checksum: Checksum| StreamSeal {
        bytes,
        sha256: sha256.into(),
        checksum: Some(checksum.value()),
        ..StreamSeal::default()
    };
    Exit {
        outcome: Outcome::Code.into(),
        source: Source::Entrypoint.into(),
        seal: Some(Seal {
            stdout: Some(seal(size, hash.finalize().to_vec(), checksum)),
            stderr: Some(seal(0, Sha256::digest([]).to_vec(), Checksum::default())),
            ..Seal::default()
        }),
        ..Exit::default()
    }
}

/// The frames of [`Part::Nonsense`].
fn nonsense(from: u64) -> impl Iterator<Item = Frame> {
    let gap = |from, to| {
        Frame::Gap(Gap {
            stream: WireStream::Stdout.into(),
            from,
            to,
            reason: GapReason::SpoolFull.into(),
        })
    };
    (from..).map(move |number| match number % 256 {
        0 => Frame::State(State {
            phase: Phase::Running.into(),
            message: "m".repeat(LONG),
            ..State::default()
        }),
        // Each leaves a hole before it.
        8 | 72 | 136 => Frame::Data(Data {
            stream: WireStream::Stderr.into(),
            offset: 10 * number,
            time_unix_nanos: 1,
            bytes: Bytes::from_static(b"x"),
        }),
        16 | 80 | 144 => gap(number, None),
        _ => gap(number, Some(number + 1)),
    })
}

#[tonic::async_trait]
impl Executor for Service {
    async fn get_state(
        &self,
        _: Request<ExecutorGetStateRequest>,
    ) -> Result<Response<ExecutorGetStateResponse>, Status> {
        Ok(Response::new(ExecutorGetStateResponse {
            protocol: PROTOCOL,
            started_unix_nanos: 1,
            ..ExecutorGetStateResponse::default()
        }))
    }

    type WatchOutputStream = Answers<OutputFrame>;

    async fn watch_output(
        &self,
        request: Request<ExecutorWatchOutputRequest>,
    ) -> Result<Response<Self::WatchOutputStream>, Status> {
        let from = request.into_inner().cursor.unwrap_or_default().stdout;
        let wrap = |frame| -> Result<OutputFrame, Status> { Ok(OutputFrame { frame: Some(frame) }) };
        let frames: Self::WatchOutputStream = match *self.0 {
            Part::Lines(count) => Box::pin(stream::iter(honest(from, count).map(wrap))),
            Part::Nonsense(sent) => {
                let frames = nonsense(from).inspect(move |_| sent.add());
                Box::pin(stream::iter(frames.map(wrap)))
            }
        };
        Ok(Response::new(frames))
    }

    async fn signal(&self, _: Request<ExecutorSignalRequest>) -> Result<Response<ExecutorSignalResponse>, Status> {
        Ok(Response::new(ExecutorSignalResponse {}))
    }

    async fn pause(&self, _: Request<ExecutorPauseRequest>) -> Result<Response<ExecutorPauseResponse>, Status> {
        Ok(Response::new(ExecutorPauseResponse {}))
    }

    async fn set_deadline(
        &self,
        _: Request<ExecutorSetDeadlineRequest>,
    ) -> Result<Response<ExecutorSetDeadlineResponse>, Status> {
        Ok(Response::new(ExecutorSetDeadlineResponse {}))
    }

    async fn stop(&self, _: Request<ExecutorStopRequest>) -> Result<Response<ExecutorStopResponse>, Status> {
        Ok(Response::new(ExecutorStopResponse {}))
    }

    type AttachStream = Answers<AttachResponse>;

    async fn attach(&self, _: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented("there is no program"))
    }

    type ExecStream = Answers<ExecResponse>;

    async fn exec(&self, _: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented("there is no program"))
    }

    async fn commit(&self, _: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        Ok(Response::new(CommitResponse {}))
    }
}
