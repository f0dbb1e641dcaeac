//! The attacks. Each runs in tasks of its own until it is aborted, and counts what it has tried.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use remoteprocess_api::{RemoteProcess, names};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{ListRequest, ProcessKey, StartRequest, WatchOutputRequest};
use remoteprocess_tls::{Dialer, KeyRequest, Role};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use super::agent::{Agent, Part};
use super::bystanders::ARCHIVED;
use super::target::Target;

/// Addresses of the loopback that strangers come from.
const SOURCES: u8 = 6;
/// Connections that a stranger holds from each of them.
const HELD: usize = 500;
/// Pause between two connections of one stranger from one address: the machine has more to do than to accept them.
const PACE: Duration = Duration::from_millis(10);
/// Pause of an attacker whose last try failed.
const AGAIN: Duration = Duration::from_millis(20);
/// More lines than any output has.
const ALL_LINES: u64 = 1_000_000_000;
/// Readers of a whole archived output, at the same time.
const READERS: usize = 120;
/// Readers that take one message of it at a time, with this pause.
const SLOW_READERS: usize = 40;
const SLOW: Duration = Duration::from_millis(200);

/// How often something was tried.
pub(super) struct Count(AtomicU64);

/// The users who attack, with their groups. What a user may do is in `rights::KINDS`.
#[derive(Clone, Copy)]
pub(super) struct Users {
    /// Who calls without a right.
    caller: User,
    /// Who reads the output of others, with the right to do so.
    reader: User,
}

type User = (&'static str, &'static [&'static str]);

impl Users {
    /// Two, each with limits of their own.
    pub(super) const TWO: Self = Self {
        caller: ("mallory", &[]),
        reader: ("carol", &["system:masters"]),
    };
    /// One who may read output of the namespace, and nothing else.
    pub(super) const ONE: Self = Self {
        caller: ("log-reader", &[]),
        reader: ("log-reader", &[]),
    };
}

/// One way to harm the operator.
pub(super) struct Attack {
    pub name: &'static str,
    pub begin: fn(&Target, Users, &mut JoinSet<()>),
    /// Whether one user with a valid certificate is enough.
    pub by_a_user: bool,
    count: &'static Count,
}

macro_rules! counts {
    ($($name:ident),*) => { $(pub(super) static $name: Count = Count(AtomicU64::new(0));)* };
}

counts!(
    HELLOS, SILENT, IDLE, NAMES, HALVES, STARTS, STALLED, WHOLE, SLOWLY, FRAMES, REQUESTS, MADE, REFUSED
);

/// All of them; hostile objects are apart, because their number is bounded.
pub(super) const ATTACKS: [Attack; 11] = [
    Attack {
        name: "unfinished handshakes of 30 KB, main port",
        begin: |target, _, tasks| hold(target.main, &unfinished_hello(), &HELLOS, tasks),
        by_a_user: false,
        count: &HELLOS,
    },
    Attack {
        name: "silent connections, enrollment port",
        begin: |target, _, tasks| hold(target.enroll, &[], &SILENT, tasks),
        by_a_user: false,
        count: &SILENT,
    },
    Attack {
        name: "idle connections, admin port",
        begin: |target, _, tasks| hold(target.admin, b"GET / HTTP/1.1\r\n", &IDLE, tasks),
        by_a_user: false,
        count: &IDLE,
    },
    Attack {
        name: "calls without a right, names up to 1 MB",
        begin: call_without_right,
        by_a_user: true,
        count: &NAMES,
    },
    Attack {
        name: "half-sent requests",
        begin: send_halves,
        by_a_user: true,
        count: &HALVES,
    },
    Attack {
        name: "starts of an agent without a process",
        begin: start_falsely,
        by_a_user: false,
        count: &STARTS,
    },
    Attack {
        name: "streams that take nothing",
        begin: stall,
        by_a_user: true,
        count: &STALLED,
    },
    Attack {
        name: "reads of the last 10^9 lines of an archive",
        begin: read_all,
        by_a_user: true,
        count: &WHOLE,
    },
    Attack {
        name: "slow reads of them",
        begin: read_slowly,
        by_a_user: true,
        count: &SLOWLY,
    },
    Attack {
        name: "gaps, holes and long texts of an agent",
        begin: send_nonsense,
        by_a_user: false,
        count: &FRAMES,
    },
    Attack {
        name: "certificate requests",
        begin: request_certificates,
        by_a_user: false,
        count: &REQUESTS,
    },
];

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Attack {
    pub(super) fn count(&self) -> u64 {
        self.count.count()
    }
}

/// The first bytes of a handshake that announces more than it sends.
fn unfinished_hello() -> Vec<u8> {
    let mut hello = vec![1, 0, 0xff, 0xf0];
    hello.resize(30_000, 0);
    let record = |part: &[u8]| {
        let [.., high, low] = part.len().to_be_bytes();
        [&[22, 3, 1, high, low], part].concat()
    };
    hello.chunks(16 << 10).flat_map(record).collect()
}

/// Opens connections from several addresses, sends these bytes, and holds them as long as it can.
fn hold(address: SocketAddr, bytes: &[u8], count: &'static Count, tasks: &mut JoinSet<()>) {
    for host in 2..2 + SOURCES {
        let bytes = bytes.to_vec();
        tasks.spawn(async move {
            let mut held = VecDeque::new();
            loop {
                match open(host, address, &bytes).await {
                    Ok(stream) => {
                        count.add();
                        held.push_back(stream);
                        if held.len() > HELD {
                            held.pop_front();
                        }
                        sleep(PACE).await;
                    }
                    Err(_) => sleep(AGAIN).await,
                }
            }
        });
    }
}

async fn open(host: u8, address: SocketAddr, bytes: &[u8]) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, host], 0)))?;
    let mut stream = socket.connect(address).await?;
    stream.write_all(bytes).await?;
    Ok(stream)
}

