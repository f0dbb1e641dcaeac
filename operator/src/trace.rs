//! OpenTelemetry traces: one span for each attempt, with one child for each [`Step`] of its timeline.
//!
//! The identifiers follow from the uid of the object and the number of the attempt. So the controller, the relay and a
//! program with `TRACEPARENT` agree on them without a word between them, and whichever replica tells a step, it has its
//! place in the tree. Attributes are names, numbers and words of closed sets: never a command, an argument, a variable,
//! output, or a message.

mod export;

use std::collections::HashMap;
use std::time::SystemTime;

use jiff::Timestamp;
use kube::ResourceExt;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use remoteprocess_api::{AttemptStatus, RemoteProcess, names};
use sha2::{Digest as _, Sha256};

pub use export::{Exporter, Otlp};
pub(crate) use export::{is_on, register};

use crate::timeline::{self, Step, Timed};

/// Name of the span of an attempt, and of its place in [`Tree::span_id`].
const ATTEMPT: &str = "attempt";
/// Bytes of an annotation that can be a `traceparent`.
const LONGEST_TRACEPARENT: usize = 256;

/// Where the spans of one attempt belong.
struct Tree {
    trace_id: TraceId,
    /// The span of the user, if the object names one.
    parent: Option<SpanId>,
    flags: TraceFlags,
    trace_state: TraceState,
    /// What the identifiers of the spans follow from.
    seed: String,
}

impl Tree {
    fn of(process: &RemoteProcess, number: u32) -> Self {
        let seed = format!("{}/{number}", process.metadata.uid.as_deref().unwrap_or_default());
        match user_span(process) {
            Some(span) => Self {
                trace_id: span.trace_id(),
                parent: Some(span.span_id()),
                flags: span.trace_flags(),
                trace_state: span.trace_state().clone(),
                seed,
            },
            None => Self {
                trace_id: TraceId::from_bytes(first_bytes(&[&seed])),
                parent: None,
                flags: TraceFlags::SAMPLED,
                trace_state: TraceState::default(),
                seed,
            },
        }
    }

    fn span_id(&self, name: &str) -> SpanId {
        SpanId::from_bytes(first_bytes(&[&self.seed, name]))
    }

    fn context(&self, name: &str) -> SpanContext {
        let (trace_id, span_id) = (self.trace_id, self.span_id(name));
        SpanContext::new(trace_id, span_id, self.flags, false, self.trace_state.clone())
    }

    fn span(&self, name: &'static str, component: &'static str, from: Timestamp, to: Timestamp) -> SpanData {
        SpanData {
            span_context: self.context(name),
            parent_span_id: self.span_id(ATTEMPT),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: SystemTime::from(from),
            end_time: SystemTime::from(to),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder(component).build(),
        }
    }
}

