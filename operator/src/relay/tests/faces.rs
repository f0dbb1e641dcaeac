//! Every case through gRPC, through HTTP/2 and through HTTP/1.1, against the same relay: bytes, gaps, ends, refusals.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use object_store::memory::InMemory;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{
    Cursor, GapReason, GetStateRequest, ListRequest, ProcessKey, SignalRequest, SignalTarget, StopRequest, Stream,
    WatchOutputRequest,
};
use remoteprocess_tls::{Dialer, Role};
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::http_client::{Answer, Ask, PROCESS, get, post};
use super::replica::{Replica, UID};
use crate::relay::archive::Archive;
use crate::relay::http::routes::ROUTES;
use crate::relay::live::fake_agent::{FakeAgent, Program, identity};
use crate::relay::piece::{Placed, gap};

const DEADLINE: Duration = Duration::from_secs(60);

/// What a reader got through one of the faces.
#[derive(Debug, Default, PartialEq)]
struct Got {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Stream, from, to and reason.
    gaps: Vec<(String, u64, Option<u64>, String)>,
    /// Outcome, value and whether everything is sealed.
    exit: Option<(String, bool)>,
    /// Code and message.
    error: Option<(String, String)>,
}

impl Got {
    fn add(&mut self, stream: &str, bytes: &[u8]) {
        let into = if stream == "stderr" {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        into.extend_from_slice(bytes);
    }

    fn refused(status: &Status) -> Self {
        Self {
            error: Some((format!("{:?}", status.code()), status.message().to_owned())),
            ..Self::default()
        }
    }

    fn problem(problem: &Value) -> Self {
        let text = |name: &str| problem[name].as_str().unwrap().to_owned();
        Self {
            error: Some((text("code"), text("detail"))),
            ..Self::default()
        }
    }
}

/// Where and what to read.
#[derive(Clone, Debug, Default)]
struct Case {
    attempt: u32,
    stream: Option<Stream>,
    cursor: Option<Cursor>,
    tail: Option<u64>,
    follow: bool,
    uid: Option<&'static str>,
}

impl Case {
    async fn grpc(&self, replica: &Replica) -> Got {
        let request = WatchOutputRequest {
            protocol: PROTOCOL,
            process: Some(ProcessKey {
                uid: self.uid.unwrap_or_default().to_owned(),
                ..hello()
            }),
            attempt: self.attempt,
            stream: self.stream.unwrap_or_default().into(),
            cursor: self.cursor,
            tail_lines: self.tail,
            follow: self.follow,
            ..WatchOutputRequest::default()
        };
        let mut frames = match replica.client().await.watch_output(request).await {
            Ok(frames) => frames.into_inner(),
            Err(status) => return Got::refused(&status),
        };
        let mut got = Got::default();
        loop {
            match timeout(DEADLINE, frames.message()).await.expect("in time") {
                Ok(None) => return got,
                Err(status) => {
                    got.error = Got::refused(&status).error;
                    return got;
                }
                Ok(Some(frame)) => match frame.frame.unwrap() {
                    Frame::Data(data) => got.add(data.stream().name(), &data.bytes),
                    Frame::Gap(gap) => got.gaps.push((
                        gap.stream().name().to_owned(),
                        gap.from,
                        gap.to,
                        gap.reason().to_string(),
                    )),
                    Frame::Exit(exit) => {
                        let outcome = match exit.outcome() {
                            Outcome::Code => format!("code {}", exit.value),
                            other => format!("{other:?}"),
                        };
                        got.exit = Some((outcome, exit.sealed));
                    }
                    Frame::State(_) | Frame::Heartbeat(_) | Frame::Spool(_) => {}
                },
            }
        }
    }

    fn ask(&self) -> Ask {
        let mut query = vec![format!("follow={}", self.follow)];
        query.extend(self.stream.map(|stream| format!("stream={}", stream.name())));
        query.extend((self.attempt != 0).then(|| format!("attempt={}", self.attempt)));
        query.extend(self.tail.map(|lines| format!("tail={lines}")));
        query.extend(self.uid.map(|uid| format!("uid={uid}")));
        query.extend(self.cursor.map(|at| match self.stream {
            Some(stream) => format!("offset={}", at.of(stream)),
            None => format!("offset={UID}.1.{}.{}", at.stdout, at.stderr),
        }));
        get(format!("{PROCESS}/output?{}", query.join("&")))
    }

