//! Followers of both faces at a relay in a process of its own, so that its memory is known.
#![expect(
    clippy::print_stdout,
    reason = "the two processes talk over it, and the figures are for the reader"
)]

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use object_store::memory::InMemory;
use remoteprocess_proto::MAX_MESSAGE;
use remoteprocess_proto::v1::Cursor;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_tls::{Dialer, Identity, Role};
use serde::{Deserialize, Serialize};
use tokio::sync::Barrier;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::event_follower::EventFollower;
use super::replica::{Got, Replica};
use super::replicas::hashes;
use crate::relay::archive::Archive;
use crate::relay::live::fake_agent::{FakeAgent, Program, pem};

/// Much longer than the test takes; only a hang lasts this long.
const DEADLINE: Duration = Duration::from_secs(240);
/// Streams on one connection: the relay takes 128.
const STREAMS: usize = 100;
/// Makes a process of this program the relay; without it, the process is the test.
const ROLE: &str = "RPROC_CROWD_TEST_ROLE";
/// Bytes that a follower may cost the relay: its windows and buffers.
const EACH: usize = 128 << 10;

/// The numbers of followers.
struct Size {
    events: usize,
    grpc: usize,
}

impl Size {
    fn of_this_run() -> Self {
        let is_long = std::env::var("RPROC_LONG").is_ok_and(|long| long == "1");
        let (events, grpc) = if is_long { (1000, 50) } else { (100, 10) };
        Self { events, grpc }
    }
}

/// The same output in both processes. It is short, because JSON and Base64 are slow without optimization;
/// `loopback crowd` in `bench/` has a long one.
fn program() -> Arc<Program> {
    let chunks: Vec<(bool, usize)> = (0..60).map(|index| (index % 7 == 0, 1 + index * 53 % 9000)).collect();
    Program::new(&chunks)
}

/// What the relay says first.
#[derive(Serialize, Deserialize)]
struct Hello {
    address: SocketAddr,
    /// Certificate, key and CA of a user.
    user: [String; 3],
}

/// The process of the relay, which ends with the test.
struct Relay {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Relay {
    fn start(test: &str) -> (Self, Hello) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, "relay")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let lines = BufReader::new(stdout).lines();
        let mut relay = Self { child, stdin, lines };
        let hello = serde_json::from_str(&relay.wait_for("hello ")).unwrap();
        (relay, hello)
    }

    /// The rest of the next line that begins so.
    fn wait_for(&mut self, beginning: &str) -> String {
        let mut lines = self.lines.by_ref().map(Result::unwrap);
        let line = lines.find_map(|line| line.strip_prefix(beginning).map(str::to_owned));
        line.expect("the relay lives")
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.stdin, "{question}").unwrap();
        self.wait_for(&format!("{question} "))
    }

    /// Bytes that it holds, and at most held since it was asked last.
    fn memory(&mut self) -> (usize, usize) {
        serde_json::from_str(&self.ask("memory")).unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory and its peak in bytes (proc(5), `status`). The peak begins anew.
fn memory() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    };
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    (field("VmRSS"), field("VmHWM"))
}

/// The relay's part: answers questions until its input ends.
async fn serve() {
    let program = program();
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let replica = Replica::start(&Archive::new(Arc::new(InMemory::new()))).await;
    replica.open(&agent);
    let hello = Hello {
        address: replica.address,
        user: pem(&Role::User),
    };
    // The harness may have begun a line.
    println!("\nhello {}", serde_json::to_string(&hello).unwrap());
    let answer = move || {
        for question in std::io::stdin().lines().map_while(Result::ok) {
            match question.as_str() {
                "write" => {
                    program.written.send_replace(program.history.len());
                    println!("write all");
                }
                _ => println!("memory {}", serde_json::to_string(&memory()).unwrap()),
            }
        }
    };
    tokio::task::spawn_blocking(answer).await.unwrap();
}

/// What a follower got: the exit code, where the streams ended, and their hashes.
type Whole = (i64, Cursor, [Vec<u8>; 2]);

/// Waits at the gate when the first bytes are there, and then reads to the end.
async fn follow_events(channel: Channel, gate: Arc<Barrier>) -> Whole {
    let mut follower = EventFollower::open(channel).await;
    follower.take(1).await;
    gate.wait().await;
    let end = follower.take(u64::MAX).await.unwrap();
    let at = follower.at;
    let hashes = follower.hashes();
    for (stream, hash) in ["stdout", "stderr"].into_iter().zip(&hashes) {
        assert_eq!(end[stream]["sha256"], hex::encode(hash).as_str(), "{stream}: {end}");
    }
    (end["exitCode"].as_i64().unwrap(), at, hashes)
}

async fn follow_grpc(channel: Channel, gate: Arc<Barrier>) -> Whole {
    let mut client = RelayClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut got = Got::default();
    let mut frames = got.follow(&mut client).await.unwrap();
    got.take(&mut frames, 1).await.unwrap();
    gate.wait().await;
    let exit = got.take(&mut frames, u64::MAX).await.unwrap().unwrap();
    let at = got.at;
    let hashes = got.hashes();
    let seal = exit.seal.unwrap();
    for (stream, hash) in [seal.stdout, seal.stderr].into_iter().zip(&hashes) {
        assert_eq!(stream.unwrap().sha256, hash.as_slice());
    }
    (exit.value.into(), at, hashes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_both_faces_get_every_byte_and_cost_the_relay_little() {
    let size = Size::of_this_run();
    if std::env::var_os(ROLE).is_some() {
        return serve().await;
    }
    let test = "relay::tests::crowd::followers_of_both_faces_get_every_byte_and_cost_the_relay_little";
    let (mut relay, hello) = Relay::start(test);
    let [chain, key, ca] = &hello.user;
    remoteprocess_tls::install_crypto_provider();
    let dialer = Dialer::new(Identity::new(chain, key, ca, &"test.local".parse().unwrap()).unwrap());
    let (before, _) = relay.memory();
    let followers = size.events + size.grpc;
    let gate = Arc::new(Barrier::new(followers + 1));
    let mut reading = Vec::new();
    let mut channel = None;
    for number in 0..followers {
        if number % STREAMS == 0 {
            let address = hello.address.to_string();
            channel = Some(dialer.connect(&address, &Role::Operator).await.unwrap());
        }
        let (channel, gate) = (channel.clone().unwrap(), gate.clone());
        reading.push(if number < size.events {
            tokio::spawn(follow_events(channel, gate))
        } else {
            tokio::spawn(follow_grpc(channel, gate))
        });
    }
    timeout(DEADLINE, gate.wait()).await.expect("all follow in time");
    let (attached, _) = relay.memory();
    relay.ask("write");
    let program = program();
    let expected: Whole = (7, program.end(), hashes(&program));
    for whole in timeout(DEADLINE, join_all(reading)).await.expect("in time") {
        assert_eq!(whole.unwrap(), expected);
    }
    let (after, peak) = relay.memory();
    let mib = |bytes: usize| bytes.div_ceil(1 << 20);
    println!(
        "{} SSE and {} gRPC followers: the relay held {} MiB before, {} with all of them, {} at most, {} at the end",
        size.events,
        size.grpc,
        mib(before),
        mib(attached),
        mib(peak),
        mib(after)
    );
    // The ring and the archive, which is in memory here, and what each follower may cost.
    let output = usize::try_from(program.end().stdout + program.end().stderr).unwrap();
    let allowed = before + (16 << 20) + 3 * output + followers * EACH;
    assert!(peak < allowed, "{} MiB, {} allowed", mib(peak), mib(allowed));
}