/// The span that the annotation of the object names; `None` if it names none, or is no `traceparent`.
fn user_span(process: &RemoteProcess) -> Option<SpanContext> {
    let text = process.annotations().get(names::ANNOTATION_TRACEPARENT)?;
    if text.len() > LONGEST_TRACEPARENT {
        return None;
    }
    let carrier = HashMap::from([("traceparent".to_owned(), text.clone())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

fn first_bytes<const N: usize>(parts: &[&str]) -> [u8; N] {
    let hash = Sha256::digest(parts.join("/"));
    let mut bytes = [0; N];
    bytes.copy_from_slice(&hash[..N]);
    bytes
}

/// The `TRACEPARENT` of a program: its spans become children of the step [`Step::Run`].
pub(crate) fn traceparent(process: &RemoteProcess, number: u32) -> String {
    let tree = Tree::of(process, number);
    let (trace_id, span_id, flags) = (tree.trace_id, tree.span_id(Step::Run.name()), tree.flags.to_u8());
    format!("00-{trace_id}-{span_id}-{flags:02x}")
}

/// Tells the steps of an attempt to the receiver of traces, if there is one. It never waits.
pub(crate) fn tell_steps(process: &RemoteProcess, attempt: &AttemptStatus, steps: &[Timed]) {
    if !is_on() || steps.is_empty() {
        return;
    }
    let tree = Tree::of(process, attempt.number);
    let spans = steps.iter().map(|timed| {
        let mut span = tree.span(timed.step.name(), component(timed.step), timed.from, timed.to);
        span.attributes = identity(process, attempt);
        span
    });
    export::send(spans.filter(|span| span.span_context.is_sampled()));
}

/// Tells that an attempt is over, and what became of it.
pub(crate) fn tell_attempt(process: &RemoteProcess, attempt: &AttemptStatus, now: Timestamp) {
    let Some(from) = timeline::beginning(process, attempt).filter(|_| is_on()) else {
        return;
    };
    let tree = Tree::of(process, attempt.number);
    let mut span = tree.span(ATTEMPT, CONTROLLER, from, now.max(from));
    (span.parent_span_id, span.parent_span_is_remote) = (tree.parent.unwrap_or(SpanId::INVALID), tree.parent.is_some());
    span.attributes = identity(process, attempt);
    span.attributes.extend(result(attempt));
    let exit = attempt.exit.as_ref();
    if exit.is_none_or(|exit| exit.code != Some(0)) {
        let reason = exit.and_then(|exit| exit.reason).map(|reason| reason.to_string());
        span.status = Status::error(reason.unwrap_or_default());
    }
    export::send([span].into_iter().filter(|span| span.span_context.is_sampled()));
}

const CONTROLLER: &str = "remoteprocess.controller";
const RELAY: &str = "remoteprocess.relay";
const AGENT: &str = "remoteprocess.agent";

/// Which component did the step, or measured its end.
fn component(step: Step) -> &'static str {
    match step {
        Step::Create | Step::Schedule => CONTROLLER,
        Step::Grant | Step::Seal => RELAY,
        Step::Pod | Step::Pull | Step::Launch | Step::Run => AGENT,
    }
}

fn identity(process: &RemoteProcess, attempt: &AttemptStatus) -> Vec<KeyValue> {
    let text = |key: &'static str, value: Option<String>| value.map(|value| KeyValue::new(key, value));
    let known = [
        text("k8s.namespace.name", process.namespace()),
        text("k8s.pod.name", attempt.pod_name.clone()),
        text("k8s.pod.uid", attempt.pod_uid.clone()),
        text("k8s.node.name", attempt.node.clone()),
        text("remoteprocess.name", process.metadata.name.clone()),
        text("remoteprocess.uid", process.metadata.uid.clone()),
        Some(KeyValue::new("remoteprocess.attempt", i64::from(attempt.number))),
    ];
    known.into_iter().flatten().collect()
}

fn result(attempt: &AttemptStatus) -> Vec<KeyValue> {
    let exit = attempt.exit.as_ref();
    let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let text = |key: &'static str, value: String| KeyValue::new(key, value);
    let output = attempt.output.as_ref().map(|output| {
        [
            KeyValue::new("remoteprocess.output.stdout_bytes", count(output.stdout.bytes)),
            KeyValue::new("remoteprocess.output.stderr_bytes", count(output.stderr.bytes)),
            KeyValue::new("remoteprocess.output.sealed", output.sealed),
        ]
    });
    let known = [
        exit.and_then(|exit| exit.code)
            .map(|code| KeyValue::new("process.exit.code", i64::from(code))),
        exit.and_then(|exit| exit.signal.clone())
            .map(|signal| text("remoteprocess.signal", signal)),
        exit.and_then(|exit| exit.reason)
            .map(|reason| text("remoteprocess.reason", reason.to_string())),
        attempt.relay.clone().map(|relay| text("remoteprocess.relay", relay)),
    ];
    known
        .into_iter()
        .flatten()
        .chain(output.into_iter().flatten())
        .collect()
}

#[cfg(test)]
mod tests;
