//! Output as records: lines of JSON, or the same as server-sent events.

use std::io::Write;

use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::{Data, Exit, State, StreamSeal, WatchOutputRequest};
use serde::Serialize;

use super::query::{Form, OVER, Position};
use super::{Encode, End, Step, encode};
use crate::relay::core::output::OutputEvent;
use crate::relay::error::Error;
use crate::relay::http::problem::{Body, Problem};
use crate::relay::piece::{Piece, Placed};

/// The encoder.
pub(super) struct Records {
    form: Form,
    follow: bool,
    position: Position,
}

/// One record, unless it is `data`. The last one of each answer is an `end` or an `error`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Record<'a> {
    /// A range that will never be delivered; without `to`, where it ends is not known.
    Gap {
        stream: &'static str,
        from: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
        reason: &'static str,
        cursor: &'a str,
    },
    /// A sign of life, and where the stream is.
    Position {
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<&'a str>,
    },
    /// Why there is no output yet.
    State {
        phase: &'static str,
        reason: &'static str,
        message: &'a str,
    },
    /// The end of the attempt, or, if it is `running`, of what there is now.
    End {
        running: bool,
        #[serde(flatten)]
        exit: Option<Ended<'a>>,
        cursor: &'a str,
    },
    /// A failure.
    Error {
        problem: Body,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<&'a str>,
    },
}

/// How an attempt ended.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ended<'a> {
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<String>,
    reason: &'static str,
    message: &'a str,
    /// Whether every byte of both streams is in the archive.
    sealed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<Sealed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<Sealed>,
}

