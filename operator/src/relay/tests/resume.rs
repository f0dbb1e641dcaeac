//! Readers of the HTTP face whose connections are cut, and streams that are.

use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep};

use super::http_client::{Answer, PROCESS, connect, get};
use super::replica::Replica;
use super::replicas::hashes;
use crate::relay::archive::Archive;
use crate::relay::live::fake_agent::{FakeAgent, Program};

const DEADLINE: Duration = Duration::from_secs(60);

async fn replica() -> Replica {
    Replica::start(&Archive::new(Arc::new(InMemory::new()))).await
}

/// Forty large chunks of stdout, and a little stderr.
pub(super) fn program() -> Arc<Program> {
    let chunks: Vec<(bool, usize)> = (0..40).map(|index| (index % 10 == 9, 40_000 + index * 331)).collect();
    Program::new(&chunks)
}

/// The headers of the whole output, once the attempt has been archived.
pub(super) async fn archived(replica: &Replica, path: &str) -> Answer {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = get(path).head().http1(replica.address).await;
        if answer.headers.contains_key("etag") {
            return answer;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_is_cut_ten_times_has_the_hash_of_its_tag() {
    let program = program();
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let path = format!("{PROCESS}/output?stream=stdout");
    let head = archived(&replica, &path).await;
    replica.record_end();
    let (etag, length) = (head.header("etag").to_owned(), program.end().stdout);
    assert!(head.body.is_empty() && head.header("content-length") == length.to_string());
    assert_eq!(etag, format!("\"{}\"", hex::encode(&hashes(&program)[0])));
    let mut got: Vec<u8> = Vec::new();
    for cut in 0..=10 {
        let ask = get(&path)
            .with("range", format!("bytes={}-", got.len()))
            .with("if-range", &etag);
        let enough = if cut < 10 { 100_000 } else { usize::MAX };
        let answer = ask.http1_until(replica.address, enough).await;
        assert_eq!(answer.status, if cut == 0 { 200 } else { 206 }, "{:?}", answer.headers);
        assert_eq!(answer.is_whole, cut == 10, "after {cut} cuts");
        got.extend_from_slice(&answer.body);
    }
    assert_eq!(format!("\"{}\"", hex::encode(Sha256::digest(&got))), etag);
    let whole = get(&path).http2(replica.address).await;
    assert!(whole.is_whole && whole.body == got);
    let behind = get(&path)
        .with("range", format!("bytes={length}-"))
        .http1(replica.address)
        .await;
    assert_eq!(
        (behind.status, behind.header("content-range")),
        (416, &*format!("bytes */{length}"))
    );
    let part = get(&path).with("range", "bytes=-7").http2(replica.address).await;
    assert_eq!((part.status, &part.body[..]), (206, &got[got.len() - 7..]));
    let other = get(&path)
        .with("range", "bytes=5-")
        .with("if-range", "\"old\"")
        .http1(replica.address)
        .await;
    assert_eq!((other.status, other.body.len()), (200, got.len()));
    let known = get(&path).with("if-none-match", &etag).http1(replica.address).await;
    assert_eq!((known.status, known.body.len()), (304, 0));
    let from = get(format!("{path}&offset=9")).http1(replica.address).await;
    assert!(from.status == 200 && from.is_whole && from.body == got[9..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_followed_stream_is_in_its_trailers() {
    for is_http2 in [false, true] {
        let program = program();
        program.written.send_replace(1);
        let agent = FakeAgent::serve(&program).await;
        let replica = replica().await;
        let (live, address) = (replica.open(&agent), replica.address);
        let ask = |query: &str| get(format!("{PROCESS}/output?stream=stdout{query}")).with("te", "trailers");
        let now = ask("").http1(address).await;
        assert_eq!(
            (now.is_whole, now.trailers["rproc-end"].as_bytes()),
            (true, &b"running"[..])
        );
        let write = async {
            let deadline = Instant::now() + DEADLINE;
            while !live.is_read() {
                assert!(Instant::now() < deadline);
                sleep(Duration::from_millis(10)).await;
            }
            program.written.send_replace(program.history.len());
        };
        let ask = ask("&follow=true");
        let read = async {
            match is_http2 {
                true => ask.http2(address).await,
                false => ask.http1(address).await,
            }
        };
        let (answer, ()) = tokio::join!(read, write);
        assert!(answer.is_whole && answer.header("trailer").contains("rproc-sha256"));
        let trailer = |name: &str| answer.trailers[name].to_str().unwrap();
        assert_eq!(
            (trailer("rproc-end"), trailer("rproc-exit"), trailer("rproc-gaps")),
            ("ended", "code 7", "0")
        );
        assert_eq!(trailer("rproc-offset"), answer.body.len().to_string());
        assert_eq!(trailer("rproc-sha256"), hex::encode(Sha256::digest(&answer.body)));
    }
}

/// Whole events of an answer: id and data.
fn events(answer: &Answer) -> Vec<(Option<String>, Value)> {
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
    let event = |event: &str| {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let data = serde_json::from_str(field("data: ").expect("data")).expect("JSON");
        (field("id: ").map(str::to_owned), data)
    };
    whole
        .split("\n\n")
        .filter(|event| !event.is_empty())
        .map(event)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_source_that_is_cut_ten_times_loses_and_doubles_nothing() {
    let program = program();
    program.written.send_replace(2);
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let (mut id, mut got, mut cuts) = (None::<String>, [Vec::new(), Vec::new()], 0);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut ask = get(format!("{PROCESS}/output?follow=true")).with("accept", "text/event-stream");
        if let Some(id) = &id {
            ask = ask.with("last-event-id", id);
        }
        let enough = if cuts < 10 { 220_000 } else { usize::MAX };
        program
            .written
            .send_modify(|written| *written = (*written + 4).min(program.history.len()));
        let answer = ask.http1_until(replica.address, enough).await;
        if answer.status == 204 {
            break;
        }
        assert_eq!(answer.status, 200);
        for (at, data) in events(&answer) {
            id = at.or(id);
            if data["type"] == "data" {
                let into = &mut got[usize::from(data["stream"] == "stderr")];
                assert_eq!(data["offset"].as_u64().unwrap(), into.len() as u64, "dense");
                match data["text"].as_str() {
                    Some(text) => into.extend_from_slice(text.as_bytes()),
                    None => {
                        let bytes = data["base64"].as_str().unwrap();
                        let bytes = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, bytes).unwrap();
                        into.extend_from_slice(&bytes);
                    }
                }
            }
        }
        cuts += 1;
        assert!(Instant::now() < deadline, "{cuts}");
    }
    assert!(cuts > 10, "{cuts}");
    assert_eq!(got.map(|bytes| Sha256::digest(&bytes).to_vec()), hashes(&program));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_right_cuts_streams_and_no_cut_looks_like_an_end() {
    let program = program();
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let address = replica.address;
    let raw = get(format!("{PROCESS}/output?follow=true&stream=stdout"));
    let lines = get(format!("{PROCESS}/output?follow=true")).with("accept", "application/x-ndjson");
    let withdraw = async {
        // The authorizer of a replica in tests remembers for 200 ms.
        sleep(Duration::from_millis(600)).await;
        replica.deny("log");
    };
    let (one, two, records, ()) = tokio::join!(raw.http1(address), raw.http2(address), lines.http1(address), withdraw);
    for answer in [one, two] {
        assert_eq!(
            (answer.status, answer.is_whole, answer.body.len()),
            (200, false, 40_000)
        );
    }
    assert!(records.is_whole);
    let last = records.lines().pop().unwrap();
    assert_eq!(
        (&last["type"], &last["problem"]["code"]),
        (&"error".into(), &"PermissionDenied".into())
    );
}

#[tokio::test]
async fn large_headers_are_refused_and_a_client_may_choose_its_protocol() {
    let replica = replica().await;
    let answer = get(PROCESS)
        .with("x-large", "x".repeat(20 << 10))
        .http1(replica.address)
        .await;
    assert_eq!(answer.status, 431);
    let many = (0..200).fold(get(PROCESS), |ask, _| ask.with("x-many", "x"));
    assert_eq!(many.http1(replica.address).await.status, 431);
    for (offered, chosen) in [
        (&[b"h2".as_slice(), b"http/1.1"][..], b"h2".as_slice()),
        (&[b"http/1.1"], b"http/1.1"),
    ] {
        let stream = connect(replica.address, offered).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(chosen));
    }
    let mut stream = connect(replica.address, &[]).await;
    tokio::io::AsyncWriteExt::write_all(
        &mut stream,
        b"GET /openapi.json HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n",
    )
    .await
    .unwrap();
    let mut answer = Vec::new();
    // The connection may end without close_notify.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
}
