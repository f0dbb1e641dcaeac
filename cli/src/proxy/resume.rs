//! A stream of records that moves to the next connection when the certificate of its own is renewed.
//!
//! Only whole records are handed on, so a record is a place to change over: the next answer begins behind the cursor of
//! the last one. Every other end is handed on as it is, because the client decides when to try again.

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::header::ACCEPT;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde::Deserialize;
use std::sync::Arc;
use tonic::body::Body as Answer;

use super::Body;
use super::problem::Problem;
use super::relay::{Outgoing, Upstream};

/// Sends a request on, and returns the answer as it comes.
pub(super) async fn forward(upstream: &Arc<Upstream>, head: Parts, body: Bytes) -> Result<Response<Body>, Problem> {
    let form = Form::of(&head);
    let request = Outgoing::of(head, body)?;
    let (answer, number) = upstream.send(&request).await?;
    let is_stream = answer.status() == StatusCode::OK;
    let (head, body) = answer.into_parts();
    let body = match form.filter(|_| is_stream) {
        Some(form) => Resumed::new(upstream.clone(), request, form, (body, number)).into_body(),
        None => body.map_err(Into::into).boxed_unsync(),
    };
    Ok(Response::from_parts(head, body))
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A record that is larger is handed on in parts, and the stream then ends with its connection.
const MAX_RECORD: usize = 16 << 20;

/// How the records of an answer are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `application/x-ndjson`
    Lines,
    /// `text/event-stream`
    Events,
}

impl Form {
    /// The form of the records that a request asks for; `None` if it asks for something else.
    fn of(head: &Parts) -> Option<Self> {
        let is_output = head.method == Method::GET && head.uri.path().ends_with("/output");
        let accepted = head.headers.get(ACCEPT).filter(|_| is_output)?.to_str().ok()?;
        match accepted.split([',', ';']).next()?.trim() {
            "application/x-ndjson" => Some(Self::Lines),
            "text/event-stream" => Some(Self::Events),
            _ => None,
        }
    }

    /// What ends a record.
    const fn separator(self) -> &'static [u8] {
        match self {
            Self::Lines => b"\n",
            Self::Events => b"\n\n",
        }
    }
}

/// Cuts a stream of bytes into records, and remembers the cursor of the last one.
#[derive(Debug)]
struct Records {
    form: Form,
    partial: BytesMut,
    cursor: Option<String>,
    /// After an `end` or an `error`, and in a record that is too large, there is no way to change over.
    is_fixed: bool,
}

/// The part of a line of JSON that matters here.
#[derive(Deserialize)]
struct Line<'a> {
    r#type: &'a str,
    #[serde(default)]
    cursor: Option<&'a str>,
}

impl Records {
    fn new(form: Form) -> Self {
        Self {
            form,
            partial: BytesMut::new(),
            cursor: None,
            is_fixed: false,
        }
    }

    /// The whole records that end in these bytes.
    fn take(&mut self, bytes: &[u8]) -> Bytes {
        let seen = self.partial.len().saturating_sub(1);
        self.partial.extend_from_slice(bytes);
        if self.is_fixed {
            return self.rest();
        }
        let separator = self.form.separator();
        let Some(last) = memchr::memmem::rfind(&self.partial[seen..], separator) else {
            if self.partial.len() > MAX_RECORD {
                self.is_fixed = true;
                return self.rest();
            }
            return Bytes::new();
        };
        let whole = self.partial.split_to(seen + last + separator.len()).freeze();
        self.note(&whole);
        whole
    }

    /// Reads the records backwards to the last cursor.
    fn note(&mut self, whole: &[u8]) {
        let separator = self.form.separator();
        let mut rest = &whole[..whole.len() - separator.len()];
        loop {
            let begin = memchr::memmem::rfind(rest, separator).map_or(0, |at| at + separator.len());
            let (kind, cursor) = self.parse(&rest[begin..]);
            self.is_fixed |= ["end", "error"].contains(&kind.as_str());
            if cursor.is_some() {
                self.cursor = cursor;
                return;
            }
            if begin == 0 {
                return;
            }
            rest = &rest[..begin - separator.len()];
        }
    }

    /// The type and the cursor of a record.
    fn parse(&self, record: &[u8]) -> (String, Option<String>) {
        let text = std::str::from_utf8(record).unwrap_or_default();
        match self.form {
            Form::Lines => match serde_json::from_str::<Line<'_>>(text) {
                Ok(line) => (line.r#type.to_owned(), line.cursor.map(str::to_owned)),
                Err(_) => (String::new(), None),
            },
            Form::Events => {
                let field = |name: &str| {
                    text.lines()
                        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                };
                (
                    field("event").unwrap_or_default().to_owned(),
                    field("id").map(str::to_owned),
                )
            }
        }
    }

