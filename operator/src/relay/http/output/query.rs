//! What a request for output asks for.

use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use remoteprocess_api::identifier;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::{Cursor, ProcessKey, Stream, WatchOutputRequest};
use serde::Deserialize;

use crate::relay::error::Error;
use crate::relay::http::problem::Problem;

/// The header with which a client of server-sent events resumes.
const LAST_EVENT_ID: &str = "last-event-id";
/// Behind the cursor in the id of the last event.
pub(super) const OVER: &str = ".end";

/// How output is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The bytes of one stream.
    Raw,
    /// Records of JSON, one in each line.
    Lines,
    /// The same records as server-sent events.
    Events,
}

/// A position in the output of one attempt of one object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Position {
    /// UID of the object.
    pub uid: String,
    /// Number of the attempt.
    pub attempt: u32,
    /// The offsets of both streams.
    pub offsets: Cursor,
}

/// The query.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::relay::http) struct OutputQuery {
    uid: String,
    stream: Option<StreamName>,
    attempt: Option<u32>,
    /// An offset of the stream, or a cursor of a record.
    offset: Option<String>,
    /// Begin at the last lines.
    tail: Option<u64>,
    /// A time (RFC 3339), or how long ago (`10m`).
    since: Option<String>,
    follow: bool,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StreamName {
    Stdout,
    Stderr,
}

/// A request for output.
#[derive(Debug)]
pub(super) struct Asked {
    /// What the core is asked for.
    pub request: WatchOutputRequest,
    /// The client has read the last event.
    pub is_over: bool,
}