/// A connection, as soon as there is one.
async fn connect(dialer: &Dialer, address: SocketAddr) -> Channel {
    loop {
        match dialer.connect(&address.to_string(), &Role::Operator).await {
            Ok(channel) => return channel,
            Err(_) => sleep(AGAIN).await,
        }
    }
}

fn call_without_right(target: &Target, users: Users, tasks: &mut JoinSet<()>) {
    for lengths in [[100, 253], [1 << 20, 15 << 10]] {
        let (dialer, address) = (target.user(users.caller.0, users.caller.1), target.main);
        tasks.spawn(async move {
            let mut client = RelayClient::new(connect(&dialer, address).await);
            for length in lengths.into_iter().cycle() {
                let request = ListRequest {
                    protocol: PROTOCOL,
                    namespace: "x".repeat(length),
                };
                if client
                    .list(request)
                    .await
                    .is_err_and(|error| error.code() == tonic::Code::Unavailable)
                {
                    client = RelayClient::new(connect(&dialer, address).await);
                }
                NAMES.add();
            }
        });
    }
}

fn send_halves(target: &Target, users: Users, tasks: &mut JoinSet<()>) {
    for _ in 0..5 {
        let (dialer, address) = (target.user(users.caller.0, users.caller.1), target.main);
        tasks.spawn(async move {
            loop {
                let channel = connect(&dialer, address).await;
                join_all((0..120).map(|_| half(channel.clone()))).await;
            }
        });
    }
}

/// One request that never ends.
async fn half(mut channel: Channel) {
    let frame = Frame::data(Bytes::from(vec![0; 15 << 10]));
    let body = stream::once(async { Ok::<_, Infallible>(frame) }).chain(stream::pending());
    let request = http::Request::post("http://relay/remoteprocess.v1.Relay/GetState")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(StreamBody::new(body)));
    if let (Ok(request), Ok(ready)) = (request, channel.ready().await) {
        HALVES.add();
        // What it is answered does not matter.
        let _ = timeout(Duration::from_secs(15), ready.call(request)).await;
    }
}

