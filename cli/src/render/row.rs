//! One process as one line of a table.

use jiff::Timestamp;
use kube::core::DynamicObject;
use remoteprocess_api::{ConditionType, Phase, RemoteProcess, RemoteProcessStatus, condition};

use super::since;

/// The columns of the table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Columns {
    /// NAMESPACE in front.
    pub namespace: bool,
    /// ATTEMPT, STARTED, NODE and COMMAND, for which a terminal of 80 columns has no room.
    pub wide: bool,
}

impl Columns {
    /// The header.
    pub fn header(self) -> Vec<String> {
        let mut names = vec!["NAME", "PHASE", "REASON", "EXIT", "DURATION", "AGE"];
        if self.namespace {
            names.insert(0, "NAMESPACE");
        }
        if self.wide {
            names.extend(["ATTEMPT", "STARTED", "NODE", "COMMAND"]);
        }
        names.into_iter().map(str::to_owned).collect()
    }

    /// A row with cells of typical maximum width, except for the name.
    pub fn widest(self) -> Vec<String> {
        let mut cells = vec!["", "Succeeded", "DeadlineExceeded", "SIGKILL", "59m59s"];
        if self.namespace {
            cells.insert(0, "");
        }
        cells.into_iter().map(str::to_owned).collect()
    }

    /// The row of one object. An object that this version cannot read has its name and little more.
    pub fn row(self, object: &DynamicObject, now: Timestamp) -> Vec<String> {
        let metadata = &object.metadata;
        let name = metadata.name.clone().unwrap_or_default();
        let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
        let process = object.clone().try_parse::<RemoteProcess>();
        let mut cells = vec![name];
        match &process {
            Ok(process) => cells.extend(facts(process, now)),
            Err(_) => cells.extend(["Unreadable", "", "", ""].map(str::to_owned)),
        }
        cells.push(since(created, now));
        if self.namespace {
            cells.insert(0, metadata.namespace.clone().unwrap_or_default());
        }
        if self.wide {
            let process = process.ok();
            let status = process
                .as_ref()
                .and_then(|process| process.status.clone())
                .unwrap_or_default();
            cells.push(status.attempt.map(|attempt| attempt.to_string()).unwrap_or_default());
            cells.push(since(status.started_at, now));
            cells.push(process.as_ref().and_then(node).unwrap_or_default());
            cells.push(process.map(|process| command(&process.spec.argv())).unwrap_or_default());
        }
        cells
    }
}

/// PHASE, REASON, EXIT, DURATION.
fn facts(process: &RemoteProcess, now: Timestamp) -> [String; 4] {
    let status = process.status.clone().unwrap_or_default();
    let code = status.exit_code.map(|code| code.to_string());
    let is_running = status.finished_at.is_none();
    let reason = reason(&status);
    let duration = status
        .duration
        .unwrap_or_else(|| since(status.started_at.filter(|_| is_running), now));
    [
        status.phase.unwrap_or_default().to_string(),
        reason,
        code.or(status.signal).unwrap_or_default(),
        duration,
    ]
}

/// For a running process, what holds its output up comes first.
fn reason(status: &RemoteProcessStatus) -> String {
    let trouble = [ConditionType::OutputBlocked, ConditionType::ArchiveUnavailable]
        .into_iter()
        .find(|kind| status.phase == Some(Phase::Running) && condition::is_true(&status.conditions, *kind));
    match trouble {
        Some(kind) => kind.to_string(),
        None => status.reason.map(|reason| reason.to_string()).unwrap_or_default(),
    }
}

fn node(process: &RemoteProcess) -> Option<String> {
    process.status.as_ref()?.attempts.last()?.node.clone()
}

/// A command line in shell syntax, shortened if it is long.
pub fn command(argv: &[String]) -> String {
    const LONGEST: usize = 60;
    let text = argv.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    if text.chars().count() <= LONGEST {
        text
    } else {
        text.chars().take(LONGEST - 1).chain(['…']).collect()
    }
}

fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte) || byte >= 0x80;
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::Table;

    #[test]
    fn a_table_of_every_kind() {
        let objects: Vec<DynamicObject> = serde_json::from_value(serde_json::json!([
            {"metadata": {"name": "done", "namespace": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
             "spec": {"image": "busybox", "command": ["sh", "-c", "echo 'a b'"]},
             "status": {"phase": "Succeeded", "reason": "Completed", "exitCode": 0, "attempt": 1,
                        "startedAt": "2026-01-01T00:00:01Z", "finishedAt": "2026-01-01T00:00:05Z", "duration": "4s",
                        "attempts": [{"number": 1, "node": "node-1"}]}},
            {"metadata": {"name": "killed", "namespace": "b", "creationTimestamp": "2026-01-01T00:00:00Z"},
             "spec": {"image": "busybox", "command": ["true"]},
             "status": {"phase": "Failed", "reason": "OOMKilled", "signal": "SIGKILL", "attempt": 1}},
            {"metadata": {"name": "new", "namespace": "b", "creationTimestamp": "2026-01-01T00:02:00Z"},
             "spec": {"image": "busybox", "command": ["true"]}},
            {"metadata": {"name": "held", "namespace": "b", "creationTimestamp": "2026-01-01T00:02:00Z"},
             "spec": {"image": "busybox", "command": ["true"]},
             "status": {"phase": "Running", "reason": "Running", "attempt": 1, "conditions": [
                 {"type": "OutputBlocked", "status": "True", "reason": "SpoolFull", "message": "",
                  "lastTransitionTime": "2026-01-01T00:02:00Z"}]}},
            {"metadata": {"name": "odd", "namespace": "b"}, "spec": {"image": 7}},
        ]))
        .unwrap();
        let now = "2026-01-01T00:02:10Z".parse().unwrap();
        let columns = Columns {
            namespace: true,
            wide: true,
        };
        let mut rows = vec![columns.header()];
        rows.extend(objects.iter().map(|object| columns.row(object, now)));
        let mut table = Table::default();
        table.fit(&rows);
        insta::assert_snapshot!(table.lines(&rows));
    }

    #[test]
    fn commands_are_quoted_and_shortened() {
        let argv = ["sh", "-c", "it's", ""].map(str::to_owned);
        assert_eq!(command(&argv), r"sh -c 'it'\''s' ''");
        assert!(command(&["x".repeat(100)]).ends_with('…'));
    }
}
