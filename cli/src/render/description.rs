//! The details of one process, for people.

use std::fmt::Display;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use remoteprocess_api::{AttemptOutput, AttemptStatus, RemoteProcess, RemoteProcessStatus, StdinSource, StopStatus};

use super::row::command;
use super::{Table, escape, last_seen, since};

/// The text of `rproc describe`. `events`: absent if the user may not read them.
pub fn describe(process: &RemoteProcess, events: Option<&[Event]>, now: Timestamp) -> String {
    let mut page = Page::default();
    let spec = &process.spec;
    let status = process.status.clone().unwrap_or_default();
    page.metadata(&process.metadata, now);
    page.field("Image", Some(&spec.image));
    page.field("Command", Some(command(&spec.argv())));
    page.map(
        "Environment",
        spec.env
            .iter()
            .map(|env| (&env.name, env.value.as_deref().unwrap_or("(from elsewhere)"))),
    );
    page.field("Input", spec.stdin_from.as_ref().and_then(input));
    page.field(
        "Desired",
        (spec.desired_state != remoteprocess_api::DesiredState::Running).then_some(spec.desired_state),
    );
    summary(&mut page, &status, now);
    // The last lines of the output have a section of their own.
    let tail = status.output.as_ref().and_then(|output| output.tail.as_deref());
    conditions(&mut page, &status.conditions, tail, now);
    for attempt in &status.attempts {
        describe_attempt(&mut page, attempt, now);
    }
    if let Some(tail) = tail.filter(|tail| !tail.is_empty()) {
        page.title("Last lines");
        tail.lines().for_each(|line| page.text(&format!("  {}", escape(line))));
    }
    describe_events(&mut page, events, now);
    page.0
}

/// Where the program's standard input comes from.
fn input(source: &StdinSource) -> Option<String> {
    let (kind, name, key) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(map), _) => ("ConfigMap", &map.name, &map.key),
        (None, Some(secret)) => ("Secret", &secret.name, &secret.key),
        (None, None) => return None,
    };
    Some(format!("the key {key} of the {kind} {name}"))
}

fn summary(page: &mut Page, status: &RemoteProcessStatus, now: Timestamp) {
    page.field("Phase", Some(status.phase.unwrap_or_default()));
    page.field("Reason", status.reason);
    page.field("Message", status.message.as_deref());
    page.field("Exit code", status.exit_code);
    page.field("Signal", status.signal.as_deref());
    page.field("Started", status.started_at.map(|then| moment(then, now)));
    page.field("Finished", status.finished_at.map(|then| moment(then, now)));
    page.field("Duration", status.duration.as_deref());
    if let Some(output) = &status.output {
        let (out, err) = (
            output.stdout_bytes.unwrap_or_default(),
            output.stderr_bytes.unwrap_or_default(),
        );
        page.field(
            "Output",
            Some(format!("{out} bytes of standard output, {err} bytes of standard error")),
        );
    }
}

/// The conditions, each with the first line of its message, unless it is `known`.
pub(super) fn conditions(page: &mut Page, conditions: &[Condition], known: Option<&str>, now: Timestamp) {
    if conditions.is_empty() {
        return;
    }
    page.title("Conditions");
    let mut rows = vec![["TYPE", "STATUS", "REASON", "AGE"].map(str::to_owned).to_vec()];
    rows.extend(conditions.iter().map(|condition| {
        vec![
            condition.type_.clone(),
            condition.status.clone(),
            condition.reason.clone(),
            // The default status of an object that no operator has seen contains no time.
            since(
                Some(condition.last_transition_time.0).filter(|time| *time != Timestamp::UNIX_EPOCH),
                now,
            ),
        ]
    }));
    let mut table = Table::default();
    table.fit(&rows);
    let lines = table.lines(&rows);
    let messages = conditions.iter().map(|condition| match condition.message.as_str() {
        message if Some(message) == known => "",
        message => message,
    });
    for (line, message) in lines.lines().zip(std::iter::once("").chain(messages)) {
        page.text(&format!("  {line}"));
        let first = message.lines().next().unwrap_or_default();
        wrap(&escape(first), WIDTH - 4)
            .iter()
            .for_each(|part| page.text(&format!("    {part}")));
    }
}