fn start_falsely(target: &Target, _: Users, tasks: &mut JoinSet<()>) {
    let (dialer, address) = (target.false_agent(), target.main);
    tasks.spawn(async move {
        let mut client = RelayClient::new(connect(&dialer, address).await);
        for attempt in 1.. {
            let request = StartRequest {
                protocol: PROTOCOL,
                process_uid: "00000000-0000-4000-8000-000000000001".to_owned(),
                attempt,
                address: "169.254.169.254:80".to_owned(),
                launched: attempt.is_multiple_of(2),
                ..StartRequest::default()
            };
            if client
                .start(request)
                .await
                .is_err_and(|error| error.code() == tonic::Code::Unavailable)
            {
                client = RelayClient::new(connect(&dialer, address).await);
            }
            STARTS.add();
        }
    });
}

/// A user with all rights who opens streams and reads none.
fn stall(target: &Target, users: Users, tasks: &mut JoinSet<()>) {
    let (dialer, address) = (target.user(users.reader.0, users.reader.1), target.main);
    tasks.spawn(async move {
        let mut held = VecDeque::new();
        loop {
            let mut client = RelayClient::new(connect(&dialer, address).await);
            for _ in 0..100 {
                let request = WatchOutputRequest {
                    protocol: PROTOCOL,
                    process: Some(ProcessKey {
                        namespace: "good".to_owned(),
                        name: "job-0".to_owned(),
                        ..ProcessKey::default()
                    }),
                    follow: true,
                    ..WatchOutputRequest::default()
                };
                if let Ok(opened) = client.watch_output(request).await {
                    STALLED.add();
                    held.push_back(opened);
                }
                if held.len() > HELD {
                    held.pop_front();
                }
            }
        }
    });
}

/// Asks for the last lines of an output that has fewer of them: the operator searches all of it, and sends all of it.
fn all_lines() -> WatchOutputRequest {
    WatchOutputRequest {
        protocol: PROTOCOL,
        process: Some(ProcessKey {
            namespace: "good".to_owned(),
            name: ARCHIVED.to_owned(),
            ..ProcessKey::default()
        }),
        tail_lines: Some(ALL_LINES),
        ..WatchOutputRequest::default()
    }
}

/// Readers of all of an archived output, again and again, on one connection.
fn read_whole(
    target: &Target,
    (user, groups): User,
    tasks: &mut JoinSet<()>,
    (readers, pause): (usize, Duration),
    count: &'static Count,
) {
    let (dialer, address) = (target.user(user, groups), target.main);
    tasks.spawn(async move {
        let client = RelayClient::new(connect(&dialer, address).await);
        let read = |mut client: RelayClient<Channel>| async move {
            loop {
                match client.watch_output(all_lines()).await {
                    Ok(opened) => {
                        count.add();
                        let mut frames = opened.into_inner();
                        while let Ok(Some(_)) = frames.message().await {
                            sleep(pause).await;
                        }
                    }
                    Err(_) => sleep(AGAIN).await,
                }
            }
        };
        join_all((0..readers).map(|_| read(client.clone()))).await;
    });
}

fn read_all(target: &Target, users: Users, tasks: &mut JoinSet<()>) {
    read_whole(target, users.reader, tasks, (READERS, Duration::ZERO), &WHOLE);
}

fn read_slowly(target: &Target, users: Users, tasks: &mut JoinSet<()>) {
    read_whole(target, users.reader, tasks, (SLOW_READERS, SLOW), &SLOWLY);
}

/// An editor of another namespace who plays the agent of a process there.
fn send_nonsense(target: &Target, _: Users, tasks: &mut JoinSet<()>) {
    static PLAYED: AtomicU64 = AtomicU64::new(0);
    let (site, number) = (target.site(), PLAYED.fetch_add(1, Ordering::Relaxed));
    tasks.spawn(async move {
        let name = format!("false-{number}");
        match Agent::play(&site, "bad", &name, Part::Nonsense(&FRAMES)).await {
            Ok(agent) => {
                std::future::pending::<()>().await;
                drop(agent);
            }
            Err(error) => println!("    {name}: {error:#}"),
        }
    });
}

