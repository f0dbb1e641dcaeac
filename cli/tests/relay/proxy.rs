//! `rproc proxy` in front of a relay of the test: who may pass, what is sent on, and streams that outlive a certificate.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Query;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use remoteprocess_cli::proxy::gate::Gate;
use remoteprocess_cli::proxy::relay::Upstream;
use remoteprocess_cli::proxy::{Proxy, listen};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::service::Routes;

use super::world::{World, world_of};

const LIMIT: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A proxy, and what its session is.
pub(crate) struct Served {
    pub(crate) world: World,
    pub(crate) port: u16,
    pub(crate) token: String,
    task: tokio::task::JoinHandle<Infallible>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn serve(relay: Router, lifetime: Duration) -> Served {
    serve_world(world_of(Routes::from(relay), lifetime).await).await
}

/// A proxy in front of the relay of this world.
pub(crate) async fn serve_world(world: World) -> Served {
    let listener = listen(0).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let gate = Gate::new(port).unwrap();
    let link = gate.link().unwrap();
    let upstream = Arc::new(Upstream::new(Arc::new(world.cluster.clone())));
    let task = tokio::spawn(Proxy::new(gate, upstream, None).serve(listener));
    let mut served = Served {
        world,
        port,
        token: String::new(),
        task,
    };
    let path = link.split_once(&format!(":{port}")).unwrap().1.to_owned();
    let answer = served.ask(&format!("GET {path}"), "Accept: application/json\r\n").await;
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    served.token = serde_json::from_str::<serde_json::Value>(body).unwrap()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    served
}

impl Served {
    /// A connection on which a request was sent.
    async fn open(&self, line: &str, headers: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let (port, token) = (self.port, &self.token);
        let request = format!(
            "{line} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
             {headers}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    /// The whole answer.
    pub(super) async fn ask(&self, line: &str, headers: &str) -> String {
        let mut answer = Vec::new();
        let mut stream = self.open(line, headers).await;
        // An answer that breaks off is an answer of its own.
        let _ = timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8(answer).unwrap()
    }
}

#[tokio::test]
async fn the_relay_gets_what_is_for_it_and_its_answer_comes_back() {
    let seen = Arc::new(Mutex::new(HeaderMap::new()));
    let remember = seen.clone();
    let relay = Router::new()
        .route(
            "/v1/refused",
            get(|| async {
                (
                    StatusCode::FORBIDDEN,
                    [("content-type", "application/problem+json")],
                    "{\"missingRule\":1}",
                )
            }),
        )
        .route(
            "/v1/signal",
            post(move |headers: HeaderMap, body: String| async move {
                *remember.lock().unwrap() = headers;
                body
            }),
        )
        .route(
            "/v1/raw",
            get(|| async {
                let trailers =
                    HeaderMap::from_iter([(http::HeaderName::from_static("rproc-end"), "ended".parse().unwrap())]);
                let frames = [Frame::data(Bytes::from_static(b"raw")), Frame::trailers(trailers)];
                let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
                ([("trailer", "rproc-end")], Body::new(body)).into_response()
            }),
        );
    let served = serve(relay, HOUR).await;
    let refused = served.ask("GET /v1/refused", "").await;
    assert!(
        refused.starts_with("HTTP/1.1 403 ") && refused.contains("missingRule"),
        "{refused}"
    );
    assert!(refused.contains("x-content-type-options: nosniff"), "{refused}");
    let sent = "Cookie: a=b\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    assert!(served.ask("POST /v1/signal", sent).await.contains("{}"));
    let headers = seen.lock().unwrap().clone();
    assert!(headers.contains_key("content-type"), "{headers:?}");
    for secret in ["cookie", "authorization", "origin"] {
        assert!(!headers.contains_key(secret), "{headers:?}");
    }
    let raw = served.ask("GET /v1/raw", "TE: trailers\r\n").await;
    assert!(raw.contains("raw\r\n0\r\nrproc-end: ended\r\n"), "{raw}");
    let absent = served.ask("GET /etc/passwd", "").await;
    assert!(
        absent.starts_with("HTTP/1.1 404 ") && absent.contains("problem+json"),
        "{absent}"
    );
    let deleted = served.ask("DELETE /v1/raw", "").await;
    assert!(deleted.starts_with("HTTP/1.1 405 "), "{deleted}");
}

#[tokio::test]
async fn requests_without_the_session_or_too_large_do_not_reach_the_relay() {
    let relay = Router::new().fallback(|| async { StatusCode::IM_A_TEAPOT });
    let mut served = serve(relay, HOUR).await;
    let cross = served.ask("GET /v1/x", "Origin: http://evil.example\r\n").await;
    assert!(cross.starts_with("HTTP/1.1 403 "), "{cross}");
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let many = served.ask("GET /v1/x", &many).await;
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");
    let large = "Content-Type: application/json\r\nContent-Length: 20000\r\n\r\n".to_owned() + &"x".repeat(20000);
    let large = served.ask("POST /v1/x", &large).await;
    assert!(large.starts_with("HTTP/1.1 413 "), "{large}");
    served.token = "x".to_owned();
    let stranger = served.ask("GET /v1/x", "").await;
    assert!(
        stranger.starts_with("HTTP/1.1 401 ") && stranger.contains("problem+json"),
        "{stranger}"
    );
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let served = serve(Router::new().route("/v1/x", get(|| async { "served" })), HOUR).await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(TcpStream::connect(("127.0.0.1", served.port)).await.unwrap());
    }
    let mut waiting = served.open("GET /v1/x", "").await;
    let mut answer = String::new();
    let early = timeout(Duration::from_millis(100), waiting.read_to_string(&mut answer)).await;
    assert!(early.is_err(), "{answer}");
    drop(idle);
    timeout(LIMIT, waiting.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.ends_with("served"), "{answer}");
}

/// One record per 10 ms, behind a cursor that is its number. The first opening has no end, a later one has 50 records.
fn clock(from: u64, begin: Instant) -> Response {
    let end = if from == 0 { u64::MAX } else { from + 50 };
    let numbers = stream::unfold(from, move |number| async move {
        (number <= end).then_some((number, number + 1))
    });
    let records = numbers.then(move |number| async move {
        sleep_until(begin + Duration::from_millis(10 * number)).await;
        let kind = if number == end { "end" } else { "data" };
        Ok::<_, Infallible>(format!("event: {kind}\nid: {}\ndata: {number}\n\n", number + 1))
    });
    Body::from_stream(records).into_response()
}

#[derive(serde::Deserialize)]
struct From {
    #[serde(default)]
    offset: u64,
    tail: Option<u64>,
}

/// Certificates live for eight seconds, and the relay cuts a connection when its certificate ends.
#[tokio::test]
async fn records_continue_while_the_certificate_is_renewed() {
    let begin = Instant::now();
    let openings = Arc::new(Mutex::new(Vec::new()));
    let opened = openings.clone();
    let relay = Router::new().route(
        "/v1/output",
        get(move |Query(from): Query<From>| async move {
            opened.lock().unwrap().push((from.offset, from.tail));
            clock(from.offset, begin)
        }),
    );
    let served = serve(relay, Duration::from_secs(8)).await;
    let answer = served
        .ask("GET /v1/output?tail=5", "Accept: text/event-stream\r\n")
        .await;
    let numbers: Vec<u64> = answer
        .lines()
        .filter_map(|line| line.strip_prefix("data: ")?.parse().ok())
        .collect();
    let openings = openings.lock().unwrap();
    assert_eq!((openings.len(), openings[0]), (2, (0, Some(5))));
    assert!(openings[1].0 > 0 && openings[1].1.is_none(), "{openings:?}");
    let expected: Vec<u64> = (0..=openings[1].0 + 50).collect();
    assert!(numbers == expected, "{numbers:?}");
    assert!(
        answer.contains("event: end") && answer.ends_with("0\r\n\r\n"),
        "it ends as it should"
    );
    assert!(served.world.signed() >= 2);
}

#[tokio::test]
async fn a_record_is_handed_on_at_once() {
    let next = Arc::new(Notify::new());
    let waits = next.clone();
    let relay = Router::new().route(
        "/v1/output",
        get(move || async move {
            let records = stream::iter([1, 2]).then(move |number| {
                let waits = waits.clone();
                async move {
                    if number == 2 {
                        waits.notified().await;
                    }
                    Ok::<_, Infallible>(format!("{{\"type\":\"data\",\"cursor\":\"{number}\"}}\n"))
                }
            });
            Body::from_stream(records).into_response()
        }),
    );
    let served = serve(relay, HOUR).await;
    let mut stream = served.open("GET /v1/output", "Accept: application/x-ndjson\r\n").await;
    for number in ["\"1\"", "\"2\""] {
        let mut line = String::new();
        while !line.contains(number) {
            line.clear();
            let read = timeout(LIMIT, stream.read_line(&mut line)).await.unwrap().unwrap();
            assert!(read > 0, "the answer has ended");
        }
        next.notify_one();
    }
}