/// Default width of a terminal.
const WIDTH: usize = 80;

/// Lines of at most `width` characters, broken between words; a longer word has its own line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn describe_output(page: &mut Page, output: &AttemptOutput) {
    for (name, stream) in [("Stdout", &output.stdout), ("Stderr", &output.stderr)] {
        let lost = stream.lost_bytes.filter(|lost| *lost > 0);
        let lost = lost.map(|lost| format!(", {lost} of them lost")).unwrap_or_default();
        page.inner(name, Some(format!("{} bytes{lost}", stream.bytes)));
        page.inner("  sha256", stream.sha256.as_deref());
    }
    page.inner(
        "Sealed",
        Some(if output.sealed {
            "yes"
        } else {
            "no: output may be missing"
        }),
    );
}

fn describe_attempt(page: &mut Page, attempt: &AttemptStatus, now: Timestamp) {
    page.title(&format!("Attempt {}", attempt.number));
    page.inner("Pod", attempt.pod_name.as_deref());
    page.inner("Node", attempt.node.as_deref());
    page.inner("Relay", attempt.relay.as_deref());
    page.inner("Granted", attempt.granted_at.map(|then| moment(then, now)));
    page.inner("Started", attempt.started_at.map(|then| moment(then, now)));
    page.inner("Paused", attempt.paused_at.map(|then| moment(then, now)));
    page.inner(
        "Run deadline",
        attempt.run_seconds.map(|seconds| format!("{seconds} s")),
    );
    page.inner("Finished", attempt.finished_at.map(|then| moment(then, now)));
    if let Some(exit) = &attempt.exit {
        let end = exit
            .code
            .map(|code| format!("code {code}"))
            .or_else(|| exit.signal.clone());
        let end = end.unwrap_or_else(|| "unknown".into());
        page.inner("Exit", Some(format!("{end} (source: {:?})", exit.source)));
        page.inner("Message", exit.message.as_deref());
        page.inner("Stopped by", exit.stop.as_ref().map(stopped_by));
        page.inner("Leftovers", exit.leftovers.filter(|count| *count > 0));
        page.inner("OOM kills", exit.oom_kills.filter(|count| *count > 0));
    }
    if let Some(usage) = &attempt.usage {
        page.inner("CPU", Some(format!("{} s", usage.cpu_seconds)));
        page.inner("Peak memory", Some(format!("{} KiB", usage.peak_memory_bytes / 1024)));
    }
    if let Some(output) = &attempt.output {
        describe_output(page, output);
    }
}

fn stopped_by(stop: &StopStatus) -> String {
    match &stop.message {
        Some(message) => format!("{} ({message})", stop.requested_by),
        None => stop.requested_by.clone(),
    }
}

pub(super) fn describe_events(page: &mut Page, events: Option<&[Event]>, now: Timestamp) {
    let Some(events) = events else {
        return page.field("Events", Some("(you may not read them)"));
    };
    if events.is_empty() {
        return page.field("Events", Some("none"));
    }
    page.title("Events");
    let mut rows = vec![["TYPE", "REASON", "AGE", "MESSAGE"].map(str::to_owned).to_vec()];
    rows.extend(events.iter().map(|event| {
        vec![
            event.type_.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default(),
            since(last_seen(event), now),
            event.message.clone().unwrap_or_default(),
        ]
    }));
    page.table(&rows);
}

pub(super) fn moment(then: Timestamp, now: Timestamp) -> String {
    format!("{then:.0} ({} ago)", since(Some(then), now))
}

