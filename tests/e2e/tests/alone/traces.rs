//! The trace of a run at a receiver, for a test that installs the release with one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Namespace, Traces, spec, until_some};
use serde_json::json;

/// Words that must be in no span: an argument, a variable, a key of a Secret, and output.
const MARKS: [&str; 4] = ["an-argument-7c1e", "a-variable-7c1e", "a-password-7c1e", "said-7c1e"];
/// The spans of an attempt, one after the other below the first one.
const SPANS: [&str; 9] = [
    "attempt", "create", "schedule", "pod", "pull", "grant", "launch", "run", "seal",
];

/// A run is one tree of spans at the receiver, and tells nothing that a user wrote.
pub(crate) fn a_run_is_one_tree(namespace: &Namespace, traces: &Traces) -> Result<()> {
    marked(namespace)?;
    let logs = namespace.editor.rproc(&["logs", "-f", "marked"]).finish()?;
    let said = logs.expect_code(3)?.out();
    let (traceparent, rest) = said.split_once('\n').context("a line")?;
    ensure!(rest.trim() == MARKS[3], "{said}");
    is_one_tree(traces, traceparent)?;
    let text = traces.text();
    ensure!(text.contains("marked"), "the name of the process is an attribute");
    for mark in MARKS {
        ensure!(!text.contains(mark), "{mark} is in a span");
    }
    Ok(())
}

/// A program with all marks, which prints its `TRACEPARENT` and ends with 3.
fn marked(namespace: &Namespace) -> Result<()> {
    let password = format!("--from-literal=password={}", MARKS[2]);
    namespace
        .kubectl(&["create", "secret", "generic", "marked", &password])
        .succeed()?;
    let script = format!("echo $TRACEPARENT; echo {}; sleep 0.3; exit 3", MARKS[3]);
    let more = json!({
        "args": [MARKS[0]],
        "env": [
            {"name": "VARIABLE", "value": MARKS[1]},
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "marked", "key": "password"}}},
        ],
    });
    namespace.apply("marked", spec(&script, more)).succeed()?;
    Ok(())
}

/// The spans of the attempt are one tree, in which each step begins where the one before it has ended; the program knew
/// its place in it.
fn is_one_tree(traces: &Traces, traceparent: &str) -> Result<()> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    ensure!(parts.len() == 4, "TRACEPARENT={traceparent}");
    let (trace, run) = (hex::decode(parts[1])?, hex::decode(parts[2])?);
    let mut spans = until_some("all spans", Duration::from_secs(30), || {
        let spans = traces.spans(&trace);
        Ok((spans.len() >= SPANS.len()).then_some(spans))
    })
    .with_context(|| format!("spans of {traceparent}: {:#?}", traces.spans(&trace)))?;
    spans.sort_by_key(|span| SPANS.iter().position(|name| *name == span.name));
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    ensure!(names == SPANS, "{names:?}");
    let (root, steps) = spans.split_first().context("a root")?;
    ensure!(root.parent_span_id.is_empty(), "{root:?}");
    let mut at = root.start_time_unix_nano;
    for span in steps {
        ensure!(span.parent_span_id == root.span_id, "{span:?}");
        ensure!(span.start_time_unix_nano == at, "a gap before {span:#?}");
        ensure!((span.span_id == run) == (span.name == "run"), "{traceparent}: {span:?}");
        at = span.end_time_unix_nano;
    }
    ensure!(
        at == root.end_time_unix_nano,
        "the steps add up to the attempt: {spans:#?}"
    );
    let run = steps.iter().find(|span| span.span_id == run).context("run")?;
    let took = Duration::from_nanos(run.end_time_unix_nano - run.start_time_unix_nano);
    ensure!(took >= Duration::from_millis(200), "the program slept: {took:?}");
    Ok(())
}
