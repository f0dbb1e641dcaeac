//! A follower of server-sent events over HTTP/2 that keeps hashes, not bytes.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Request;
use http_body_util::BodyExt;
use remoteprocess_proto::v1::{Cursor, Stream};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use super::http_client::PROCESS;

/// What it has received so far, without holes, and what is to come.
pub(super) struct EventFollower {
    pub at: Cursor,
    hashes: [Sha256; 2],
    body: Body,
    /// The beginning of an event.
    rest: Vec<u8>,
}

impl EventFollower {
    /// Follows the process of the tests from its first byte on.
    pub(super) async fn open(mut channel: Channel) -> Self {
        let request = Request::get(format!("http://relay{PROCESS}/output?follow=true"))
            .header("accept", "text/event-stream")
            .body(Body::empty())
            .unwrap();
        let response = channel.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Self {
            at: Cursor::default(),
            hashes: Default::default(),
            body: response.into_body(),
            rest: Vec::new(),
        }
    }

    /// Takes records until there are `enough` bytes, or until the last record, which it returns.
    pub(super) async fn take(&mut self, enough: u64) -> Option<Value> {
        while self.at.stdout + self.at.stderr < enough {
            let record = self.record().await;
            match record["type"].as_str().unwrap() {
                "data" => self.add(&record),
                "end" => return Some(record),
                "position" | "state" => {}
                other => panic!("{other}: {record}"),
            }
        }
        None
    }

    pub(super) fn hashes(self) -> [Vec<u8>; 2] {
        self.hashes.map(|hash| hash.finalize().to_vec())
    }

    fn add(&mut self, record: &Value) {
        let bytes = match record["text"].as_str() {
            Some(text) => text.as_bytes().to_vec(),
            None => BASE64_STANDARD.decode(record["base64"].as_str().unwrap()).unwrap(),
        };
        let stream = match record["stream"].as_str() {
            Some("stderr") => Stream::Stderr,
            _ => Stream::Stdout,
        };
        let at = self.at.of(stream);
        assert_eq!(record["offset"], at, "dense");
        self.at.set(stream, at + bytes.len() as u64);
        self.hashes[usize::from(stream == Stream::Stderr)].update(&bytes);
    }

    /// The data of the next event.
    async fn record(&mut self) -> Value {
        // A thousand followers leave the connections their turn, to answer the relay's pings.
        tokio::task::yield_now().await;
        let mut searched = 0;
        loop {
            let found = self.rest[searched..].windows(2).position(|two| two == b"\n\n");
            if let Some(end) = found.map(|at| searched + at) {
                let event: Vec<u8> = self.rest.drain(..end + 2).collect();
                let data = event
                    .split(|byte| *byte == b'\n')
                    .find_map(|line| line.strip_prefix(b"data: "));
                return serde_json::from_slice(data.expect("data")).unwrap();
            }
            searched = self.rest.len().saturating_sub(1);
            let frame = self.body.frame().await.expect("an end").expect("a whole stream");
            self.rest.extend_from_slice(&frame.into_data().expect("data"));
        }
    }
}