#[derive(Serialize)]
struct Sealed {
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl Records {
    /// The encoder of a stream of this object; attempt 0 until it is determined.
    pub(super) fn new(form: Form, request: &WatchOutputRequest, uid: String, attempt: u32) -> Self {
        Self {
            form,
            follow: request.follow,
            position: Position {
                uid,
                attempt,
                offsets: request.cursor.unwrap_or_default(),
            },
        }
    }

    /// The cursor, once the attempt is determined.
    fn cursor(&self) -> Option<String> {
        (self.position.attempt != 0).then(|| self.position.to_string())
    }

    fn piece(&mut self, placed: &Placed, into: &mut Vec<u8>) {
        let (at, end) = (&mut self.position.offsets, placed.end());
        at.stdout = at.stdout.max(end.stdout);
        at.stderr = at.stderr.max(end.stderr);
        let cursor = self.position.to_string();
        match &placed.piece {
            Piece::Data(bytes) => self.wrap("data", Some(&cursor), into, |into| data(bytes, &cursor, into)),
            Piece::Gap(gap) => {
                let record = Record::Gap {
                    stream: gap.stream().name(),
                    from: gap.from,
                    to: gap.to,
                    reason: gap.reason().into(),
                    cursor: &cursor,
                };
                self.put(&record, Some(&cursor), into);
            }
        }
    }

    /// The last record.
    fn end(&self, exit: Option<&Exit>) -> Step {
        let (cursor, mut bytes) = (self.position.to_string(), Vec::new());
        let record = Record::End {
            running: exit.is_none(),
            exit: exit.map(ended),
            cursor: &cursor,
        };
        // What there is now has no last event: a client that reconnects gets what was added.
        let id = match exit {
            Some(_) => format!("{cursor}{OVER}"),
            None => cursor.clone(),
        };
        self.put(&record, Some(&id), &mut bytes);
        last(bytes)
    }

    fn error(&self, error: Error) -> Step {
        let (cursor, mut bytes) = (self.cursor(), Vec::new());
        let record = Record::Error {
            problem: Problem::from(error).body(),
            cursor: cursor.as_deref(),
        };
        self.put(&record, None, &mut bytes);
        last(bytes)
    }

    fn put(&self, record: &Record<'_>, id: Option<&str>, into: &mut Vec<u8>) {
        self.wrap(record.name(), id, into, |into| {
            // Records are made of texts and numbers, and a buffer grows.
            let _ = serde_json::to_writer(into, record);
        });
    }

    /// What `write` appends, with what is around a record in this form.
    fn wrap(&self, name: &str, id: Option<&str>, into: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if self.form == Form::Events {
            into.extend_from_slice(b"event: ");
            into.extend_from_slice(name.as_bytes());
            if let Some(id) = id {
                into.extend_from_slice(b"\nid: ");
                into.extend_from_slice(id.as_bytes());
            }
            into.extend_from_slice(b"\ndata: ");
        }
        write(into);
        into.extend_from_slice(if self.form == Form::Events { b"\n\n" } else { b"\n" });
    }
}

/// Appends a record `data`: bytes as the program wrote them, as `text` if they are UTF-8. Nearly all records are of this
/// kind, so it is written without steps in between.
fn data(data: &Data, cursor: &str, into: &mut Vec<u8>) {
    // A buffer grows, so writing cannot fail. Names of streams and times need no escape.
    let _ = write!(
        into,
        r#"{{"type":"data","stream":"{}","offset":{}"#,
        data.stream().name(),
        data.offset
    );
    if let Some(time) = time(data.time_unix_nanos) {
        let _ = write!(into, r#","time":"{time}""#);
    }
    match std::str::from_utf8(&data.bytes) {
        Ok(text) => {
            into.extend_from_slice(br#","text":""#);
            encode::text(text, into);
        }
        Err(_) => {
            into.extend_from_slice(br#","base64":""#);
            encode::base64(&data.bytes, into);
        }
    }
    into.extend_from_slice(br#"","cursor":""#);
    encode::text(cursor, into);
    into.extend_from_slice(br#""}"#);
}

impl Encode for Records {
    fn encode(&mut self, event: Option<Result<OutputEvent, Error>>) -> Step {
        let mut bytes = Vec::new();
        match event {
            Some(Ok(OutputEvent::Output(frames))) => {
                let length: usize = frames.iter().map(|framed| framed.placed.piece.cost()).sum();
                bytes.reserve(length + length / 8);
                for framed in &frames {
                    self.piece(&framed.placed, &mut bytes);
                }
            }
            Some(Ok(OutputEvent::Position { offsets, attempt })) => {
                if attempt != 0 {
                    self.position.attempt = attempt;
                }
                if let Some(offsets) = offsets {
                    self.position.offsets = offsets;
                }
                let cursor = self.cursor();
                let record = Record::Position {
                    cursor: cursor.as_deref(),
                };
                self.put(&record, cursor.as_deref(), &mut bytes);
            }
            Some(Ok(OutputEvent::State(state))) => self.put(&waiting(&state), None, &mut bytes),
            Some(Ok(OutputEvent::Exit(exit))) => return self.end(Some(&exit)),
            Some(Err(error)) => return self.error(error),
            None if self.follow => {
                return self.error(Error::unavailable("the output broke off; read on from the cursor"));
            }
            None => return self.end(None),
        }
        Step {
            bytes: vec![Bytes::from(bytes)],
            end: None,
        }
    }
}

impl Record<'_> {
    /// The name of the event.
    fn name(&self) -> &'static str {
        match self {
            Self::Gap { .. } => "gap",
            Self::Position { .. } => "position",
            Self::State { .. } => "state",
            Self::End { .. } => "end",
            Self::Error { .. } => "error",
        }
    }
}

/// `code`, `signal` or `unknown`.
pub(super) fn outcome(exit: &Exit) -> &'static str {
    match exit.outcome() {
        Outcome::Code => "code",
        Outcome::Signal => "signal",
        Outcome::Unknown => "unknown",
    }
}

fn waiting(state: &State) -> Record<'_> {
    Record::State {
        phase: state.phase().into(),
        reason: state.reason().into(),
        message: &state.message,
    }
}

fn ended(exit: &Exit) -> Ended<'_> {
    let sealed = |seal: &StreamSeal| Sealed {
        bytes: seal.bytes,
        sha256: (!seal.sha256.is_empty()).then(|| hex::encode(&seal.sha256)),
    };
    let seal = exit.seal.as_ref();
    Ended {
        outcome: outcome(exit),
        exit_code: (exit.outcome() == Outcome::Code).then_some(exit.value),
        signal: (exit.outcome() == Outcome::Signal).then(|| remoteprocess_api::signal::name(exit.value)),
        reason: exit.reason().into(),
        message: &exit.message,
        sealed: exit.sealed,
        stdout: seal.and_then(|seal| seal.stdout.as_ref()).map(sealed),
        stderr: seal.and_then(|seal| seal.stderr.as_ref()).map(sealed),
    }
}

fn last(bytes: Vec<u8>) -> Step {
    Step {
        bytes: vec![Bytes::from(bytes)],
        end: Some(End::Whole(HeaderMap::new())),
    }
}

/// `None` for 0, which means unknown.
fn time(unix_nanos: i64) -> Option<Timestamp> {
    (unix_nanos > 0)
        .then(|| Timestamp::from_nanosecond(i128::from(unix_nanos)).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use remoteprocess_proto::v1::{Cursor, GapReason, Stream};

    use super::*;
    use crate::relay::piece::{self, Framed, gap};

    fn records(form: Form) -> Records {
        let request = WatchOutputRequest {
            follow: true,
            ..WatchOutputRequest::default()
        };
        Records::new(form, &request, "0c1d".to_owned(), 2)
    }

    fn text(step: Step) -> String {
        String::from_utf8(step.bytes.concat()).unwrap()
    }

    fn output(pieces: Vec<Piece>) -> Option<Result<OutputEvent, Error>> {
        let start = Cursor::default();
        let frames = pieces.into_iter().map(|piece| Framed::new(Placed { start, piece }));
        Some(Ok(OutputEvent::Output(frames.collect())))
    }

    #[test]
    fn a_line_is_a_record_with_the_cursor_behind_it() {
        let mut records = records(Form::Lines);
        let pieces = vec![
            piece::data(Stream::Stdout, 0, 1_000_000_000, Bytes::from_static(b"a\n")),
            piece::data(Stream::Stderr, 0, 0, Bytes::from_static(b"\xff")),
            gap(Stream::Stdout, 2, Some(9), GapReason::SpoolFull),
        ];
        assert_eq!(
            text(records.encode(output(pieces))),
            "{\"type\":\"data\",\"stream\":\"stdout\",\"offset\":0,\"time\":\"1970-01-01T00:00:01Z\",\"text\":\"a\\n\",\
             \"cursor\":\"0c1d.2.2.0\"}\n\
             {\"type\":\"data\",\"stream\":\"stderr\",\"offset\":0,\"base64\":\"/w==\",\"cursor\":\"0c1d.2.2.1\"}\n\
             {\"type\":\"gap\",\"stream\":\"stdout\",\"from\":2,\"to\":9,\"reason\":\"SpoolFull\",\
             \"cursor\":\"0c1d.2.9.1\"}\n"
        );
        let exit = Exit {
            outcome: Outcome::Signal.into(),
            value: 9,
            ..Exit::default()
        };
        assert_eq!(
            text(records.encode(Some(Ok(OutputEvent::Exit(Box::new(exit)))))),
            "{\"type\":\"end\",\"running\":false,\"outcome\":\"signal\",\"signal\":\"SIGKILL\",\"reason\":\"\",\
             \"message\":\"\",\"sealed\":false,\"cursor\":\"0c1d.2.9.1\"}\n"
        );
    }

    #[test]
    fn an_event_has_the_cursor_as_its_id() {
        let mut records = records(Form::Events);
        let pieces = vec![piece::data(Stream::Stdout, 0, 0, Bytes::from_static(b"a"))];
        let event = text(records.encode(output(pieces)));
        assert!(
            event.starts_with("event: data\nid: 0c1d.2.1.0\ndata: {") && event.ends_with("}\n\n"),
            "{event}"
        );
        let end = text(records.encode(Some(Ok(OutputEvent::Exit(Box::default())))));
        assert!(end.starts_with("event: end\nid: 0c1d.2.1.0.end\ndata: {"), "{end}");
        let error = text(records.encode(Some(Err(Error::expired()))));
        assert!(
            error.starts_with("event: error\ndata: {") && error.contains("0c1d.2.1.0"),
            "{error}"
        );
    }
}