fn request_certificates(target: &Target, _: Users, tasks: &mut JoinSet<()>) {
    let api: Api<CertificateSigningRequest> = Api::all(target.client.clone());
    tasks.spawn(async move {
        for number in 0.. {
            let Ok(key) = KeyRequest::generate() else { return };
            // A request with more behind it, too, which is denied with a quotation.
            let more = "-----BEGIN CERTIFICATE REQUEST-----\n".repeat(number % 2);
            let request = json!({
                "metadata": {"name": format!("mallory-{number}")},
                "spec": {
                    "signerName": names::CLIENT_SIGNER, "usages": ["client auth"],
                    "request": k8s_openapi::ByteString((key.csr_pem + &more).into_bytes()),
                },
            });
            if let Ok(request) = serde_json::from_value(request)
                && api.create(&PostParams::default(), &request).await.is_ok()
            {
                REQUESTS.add();
            }
        }
    });
}

/// Creates objects that are as odd and as large as the API server lets them be.
pub(super) async fn hostile_objects(target: &Target, number: usize) {
    let api: Api<RemoteProcess> = Api::namespaced(target.client.clone(), "bad");
    let create = |index| {
        let api = api.clone();
        async move {
            let made = match serde_json::from_value(hostile_object(index)) {
                Ok(object) => api.create(&PostParams::default(), &object).await.is_ok(),
                Err(_) => false,
            };
            if made { MADE.add() } else { REFUSED.add() }
        }
    };
    stream::iter(0..number).for_each_concurrent(4, create).await;
}

/// Gives the API server as much to do as [`hostile_objects`], with objects that the operator does not watch.
pub(super) async fn unwatched_objects(target: &Target, number: usize) {
    let api: Api<ConfigMap> = Api::namespaced(target.client.clone(), "bad");
    let create = |index| {
        let api = api.clone();
        async move {
            let object = hostile_object(index);
            let object = json!({"metadata": {"name": format!("c{index}")}, "data": {"object": object.to_string()}});
            if let Ok(object) = serde_json::from_value(object) {
                // The API server may be too busy for it.
                let _ = api.create(&PostParams::default(), &object).await;
            }
        }
    };
    stream::iter(0..number).for_each_concurrent(4, create).await;
}

fn hostile_object(index: usize) -> Value {
    let odd = "\u{202e}\u{0}\u{1b}[2J\r\n\u{feff}é".repeat(1 + index % 7);
    // 180 of these once killed the leader at each start.
    let large = if index.is_multiple_of(16) {
        "y".repeat(60_000)
    } else {
        odd.clone()
    };
    // Few run: the pods of an editor are limited by a quota, and by nothing here.
    let state = if index.is_multiple_of(20) {
        "Running"
    } else {
        ["Paused", "Stopped"][index % 2]
    };
    let mut object = json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {
            "name": format!("x{index}-{}", "-".repeat(index % 40) + "z"),
            "labels": {"remoteprocess.dev/process": "another", "a".repeat(1 + index % 63): "b".repeat(index % 63)},
            "annotations": {"remoteprocess.dev/reason": odd, "remoteprocess.dev/requested-by": large},
        },
        "spec": {
            "image": "busybox", "command": [odd, large], "desiredState": state,
            "env": [{"name": "A", "value": large}, {"name": "B", "value": odd}],
        },
    });
    match index % 5 {
        0 => object["spec"]["retries"] = json!({"limit": 2_147_483_647, "backoff": {"initialSeconds": 0}}),
        1 => object["spec"]["deadlines"] = json!({"startSeconds": 1, "runSeconds": 1}),
        2 => object["spec"]["stdin"] = json!(true),
        3 => object["metadata"]["finalizers"] = json!(["example.com/never"]),
        4 => {
            object["spec"]["stdinFrom"] = json!({"configMapKeyRef": {"name": "x".repeat(1 + index % 253), "key": odd}})
        }
        _ => {}
    }
    object
}