impl Form {
    /// The form that the client prefers; raw, if it takes everything.
    pub(super) fn accepted(headers: &HeaderMap) -> Result<Self, Problem> {
        let accept: Vec<_> = headers
            .get_all(ACCEPT)
            .iter()
            .map(|value| value.to_str().unwrap_or_default())
            .collect();
        if accept.is_empty() {
            return Ok(Self::Raw);
        }
        let mut best: Option<(f32, Self)> = None;
        for range in accept.iter().flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let form = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/octet-stream" | "*/*" | "application/*" => Self::Raw,
                "application/x-ndjson" => Self::Lines,
                "text/event-stream" | "text/*" => Self::Events,
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
            let quality = quality.unwrap_or(1.0);
            if quality > 0.0 && best.is_none_or(|(other, _)| quality > other) {
                best = Some((quality, form));
            }
        }
        best.map(|(_, form)| form).ok_or_else(|| {
            Problem::of_request(
                StatusCode::NOT_ACCEPTABLE,
                "output is application/octet-stream, application/x-ndjson or text/event-stream; name one of them in \
                 the header Accept",
            )
        })
    }

    /// Its media type.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Raw => "application/octet-stream",
            Self::Lines => "application/x-ndjson",
            Self::Events => "text/event-stream",
        }
    }
}

impl Position {
    /// The position in a cursor: `UID.ATTEMPT.STDOUT.STDERR`.
    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.split('.').collect();
        let [uid, attempt, stdout, stderr] = parts[..] else {
            return None;
        };
        Some(Self {
            uid: Some(uid).filter(|uid| identifier::is_uid(uid))?.to_owned(),
            attempt: attempt.parse().ok()?,
            offsets: Cursor {
                stdout: stdout.parse().ok()?,
                stderr: stderr.parse().ok()?,
            },
        })
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { uid, attempt, offsets } = self;
        write!(f, "{uid}.{attempt}.{}.{}", offsets.stdout, offsets.stderr)
    }
}

impl Asked {
    /// What a request asks for. `Last-Event-ID` takes precedence over where the query begins: a client that reconnects
    /// repeats its query.
    pub(super) fn of(process: ProcessKey, query: OutputQuery, headers: &HeaderMap, form: Form) -> Result<Self, Error> {
        let stream = query.stream.map(|stream| match stream {
            StreamName::Stdout => Stream::Stdout,
            StreamName::Stderr => Stream::Stderr,
        });
        if form == Form::Raw && stream.is_none() {
            return Err(Error::invalid(
                "raw output is the output of one stream: add stream=stdout or stream=stderr, or ask for \
                 application/x-ndjson",
            ));
        }
        let mut request = WatchOutputRequest {
            protocol: PROTOCOL,
            process: Some(ProcessKey {
                uid: query.uid,
                ..process
            }),
            attempt: query.attempt.unwrap_or_default(),
            stream: stream.unwrap_or_default().into(),
            follow: query.follow,
            ..WatchOutputRequest::default()
        };
        let last = headers
            .get(LAST_EVENT_ID)
            .map(|id| id.to_str().unwrap_or("?"))
            .filter(|id| form == Form::Events && !id.is_empty());
        if let Some(id) = last {
            let position = Position::parse(id.strip_suffix(OVER).unwrap_or(id));
            resume(&mut request, position.ok_or_else(|| invalid("Last-Event-ID"))?)?;
            let is_over = id.ends_with(OVER);
            return Ok(Self { request, is_over });
        }
        if let Some(offset) = query.offset {
            if query.tail.is_some() || query.since.is_some() {
                return Err(Error::invalid(
                    "offset excludes tail and since: each says where to begin",
                ));
            }
            begin_at(&mut request, &offset)?;
        }
        request.tail_lines = query.tail;
        let since = query.since.map(|since| since_nanos(&since, Timestamp::now()));
        request.since_unix_nanos = since.transpose()?;
        Ok(Self {
            request,
            is_over: false,
        })
    }
}

/// Begins at an offset of the stream, or at a cursor.
fn begin_at(request: &mut WatchOutputRequest, offset: &str) -> Result<(), Error> {
    let Ok(number) = offset.parse::<u64>() else {
        return resume(request, Position::parse(offset).ok_or_else(|| invalid("offset"))?);
    };
    if request.stream() == Stream::Unspecified {
        return Err(Error::invalid(
            "an offset is the offset in one stream: add stream=stdout or stream=stderr, or give the cursor of a record",
        ));
    }
    let mut cursor = Cursor::default();
    cursor.set(request.stream(), number);
    request.cursor = Some(cursor);
    Ok(())
}

/// Continues at a position, in the object and the attempt that it names.
fn resume(request: &mut WatchOutputRequest, position: Position) -> Result<(), Error> {
    let process = request.process.get_or_insert_default();
    let is_other = !process.uid.is_empty() && process.uid != position.uid;
    if is_other || (request.attempt != 0 && request.attempt != position.attempt) {
        return Err(Error::invalid(
            "the cursor is of another object or attempt than the query names",
        ));
    }
    process.uid = position.uid;
    request.attempt = position.attempt;
    request.cursor = Some(position.offsets);
    Ok(())
}

fn invalid(what: &str) -> Error {
    Error::invalid(format!(
        "{what}: neither an offset nor a cursor of a record (UID.ATTEMPT.STDOUT.STDERR)"
    ))
}

fn since_nanos(text: &str, now: Timestamp) -> Result<i64, Error> {
    let at = match text.parse::<SignedDuration>() {
        Ok(ago) => now.checked_sub(ago).ok(),
        Err(_) => text.parse().ok(),
    };
    let nanos = at.and_then(|at: Timestamp| i64::try_from(at.as_nanosecond()).ok());
    nanos.ok_or_else(|| {
        Error::invalid("since: neither a time such as 2026-11-01T12:00:00Z nor how long ago, such as 10m")
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn asked(query: &str, id: Option<&str>, form: Form) -> Result<Asked, Error> {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert(LAST_EVENT_ID, id.parse().unwrap());
        }
        let query = serde_urlencoded::from_str(query).map_err(|error| Error::invalid(error.to_string()))?;
        let process = ProcessKey {
            namespace: "default".into(),
            name: "hello".into(),
            ..ProcessKey::default()
        };
        Asked::of(process, query, &headers, form)
    }

    #[test]
    fn a_cursor_names_object_attempt_and_both_offsets() {
        let by_query = asked("offset=0c1d.2.10.3&follow=true", None, Form::Lines).unwrap();
        let by_header = asked("tail=5&follow=true", Some("0c1d.2.10.3"), Form::Events).unwrap();
        for Asked { request, is_over } in [by_query, by_header] {
            assert_eq!(request.process.as_ref().unwrap().uid, "0c1d");
            assert_eq!(request.process.unwrap().name, "hello");
            assert_eq!((request.attempt, request.follow, is_over), (2, true, false));
            assert_eq!(request.cursor, Some(Cursor { stdout: 10, stderr: 3 }));
            assert_eq!(request.tail_lines, None, "the position takes precedence");
        }
        assert!(asked("", Some("0c1d.2.10.3.end"), Form::Events).unwrap().is_over);
    }

    #[rstest]
    #[case("", Form::Raw, "add stream=")]
    #[case("offset=5", Form::Lines, "one stream")]
    #[case("offset=5&stream=stdout&tail=3", Form::Raw, "excludes")]
    #[case("offset=x", Form::Lines, "neither")]
    #[case("offset=../x.1.0.0", Form::Lines, "neither")]
    #[case("offset=0c1d.1.0.0&attempt=2", Form::Lines, "another")]
    #[case("offset=0c1d.1.0.0&uid=other", Form::Lines, "another")]
    #[case("since=yesterday", Form::Lines, "since")]
    #[case("stream=both", Form::Lines, "both")]
    #[case("color=red", Form::Lines, "unknown field")]
    #[case("tail=-1", Form::Lines, "invalid")]
    #[case("tail=1&tail=2", Form::Lines, "duplicate")]
    fn an_odd_query_is_refused(#[case] query: &str, #[case] form: Form, #[case] told: &str) {
        let error = asked(query, None, form).unwrap_err();
        assert!(error.message.contains(told), "{error}");
    }

    #[test]
    fn since_is_a_time_or_an_age() {
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(since_nanos("10s", now).unwrap(), 990_000_000_000);
        assert_eq!(since_nanos("1970-01-01T00:00:01Z", now).unwrap(), 1_000_000_000);
    }

    #[rstest]
    #[case(&[], Some(Form::Raw))]
    #[case(&["*/*"], Some(Form::Raw))]
    #[case(&["text/html, application/x-ndjson"], Some(Form::Lines))]
    #[case(&["*/*;q=0.1, Text/Event-Stream"], Some(Form::Events))]
    #[case(&["application/x-ndjson;q=0", "text/event-stream"], Some(Form::Events))]
    #[case(&["text/html"], None)]
    fn the_preferred_form_is_taken(#[case] accept: &[&str], #[case] form: Option<Form>) {
        let headers = accept.iter().map(|value| (ACCEPT, value.parse().unwrap()));
        assert_eq!(Form::accepted(&headers.collect()).ok(), form);
    }
}