    /// What is not handed on yet.
    fn rest(&mut self) -> Bytes {
        self.partial.split().freeze()
    }
}

/// A stream of records, and what is needed to open its continuation.
struct Resumed {
    upstream: Arc<Upstream>,
    request: Outgoing,
    records: Records,
    body: Answer,
    number: u64,
}

/// What happens next to a stream.
enum Next {
    Frame(Option<Result<Frame<Bytes>, tonic::Status>>),
    Replaced(u64),
}

impl Resumed {
    /// The stream of an answer that came over the connection with this number.
    fn new(upstream: Arc<Upstream>, request: Outgoing, form: Form, (body, number): (Answer, u64)) -> Self {
        Self {
            upstream,
            request,
            records: Records::new(form),
            body,
            number,
        }
    }

    /// The body of the answer to the client.
    fn into_body(self) -> Body {
        StreamBody::new(self.frames().boxed()).boxed_unsync()
    }

    fn frames(self) -> impl Stream<Item = Result<Frame<Bytes>, Error>> + Send {
        stream::unfold(Some(self), |state| async move {
            let mut stream = state?;
            let frame = stream.next().await?;
            let next = frame.is_ok().then_some(stream);
            Some((frame, next))
        })
    }

    async fn next(&mut self) -> Option<Result<Frame<Bytes>, Error>> {
        loop {
            let next = {
                let upstream = self.upstream.clone();
                tokio::select! {
                    biased;
                    number = upstream.is_replaced(self.number) => Next::Replaced(number),
                    frame = self.body.frame() => Next::Frame(frame),
                }
            };
            match next {
                Next::Replaced(number) => self.change_over(number).await,
                Next::Frame(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => {
                        let whole = self.records.take(&bytes);
                        if !whole.is_empty() {
                            return Some(Ok(Frame::data(whole)));
                        }
                    }
                    Err(trailers) => return Some(Ok(trailers)),
                },
                Next::Frame(Some(Err(status))) => return Some(Err(status.into())),
                Next::Frame(None) => {
                    let rest = self.records.rest();
                    return (!rest.is_empty()).then(|| Ok(Frame::data(rest)));
                }
            }
        }
    }

    /// Continues behind the last whole record. If that is refused, the old connection keeps the stream to its end.
    async fn change_over(&mut self, number: u64) {
        self.number = number;
        if self.records.is_fixed {
            return;
        }
        let request = match &self.records.cursor {
            Some(cursor) => self.request.after(cursor),
            None => Ok(self.request.clone()),
        };
        let Ok(request) = request else { return };
        if let Ok((answer, number)) = self.upstream.send(&request).await
            && answer.status() == http::StatusCode::OK
        {
            (self.body, self.number) = (answer.into_body(), number);
            self.records.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const LINES: &str = "{\"type\":\"state\",\"message\":\"x\"}\n{\"type\":\"data\",\"text\":\"a\\n\\\"cursor\\\"\",\"cursor\":\"c1\"}\n\
                         {\"type\":\"gap\",\"cursor\":\"c2\"}\n{\"type\":\"end\",\"running\":false,\"cursor\":\"c3\"}\n";
    const EVENTS: &str = "event: state\ndata: {}\n\nevent: data\nid: c1\ndata: {\"text\":\"id: x\"}\n\n\
                          event: gap\nid: c2\ndata: {}\n\nevent: end\nid: c3\ndata: {}\n\n";

    #[rstest]
    #[case(Form::Lines, LINES)]
    #[case(Form::Events, EVENTS)]
    fn records_stay_whole_however_they_arrive(#[case] form: Form, #[case] text: &str) {
        for size in 1..text.len() {
            let (mut records, mut out, mut cursors) = (Records::new(form), Vec::new(), Vec::new());
            for bytes in text.as_bytes().chunks(size) {
                let whole = records.take(bytes);
                assert!(whole.is_empty() || whole.ends_with(form.separator()), "{size}");
                out.extend_from_slice(&whole);
                cursors.extend(records.cursor.clone());
                assert_eq!(records.is_fixed, out.len() == text.len(), "{size}");
            }
            assert_eq!(out, text.as_bytes(), "{size}");
            cursors.dedup();
            assert_eq!(cursors.last().map(String::as_str), Some("c3"), "{size}");
            if size == 1 {
                assert_eq!(cursors, ["c1", "c2", "c3"]);
            }
        }
    }

    #[test]
    fn a_record_without_an_end_is_bounded() {
        let mut records = Records::new(Form::Lines);
        let chunk = vec![b'x'; 1 << 20];
        let handed_on: usize = (0..20).map(|_| records.take(&chunk).len()).sum();
        assert_eq!(handed_on, 20 << 20);
        assert!(records.is_fixed);
    }
}
