//! The HTTP face as a client sees it: one answer, and its records.

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use memchr::{memchr_iter, memrchr};
use serde::Deserialize;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use crate::operator::{NAME, NAMESPACE};

/// The path of the output; raw output is one stream.
pub(crate) fn path() -> String {
    format!("/v1/namespaces/{NAMESPACE}/processes/{NAME}/output?follow=true")
}

/// An answer that is being received.
pub(crate) struct Answer(Body);

impl Answer {
    /// Follows standard output as raw bytes, or everything as records of the media type `accept`.
    pub(crate) async fn open(mut channel: Channel, accept: Option<&str>) -> Self {
        let stream = if accept.is_none() { "&stream=stdout" } else { "" };
        let request = Request::get(format!("http://relay{}{stream}", path()))
            .header("accept", accept.unwrap_or("application/octet-stream"))
            .body(Body::empty())
            .unwrap();
        let response = channel.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Self(response.into_body())
    }

    /// The next bytes; `None` at the end, which has trailers.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let frame = self.0.frame().await?.unwrap();
        frame.into_data().ok()
    }
}

/// A record.
#[derive(Deserialize)]
pub(crate) struct Record {
    #[serde(rename = "type")]
    pub kind: String,
    /// Of a `data`: the measured program writes text.
    #[serde(default)]
    pub text: String,
    /// Of an `end`.
    pub stdout: Option<Sealed>,
}

/// What the relay says about a whole stream.
#[derive(Deserialize)]
pub(crate) struct Sealed {
    pub sha256: Option<String>,
}

/// Lines of JSON or server-sent events, in pieces as they arrive.
#[derive(Default)]
pub(crate) struct Records(Vec<u8>);

impl Records {
    /// The records that are complete with these bytes.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<Record> {
        // What came before has no line break.
        let whole = memrchr(b'\n', bytes).map_or(0, |last| last + 1);
        self.0.extend_from_slice(&bytes[..whole]);
        let mut records = Vec::new();
        if whole > 0 {
            let mut from = 0;
            for to in memchr_iter(b'\n', &self.0) {
                records.extend(record(&self.0[from..to]));
                from = to + 1;
            }
            self.0.clear();
        }
        self.0.extend_from_slice(&bytes[whole..]);
        records
    }
}

/// The record in a line, unless the line is another one of an event.
fn record(line: &[u8]) -> Option<Record> {
    let data = match line.first() {
        Some(b'{') => line,
        _ => line.strip_prefix(b"data: ")?,
    };
    Some(serde_json::from_slice(data).unwrap())
}