    /// Through HTTP, as JSON lines and as server-sent events, over both versions.
    async fn http(&self, replica: &Replica) -> Vec<(&'static str, Got)> {
        let lines = self.ask().with("accept", "application/x-ndjson");
        let events = self.ask().with("accept", "text/event-stream");
        let address = replica.address;
        vec![
            ("lines over HTTP/2", records(lines.http2(address).await.checked())),
            ("lines over HTTP/1.1", records(lines.http1(address).await.checked())),
            (
                "events over HTTP/2",
                records(data_of(events.http2(address).await).checked()),
            ),
            (
                "events over HTTP/1.1",
                records(data_of(events.http1(address).await).checked()),
            ),
        ]
    }
}

impl Answer {
    fn checked(self) -> Self {
        assert!(self.is_whole, "{self:?}");
        self
    }
}

/// The data of server-sent events as lines.
fn data_of(answer: Answer) -> Answer {
    if answer.status != 200 {
        return answer;
    }
    let text = String::from_utf8(answer.body.clone()).unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    Answer {
        body: data.flat_map(|data| [data.as_bytes(), b"\n"].concat()).collect(),
        ..answer
    }
}

fn records(answer: Answer) -> Got {
    if answer.status != 200 {
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert_eq!(answer.json()["status"], answer.status);
        return Got::problem(&answer.json());
    }
    let (mut got, mut is_over) = (Got::default(), false);
    for record in answer.lines() {
        assert!(!is_over, "nothing follows the last record");
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        match record["type"].as_str().unwrap() {
            "data" => {
                let bytes = match record["text"].as_str() {
                    Some(text) => text.as_bytes().to_vec(),
                    None => BASE64_STANDARD.decode(text("base64")).unwrap(),
                };
                got.add(&text("stream"), &bytes);
            }
            "gap" => got.gaps.push((
                text("stream"),
                record["from"].as_u64().unwrap(),
                record["to"].as_u64(),
                text("reason"),
            )),
            "end" => {
                is_over = true;
                if record["running"] == false {
                    let outcome = match record["exitCode"].as_i64() {
                        Some(code) => format!("code {code}"),
                        None => text("outcome"),
                    };
                    got.exit = Some((outcome, record["sealed"] == true));
                }
            }
            "error" => {
                is_over = true;
                got.error = Got::problem(&record["problem"]).error;
            }
            _ => {}
        }
    }
    assert!(is_over, "{answer:?}");
    got
}

fn hello() -> ProcessKey {
    ProcessKey {
        namespace: "default".to_owned(),
        name: "hello".to_owned(),
        uid: String::new(),
    }
}

async fn replica() -> Replica {
    Replica::start(&Archive::new(Arc::new(InMemory::new()))).await
}

/// A replica that has never allowed this subresource to a user, so it remembers no right to it.
async fn denying(subresource: &str) -> Replica {
    let replica = replica().await;
    replica.deny(subresource);
    replica
}

/// Both faces give the same; returns what that is.
async fn same(replica: &Replica, case: &Case) -> Got {
    let expected = case.grpc(replica).await;
    for (form, got) in case.http(replica).await {
        assert_eq!(got, expected, "{form}: {case:?}");
    }
    expected
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_faces_give_the_same_bytes_and_ends() {
    let chunks: Vec<(bool, usize)> = (0..60).map(|index| (index % 3 == 0, 1 + index * 997 % 9000)).collect();
    let program = Program::new(&chunks);
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let follow = Case {
        follow: true,
        ..Case::default()
    };
    let whole = same(&replica, &follow).await;
    assert_eq!(whole.stdout.len() as u64, program.end().stdout);
    assert_eq!(whole.exit.as_ref().map(|exit| exit.0.as_str()), Some("code 7"));
    replica.record_end();
    let middle = Some(Cursor {
        stdout: 5000,
        stderr: 77,
    });
    for stream in [None, Some(Stream::Stdout), Some(Stream::Stderr)] {
        for (cursor, tail) in [(None, None), (middle, None), (None, Some(3)), (None, Some(0))] {
            let case = Case {
                stream,
                cursor,
                tail,
                ..follow.clone()
            };
            let got = same(&replica, &case).await;
            assert!(got.exit.is_some() && got.error.is_none(), "{case:?}");
        }
    }
    // Raw bytes are those of the records.
    for (stream, bytes) in [("stdout", &whole.stdout), ("stderr", &whole.stderr)] {
        let ask = get(format!("{PROCESS}/output?follow=true&stream={stream}")).with("te", "trailers");
        for answer in [ask.http1(replica.address).await, ask.http2(replica.address).await] {
            assert!(answer.is_whole && answer.body == *bytes, "{stream}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_faces_report_gaps_in_place_and_raw_output_fails() {
    let mut program = Program::new(&[(false, 1000), (false, 500), (true, 10), (false, 2000)]);
    let lost = gap(Stream::Stdout, 1000, Some(1500), GapReason::SpoolFull);
    let history = &mut Arc::get_mut(&mut program).unwrap().history;
    history[1] = Placed {
        start: history[1].start,
        piece: lost,
    };
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let follow = Case {
        follow: true,
        ..Case::default()
    };
    let got = same(&replica, &follow).await;
    assert_eq!(
        got.gaps,
        [("stdout".to_owned(), 1000, Some(1500), "SpoolFull".to_owned())]
    );
    assert_eq!((got.stdout.len(), got.stderr.len()), (3000, 10));
    replica.record_end();
    // Raw output is refused if the gap is known in time, and otherwise breaks off.
    let raw = |offset: u64| get(format!("{PROCESS}/output?stream=stdout&follow=true&offset={offset}"));
    for answer in [
        raw(1000).http1(replica.address).await,
        raw(1200).http2(replica.address).await,
    ] {
        assert_eq!(answer.status, 410, "{answer:?}");
        let gap = answer.json()["gap"].clone();
        assert_eq!((&gap["to"], &gap["reason"]), (&json!(1500), &json!("SpoolFull")));
    }
    for answer in [raw(0).http1(replica.address).await, raw(0).http2(replica.address).await] {
        assert!(answer.status == 410 || !answer.is_whole, "{answer:?}");
    }
    let behind = raw(1500).http1(replica.address).await;
    assert_eq!((behind.status, behind.body.len(), behind.is_whole), (200, 2000, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_faces_refuse_the_same() {
    let program = Program::new(&[(false, 10)]);
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let attempt = Case {
        attempt: 5,
        ..Case::default()
    };
    let uid = Case {
        uid: Some("other"),
        ..Case::default()
    };
    for case in [attempt, uid] {
        assert_eq!(same(&replica, &case).await.error.unwrap().0, "NotFound");
    }
    let replica = denying("log").await;
    let denied = same(&replica, &Case::default()).await;
    let (code, message) = denied.error.unwrap();
    assert_eq!(code, "PermissionDenied");
    assert!(message.contains("resources: [remoteprocesses/log]"), "{message}");
    let rule = Case::default()
        .ask()
        .with("accept", "application/x-ndjson")
        .http2(replica.address)
        .await;
    assert_eq!(
        (rule.status, &rule.json()["missingRule"]["verbs"]),
        (403, &json!(["get"]))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_are_those_of_the_object_and_need_a_right() {
    let replica = replica().await;
    let mut client = replica.client().await;
    let request = GetStateRequest {
        protocol: PROTOCOL,
        process: Some(hello()),
    };
    let state = client
        .get_state(request.clone())
        .await
        .unwrap()
        .into_inner()
        .process
        .unwrap();
    let one = get(PROCESS).http1(replica.address).await;
    assert_eq!((one.status, one.header("content-type")), (200, "application/json"));
    let one = one.json();
    assert_eq!(one["metadata"]["uid"], state.process.unwrap().uid.as_str());
    assert_eq!(one["status"]["phase"], "Running");
    let listed = get("/v1/namespaces/default/processes?phase=Running&limit=1")
        .http2(replica.address)
        .await;
    assert_eq!(listed.json()["items"], json!([one]));
    let attempt = get(format!("{PROCESS}/attempts/1")).http2(replica.address).await.json();
    assert_eq!(attempt, one["status"]["attempts"][0]);
    for (path, status) in [
        (format!("{PROCESS}/attempts/9"), 404),
        (format!("{PROCESS}/attempts/x"), 400),
        ("/v1/namespaces/default/processes/other".to_owned(), 404),
        ("/v1/namespaces/default/processes/Other".to_owned(), 400),
        ("/v1/namespaces/default/processes?color=red".to_owned(), 400),
        ("/v1/nothing".to_owned(), 404),
        (format!("{PROCESS}/signal"), 405),
    ] {
        let answer = get(&path).http2(replica.address).await;
        assert_eq!(
            (answer.status, answer.json()["status"].as_u64()),
            (status, Some(status.into())),
            "{path}"
        );
    }
    let replica = denying("").await;
    let mut client = replica.client().await;
    let refused = client.get_state(request).await.unwrap_err();
    let answer = get(PROCESS).http1(replica.address).await;
    assert_eq!(
        (answer.status, answer.json()["detail"].as_str()),
        (403, Some(refused.message()))
    );
    let request = ListRequest {
        protocol: PROTOCOL,
        namespace: "default".to_owned(),
    };
    let refused = client.list(request).await.unwrap_err();
    let answer = get("/v1/namespaces/default/processes").http1(replica.address).await;
    assert_eq!(
        (answer.status, answer.json()["detail"].as_str()),
        (403, Some(refused.message()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_and_stops_reach_the_agent_alike() {
    let program = Program::new(&[(false, 10), (false, 10)]);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let mut client = replica.client().await;
    let (protocol, process) = (PROTOCOL, Some(hello()));
    let signal = SignalRequest {
        protocol,
        process: process.clone(),
        request_id: "once".to_owned(),
        number: 10,
        target: SignalTarget::Group.into(),
    };
    client.signal(signal).await.unwrap();
    let body = json!({"signal": "USR1", "target": "group", "requestId": "once"});
    let answer = post(format!("{PROCESS}/signal"), &body).http1(replica.address).await;
    assert_eq!(answer.status, 204, "{answer:?}");
    let stop = StopRequest {
        protocol,
        process,
        signal: Some(2),
        grace_seconds: Some(9),
        message: "why".to_owned(),
    };
    client.stop(stop).await.unwrap();
    let body = json!({"signal": "SIGINT", "graceSeconds": 9, "message": "why"});
    let answer = post(format!("{PROCESS}/stop"), &body).http2(replica.address).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let signals = program.signals.lock().unwrap().clone();
    assert_eq!((signals.len(), &signals[0]), (2, &signals[1]));
    let stops = program.stops.lock().unwrap().clone();
    assert_eq!((stops.len(), &stops[0]), (2, &stops[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_body_or_a_missing_right_reaches_no_agent() {
    let program = Program::new(&[(false, 10), (false, 10)]);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let url = format!("{PROCESS}/signal");
    let large = post(&url, &json!({"signal": "x".repeat(17 << 10)}));
    for (ask, status) in [
        (post(&url, &json!({"signal": "SIGNONE"})), 400),
        (post(&url, &json!({"signal": "TERM", "force": true})), 400),
        (post(&url, &json!({})), 400),
        (
            Ask {
                headers: Vec::new(),
                ..post(&url, &json!({"signal": "TERM"}))
            },
            415,
        ),
        (large, 413),
    ] {
        for answer in [ask.http1(replica.address).await, ask.http2(replica.address).await] {
            assert_eq!(answer.status, status, "{answer:?}");
        }
    }
    let replica = denying("signal").await;
    replica.open(&agent);
    for path in ["signal", "stop"] {
        let body = if path == "signal" {
            json!({"signal": "TERM"})
        } else {
            json!({})
        };
        let answer = post(format!("{PROCESS}/{path}"), &body).http1(replica.address).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (403, &json!("PermissionDenied"))
        );
    }
    assert!(program.signals.lock().unwrap().is_empty() && program.stops.lock().unwrap().is_empty());
}

#[tokio::test]
async fn no_route_serves_another_role() {
    let replica = replica().await;
    let agent = Role::Agent {
        namespace: "default".to_owned(),
        pod_uid: "pod-1".to_owned(),
    };
    for role in [agent, Role::Operator] {
        let dialer = Dialer::new(identity(&role));
        for route in ROUTES {
            let ask = Ask {
                method: route.method.parse().unwrap(),
                ..get(route.path.replace(['{', '}'], ""))
            };
            let answer = ask.http2_as(replica.address, &dialer).await;
            assert_eq!(answer.status, 403, "{} {} by {role}", route.method, route.path);
        }
    }
}

#[tokio::test]
async fn each_route_asks_for_the_right_of_its_table() {
    for route in ROUTES {
        let Some(action) = route.action else { continue };
        let replica = denying(action.rule().1).await;
        let path = route.path.replace("{namespace}", "default").replace("{name}", "hello");
        let mut ask = post(path.replace("{attempt}", "1"), &json!({}));
        ask.method = route.method.parse().unwrap();
        if ask.path.ends_with("/signal") {
            ask.body = b"{\"signal\": \"TERM\"}".to_vec();
        }
        let ask = ask.with("accept", "application/x-ndjson");
        let answer = ask.http2(replica.address).await;
        assert_eq!(answer.status, 403, "{} {}: {answer:?}", route.method, route.path);
        assert_eq!(
            answer.json()["missingRule"]["verbs"],
            json!([action.rule().0]),
            "{}",
            route.path
        );
    }
}

/// A channel as this role.
async fn channel(replica: &Replica, role: &Role) -> tonic::transport::Channel {
    let dialer = Dialer::new(identity(role));
    dialer
        .connect(&replica.address.to_string(), &Role::Operator)
        .await
        .unwrap()
}

#[tokio::test]
async fn grpc_tools_learn_health_and_methods() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let replica = replica().await;
    let mut health = HealthClient::new(channel(&replica, &Role::User).await);
    for (service, expected) in [
        ("", Ok(1)),
        ("remoteprocess.v1.Relay", Ok(1)),
        ("remoteprocess.v1.Executor", Err(Code::NotFound)),
    ] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await;
        let answer = answer
            .map(|answer| answer.into_inner().status)
            .map_err(|status| status.code());
        assert_eq!(answer, expected, "{service}");
    }
    let watched = health.watch(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(watched.code(), Code::Unimplemented);
    assert_eq!(
        services(channel(&replica, &Role::User).await).await,
        ["grpc.health.v1.Health", "remoteprocess.v1.Relay"]
    );
}

async fn services(channel: tonic::transport::Channel) -> Vec<String> {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let mut client = ServerReflectionClient::new(channel);
    let mut ask = async |message: MessageRequest| {
        let request = ServerReflectionRequest {
            message_request: Some(message),
            ..ServerReflectionRequest::default()
        };
        let answers = client.server_reflection_info(tokio_stream::iter([request])).await;
        answers
            .unwrap()
            .into_inner()
            .message()
            .await
            .unwrap()
            .unwrap()
            .message_response
    };
    let symbol = "remoteprocess.v1.WatchOutputRequest".to_owned();
    let file = ask(MessageRequest::FileContainingSymbol(symbol)).await;
    assert!(
        matches!(&file, Some(MessageResponse::FileDescriptorResponse(files)) if !files.file_descriptor_proto.is_empty()),
        "{file:?}"
    );
    let Some(MessageResponse::ListServicesResponse(list)) = ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list");
    };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn health_and_reflection_are_for_users() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let replica = replica().await;
    let agent = Role::Agent {
        namespace: "default".to_owned(),
        pod_uid: "pod-1".to_owned(),
    };
    for role in [agent, Role::Operator] {
        let mut health = HealthClient::new(channel(&replica, &role).await);
        let refused = health.check(HealthCheckRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{role}");
    }
}