/// A page of fields and sections, line by line.
#[derive(Default)]
pub(super) struct Page(pub(super) String);

impl Page {
    pub(super) fn text(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    pub(super) fn title(&mut self, title: &str) {
        self.text(&format!("{title}:"));
    }

    pub(super) fn field(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.text(&format!("{:13} {}", format!("{name}:"), escape(&value.to_string())));
        }
    }

    /// What every object has.
    pub(super) fn metadata(&mut self, metadata: &ObjectMeta, now: Timestamp) {
        self.field("Name", metadata.name.as_deref());
        self.field("Namespace", metadata.namespace.as_deref());
        self.field("UID", metadata.uid.as_deref());
        self.map("Labels", metadata.labels.iter().flatten());
        let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
        self.field("Created", created.map(|then| moment(then, now)));
        let deleted = metadata.deletion_timestamp.as_ref().map(|time| time.0);
        self.field("Deleted", deleted.map(|then| moment(then, now)));
    }

    pub(super) fn inner(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.text(&format!("  {:13} {}", format!("{name}:"), escape(&value.to_string())));
        }
    }

    pub(super) fn map<'a, K: Display + 'a, V: Display + 'a>(
        &mut self,
        name: &str,
        entries: impl Iterator<Item = (K, V)>,
    ) {
        let mut name = format!("{name}:");
        for (key, value) in entries {
            self.text(&format!("{name:13} {}", escape(&format!("{key}={value}"))));
            name.clear();
        }
    }

    pub(super) fn table(&mut self, rows: &[Vec<String>]) {
        let mut table = Table::default();
        table.fit(rows);
        table
            .lines(rows)
            .lines()
            .for_each(|line| self.text(&format!("  {line}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible it is", 7), ["incomprehensible", "it is"]);
        assert!(wrap("", 7).is_empty());
    }

    #[test]
    fn a_finished_process() {
        let process: RemoteProcess = serde_json::from_value(serde_json::json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"name": "job", "namespace": "default", "uid": "u-1", "labels": {"team": "a", "x": "y"},
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"image": "busybox:1.36", "command": ["sh", "-c", "exit 7"], "env": [{"name": "A", "value": "\u{1b}b"}],
                     "stdinFrom": {"secretKeyRef": {"name": "input", "key": "\u{1b}k"}}},
            "status": {"phase": "Failed", "reason": "NonZeroExit", "message": "exit code 7", "exitCode": 7,
                       "startedAt": "2026-01-01T00:00:02Z", "finishedAt": "2026-01-01T00:00:04Z", "duration": "2s",
                       "conditions": [{"type": "Finished", "status": "True", "reason": "NonZeroExit",
                                       "message": "exit code 7", "lastTransitionTime": "2026-01-01T00:00:04Z"},
                                      {"type": "ArchiveUnavailable", "status": "False", "reason": "StoreUnreachable",
                                       "message": "the store did not answer for 12 s; what was written meanwhile stayed in \
                                                   the pod and is archived now",
                                       "lastTransitionTime": "2026-01-01T00:00:04Z"},
                                      {"type": "OutputLost", "status": "True", "reason": "SpoolFull",
                                       "message": "", "lastTransitionTime": "2026-01-01T00:00:04Z"}],
                       "output": {"stdoutBytes": 12, "stderrBytes": 0, "tail": "hello\n"},
                       "attempts": [{"number": 1, "podName": "job-1234", "node": "node-1",
                                     "grantedAt": "2026-01-01T00:00:01Z",
                                     "exit": {"code": 7, "source": "Entrypoint"},
                                     "output": {"stdout": {"bytes": 12, "lostBytes": 5, "sha256": "ab".repeat(32)},
                                                "stderr": {"bytes": 0}, "sealed": false}}]},
        }))
        .unwrap();
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let text = describe(&process, Some(&[]), now);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        insta::assert_snapshot!(text);
        assert!(describe(&process, None, now).contains("may not read"));
    }
}
