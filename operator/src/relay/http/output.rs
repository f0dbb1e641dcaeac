//! The output of a process: raw bytes, JSON lines, or server-sent events.

mod body;
mod encode;
pub(super) mod query;
mod range;
pub(super) mod raw;
pub(super) mod record;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, TRAILER, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use remoteprocess_proto::metadata::{ATTEMPT, UID};
use remoteprocess_proto::v1::{Cursor, Gap};
use tokio::time::timeout;

use super::problem::Problem;
use super::{Client, key, parse};
use crate::relay::core::Core;
use crate::relay::core::ended::Chosen;
use crate::relay::core::output::{Events, OutputEvent};
use crate::relay::error::Error;
use body::OutputBody;
use query::{Asked, Form};
use range::Part;
use raw::Raw;
use record::Records;

/// How long a failure of a new stream is waited for, so that it gets a status of its own.
const FIRST: Duration = Duration::from_secs(1);

/// What an encoder makes of the events of a stream, one after the other. `None` is an end without a last event.
trait Encode: Send {
    /// The bytes of an event, and whether they are the last.
    fn encode(&mut self, event: Option<Result<OutputEvent, Error>>) -> Step;
}

/// The bytes of one event.
#[derive(Debug, Default)]
struct Step {
    bytes: Vec<Bytes>,
    end: Option<End>,
}

/// How a body ends.
#[derive(Debug)]
enum End {
    /// As it should.
    Whole(HeaderMap),
    /// The connection, or the stream of HTTP/2, is broken off, because a client must not take it for the end.
    Broken(Broken),
}

/// Why a body breaks off.
#[derive(Debug)]
enum Broken {
    /// Bytes are missing.
    Gap(Gap),
    /// A failure.
    Failed(Error),
}

/// `GET /v1/namespaces/{namespace}/processes/{name}/output`
pub(super) async fn output(
    State(core): State<Arc<Core>>,
    Extension(client): Extension<Client>,
    Path(path): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let form = Form::accepted(&headers)?;
    let asked = Asked::of(key(path, String::new()), parse(query)?, &headers, form)?;
    if asked.is_over {
        // The one status that keeps an EventSource from reading the end again and again.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let request = &asked.request;
    let chosen = core
        .choose(&client.user, request.process.clone(), request.attempt)
        .await?;
    let plan = Plan::of(form, &asked, &chosen, &headers)?;
    let mut response = if method == Method::HEAD || plan.is_empty() {
        Response::default()
    } else {
        let mut request = asked.request.clone();
        request.process = Some(chosen.target.key());
        request.attempt = chosen.attempt.unwrap_or_default();
        if let Some(part) = plan.part() {
            let mut cursor = Cursor::default();
            cursor.set(request.stream(), part.from);
            request.cursor = Some(cursor);
        }
        let output = core.output(client.access, request).await?;
        let attempt = output.attempt.unwrap_or_default();
        let encoder: Box<dyn Encode> = match form {
            Form::Raw => Box::new(Raw::new(&asked.request, plan.part())),
            Form::Lines | Form::Events => Box::new(Records::new(form, &asked.request, output.uid, attempt)),
        };
        open(output.events, encoder).await?
    };
    plan.describe(&mut response, form, &chosen);
    Ok(response)
}

/// What is known of an answer before it is opened.
enum Plan {
    /// A part of a length that is known, of raw output that is complete.
    Known { part: Part, whole: Option<[u8; 32]> },
    /// The client has it.
    NotModified([u8; 32]),
    /// A stream until its end.
    Stream,
}

impl Plan {
    fn of(form: Form, asked: &Asked, chosen: &Chosen, headers: &HeaderMap) -> Result<Self, Problem> {
        let (Form::Raw, Some(ended)) = (form, &chosen.ended) else {
            return Ok(Self::Stream);
        };
        let stream = asked.request.stream();
        let from = asked.request.cursor.map(|cursor| cursor.of(stream));
        let begins_elsewhere = asked.request.tail_lines.is_some() || asked.request.since_unix_nanos.is_some();
        match (ended.whole(stream), from) {
            (Some(_), None) if begins_elsewhere => Ok(Self::Stream),
            (Some((length, _)), Some(from)) if from > length => Err(Problem::range(length)),
            (Some((length, _)), Some(from)) => Ok(Self::Known {
                part: Part::new(from, length, length),
                whole: None,
            }),
            (Some((length, sha256)), None) => match range::choose(headers, &hex::encode(sha256), length) {
                range::Choice::NotModified => Ok(Self::NotModified(sha256)),
                range::Choice::Unsatisfiable => Err(Problem::range(length)),
                range::Choice::Part(part) => Ok(Self::Known {
                    part,
                    whole: Some(sha256),
                }),
            },
            (None, from) => match ended.known_gap(stream, from.unwrap_or_default()) {
                Some(gap) if !begins_elsewhere => Err(Problem::gap(gap)),
                _ => Ok(Self::Stream),
            },
        }
    }

    fn part(&self) -> Option<Part> {
        match self {
            Self::Known { part, .. } => Some(*part),
            Self::NotModified(_) | Self::Stream => None,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Known { part, .. } => part.length() == 0,
            Self::NotModified(_) => true,
            Self::Stream => false,
        }
    }

    /// The status and the headers.
    fn describe(&self, response: &mut Response, form: Form, chosen: &Chosen) {
        let mut put = |name: HeaderName, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(name, value);
            }
        };
        put(CONTENT_TYPE, form.media_type().to_owned());
        put(CACHE_CONTROL, "no-cache".to_owned());
        put(VARY, "accept".to_owned());
        put(HeaderName::from_static(UID), chosen.target.uid.clone());
        if let Some(attempt) = chosen.attempt {
            put(HeaderName::from_static(ATTEMPT), attempt.to_string());
        }
        if form == Form::Raw {
            match self {
                Self::Known { part, whole } => {
                    put(CONTENT_LENGTH, part.length().to_string());
                    if let Some(sha256) = whole {
                        put(ETAG, format!("\"{}\"", hex::encode(sha256)));
                        put(ACCEPT_RANGES, "bytes".to_owned());
                        put(
                            HeaderName::from_static("repr-digest"),
                            format!("sha-256=:{}:", BASE64_STANDARD.encode(sha256)),
                        );
                    }
                    if let (Some(_), Some(range)) = (whole, part.content_range()) {
                        put(CONTENT_RANGE, range);
                        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                    }
                }
                Self::NotModified(sha256) => {
                    put(ETAG, format!("\"{}\"", hex::encode(sha256)));
                    *response.status_mut() = StatusCode::NOT_MODIFIED;
                }
                Self::Stream => put(TRAILER, raw::TRAILERS.join(", ")),
            }
        }
    }
}

/// The body of a stream, once its first bytes are there, or a while later. A failure before them has a status.
async fn open(mut events: Events, mut encoder: Box<dyn Encode>) -> Result<Response, Problem> {
    let mut step = Step::default();
    let first = async {
        while step.bytes.is_empty() && step.end.is_none() {
            match events.next().await {
                Some(Err(error)) => return Err(Problem::from(error)),
                event => step = encoder.encode(event),
            }
        }
        Ok(())
    };
    if let Ok(failed) = timeout(FIRST, first).await {
        failed?;
    }
    match step.end {
        Some(End::Broken(Broken::Gap(gap))) if step.bytes.is_empty() => Err(Problem::gap(gap)),
        Some(End::Broken(Broken::Failed(error))) if step.bytes.is_empty() => Err(error.into()),
        _ => Ok(Response::new(axum::body::Body::new(OutputBody::new(
            events, encoder, step,
        )))),
    }
}
