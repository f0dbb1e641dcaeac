//! Many followers of both faces at once: what they hold of the relay's memory, and whether each has every byte.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{ProcessKey, WatchOutputRequest};
use remoteprocess_proto::{MAX_MESSAGE, PROTOCOL};
use remoteprocess_tls::{Authority, Dialer, Role};
use sha2::{Digest, Sha256};
use tokio::sync::Barrier;
use tonic::transport::Channel;

use crate::cost;
use crate::http::{Answer, Records};
use crate::operator::{Hello, NAME, NAMESPACE, identity, trust_domain};
use crate::pod::Pod;

/// Bytes before the measurement: with them, each follower is there.
const WARM: usize = 100_000;
/// Streams on one connection: the relay takes 128.
const STREAMS: usize = 100;

/// Runs the followers, in a process of their own.
pub(crate) fn run(hello: &str, events: usize, grpc: usize) {
    let hello: Hello = serde_json::from_str(hello).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.unwrap().block_on(follow(hello, events, grpc));
}

async fn follow(hello: Hello, events: usize, grpc: usize) {
    let authority = Authority::from_pem(&hello.certificate, &hello.key, &trust_domain()).unwrap();
    let dialer = Dialer::new(identity(&authority, &Role::User));
    let gate = Arc::new(Barrier::new(events + grpc + 1));
    let (mut followers, mut channel) = (Vec::new(), None);
    for number in 0..events + grpc {
        if number % STREAMS == 0 {
            channel = Some(dialer.connect(&hello.relay, &Role::Operator).await.unwrap());
        }
        let (channel, gate) = (channel.clone().unwrap(), gate.clone());
        followers.push(if number < events {
            tokio::spawn(follow_events(channel, gate))
        } else {
            tokio::spawn(follow_grpc(channel, gate))
        });
    }
    gate.wait().await;
    println!("ready");
    let mut bytes = 0;
    for follower in followers {
        bytes += follower.await.unwrap();
    }
    println!("{bytes}");
}

/// The bytes of a follower so far, and their hash.
#[derive(Default)]
struct Got(usize, Sha256);

impl Got {
    /// Adds bytes, and waits for all others when the warm-up is over.
    async fn add(&mut self, bytes: &[u8], gate: &Barrier) {
        let before = self.0;
        self.0 += bytes.len();
        self.1.update(bytes);
        if before < WARM && self.0 >= WARM {
            gate.wait().await;
        }
    }

    fn compare(self, sha256: &[u8]) -> usize {
        assert_eq!(self.1.finalize().as_slice(), sha256);
        self.0
    }
}

async fn follow_events(channel: Channel, gate: Arc<Barrier>) -> usize {
    let mut answer = Answer::open(channel, Some("text/event-stream")).await;
    let (mut records, mut got) = (Records::default(), Got::default());
    while let Some(bytes) = answer.next().await {
        // A thousand followers leave the connections their turn, to answer the relay's pings.
        tokio::task::yield_now().await;
        for record in records.take(&bytes) {
            match record.kind.as_str() {
                "data" => got.add(record.text.as_bytes(), &gate).await,
                "end" => {
                    let sha256 = record.stdout.unwrap().sha256.unwrap();
                    return got.compare(&hex::decode(sha256).unwrap());
                }
                "gap" | "error" => panic!("a {}", record.kind),
                _ => {}
            }
        }
    }
    panic!("the events have no end")
}

async fn follow_grpc(channel: Channel, gate: Arc<Barrier>) -> usize {
    let request = WatchOutputRequest {
        protocol: PROTOCOL,
        process: Some(ProcessKey {
            namespace: NAMESPACE.to_owned(),
            name: NAME.to_owned(),
            uid: String::new(),
        }),
        follow: true,
        ..WatchOutputRequest::default()
    };
    let mut client = RelayClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut frames = client.watch_output(request).await.unwrap().into_inner();
    let mut got = Got::default();
    loop {
        match frames.message().await.unwrap().expect("an end").frame.unwrap() {
            Frame::Data(data) => got.add(&data.bytes, &gate).await,
            Frame::Exit(exit) => return got.compare(&exit.seal.unwrap().stdout.unwrap().sha256),
            Frame::Gap(gap) => panic!("{gap:?}"),
            Frame::State(_) | Frame::Heartbeat(_) | Frame::Spool(_) => {}
        }
    }
}

/// Measures one crowd.
pub(crate) fn measure(build: &Path, megabytes: usize, events: usize, grpc: usize) {
    let bytes = megabytes * 1_000_000;
    let writer = [
        format!("--warm={WARM}"),
        format!("--bytes={bytes}"),
        "--block=8192".to_owned(),
    ];
    let pod = Pod::start(build, &writer);
    let operator = pod.operator.id();
    let (before, _) = cost::memory(operator);
    let mut crowd = Command::new(build.join("examples/loopback"))
        .args(["followers", &pod.hello, &events.to_string(), &grpc.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(crowd.stdout.take().unwrap()).lines();
    let mut line = || lines.next().expect("the crowd has ended").unwrap();
    assert_eq!(line(), "ready");
    let (attached, _) = cost::memory(operator);
    let begun = Instant::now();
    pod.open_gate();
    pod.end();
    let received: usize = line().parse().unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    crowd.wait().unwrap();
    let (after, peak) = cost::memory(operator);
    assert_eq!(received, (events + grpc) * (WARM + bytes));
    println!(
        "{events} SSE and {grpc} gRPC followers of {megabytes} MB: sha256 equal, {:.1} MB/s in all; the relay held {before} \
         MiB before, {attached} with all of them, {peak} at most, {after} at the end",
        received as f64 / seconds / 1e6
    );
}
