//! The events of a sink. Pure: the same process gives the same events, byte for byte, so what is in them does not change
//! after what they tell.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use kube::ResourceExt as _;
use remoteprocess_api::names::{GROUP, VERSION};
use remoteprocess_api::sink::OutputStream;
use remoteprocess_api::status::AttemptStatus;
use remoteprocess_client::gap;
use remoteprocess_proto::v1::Gap;
use serde_json::{Map, Value, json};

use super::cursor::Unsent;
use super::divide::Part;
use super::view::View;
use crate::outcome::{self, CloudEvent};

/// A process was created.
pub const CREATED: &str = "dev.remoteprocess.process.created.v1";
/// The pod of an attempt is up, and the start was granted.
pub const STARTING: &str = "dev.remoteprocess.process.starting.v1";
/// The program of an attempt was launched.
pub const STARTED: &str = "dev.remoteprocess.process.started.v1";
/// The program is paused. Sent only if the bridge sees it.
pub const PAUSED: &str = "dev.remoteprocess.process.paused.v1";
/// The program continues. Sent only if the bridge has sent that it was paused.
pub const RESUMED: &str = "dev.remoteprocess.process.resumed.v1";
/// The program was asked to stop. Sent only if the bridge sees it.
pub const STOPPING: &str = "dev.remoteprocess.process.stopping.v1";
/// An attempt has ended.
pub const ATTEMPT_ENDED: &str = "dev.remoteprocess.process.attempt-ended.v1";
/// A part of the output.
pub const OUTPUT: &str = "dev.remoteprocess.process.output.v1";
/// A range of the output is lost.
pub const OUTPUT_LOST: &str = "dev.remoteprocess.process.output-lost.v1";
/// A process is gone before all its events were sent.
pub const DELETED: &str = "dev.remoteprocess.process.deleted.v1";

/// Makes the events of one sink.
#[derive(Clone, Debug)]
pub struct Author {
    source: String,
}

impl Author {
    /// For a sink.
    pub fn new(namespace: &str, sink: &str) -> Self {
        Self {
            source: format!("/apis/{GROUP}/{VERSION}/namespaces/{namespace}/processsinks/{sink}"),
        }
    }

    fn event(&self, view: &View, kind: &'static str, id: &str, time: Option<Timestamp>, more: Value) -> CloudEvent {
        let process = &view.process;
        let mut data = Map::new();
        data.insert("namespace".to_owned(), json!(process.namespace()));
        data.insert("name".to_owned(), json!(view.name()));
        data.insert("uid".to_owned(), json!(view.uid()));
        if let Value::Object(more) = more {
            data.extend(more);
        }
        CloudEvent {
            id: format!("{}.{id}", view.uid()),
            kind,
            source: self.source.clone(),
            subject: view.name(),
            time,
            data: Value::Object(data),
        }
    }

    /// The process was created.
    pub fn created(&self, view: &View) -> CloudEvent {
        self.event(view, CREATED, "created", view.created(), json!({"phase": "Pending"}))
    }

    /// The start of an attempt was granted.
    pub fn starting(&self, view: &View, attempt: u32, at: Timestamp) -> CloudEvent {
        let id = format!("{attempt}.starting");
        let data = json!({"phase": "Starting", "attempt": attempt});
        self.event(view, STARTING, &id, Some(at), data)
    }

    /// The program was launched.
    pub fn started(&self, view: &View, attempt: u32, at: Timestamp) -> CloudEvent {
        let id = format!("{attempt}.started");
        let data = json!({"phase": "Running", "attempt": attempt});
        self.event(view, STARTED, &id, Some(at), data)
    }

    /// The program is paused since `since`, in seconds since the Unix epoch.
    pub fn paused(&self, view: &View, attempt: u32, since: i64) -> CloudEvent {
        let id = format!("{attempt}.paused.{since}");
        let data = json!({"phase": "Paused", "attempt": attempt});
        self.event(view, PAUSED, &id, Timestamp::from_second(since).ok(), data)
    }

    /// The program continues after the pause that began at `since`. Nobody notes when.
    pub fn resumed(&self, view: &View, attempt: u32, since: i64) -> CloudEvent {
        let id = format!("{attempt}.resumed.{since}");
        let data = json!({"phase": "Running", "attempt": attempt});
        self.event(view, RESUMED, &id, None, data)
    }

    /// The program was asked to stop.
    pub fn stopping(&self, view: &View, attempt: u32) -> CloudEvent {
        let id = format!("{attempt}.stopping");
        let data = json!({"phase": "Stopping", "attempt": attempt});
        self.event(view, STOPPING, &id, None, data)
    }

    /// The attempt has ended, and is not the last, or the process has ended.
    pub fn attempt_ended(&self, view: &View, attempt: &AttemptStatus) -> CloudEvent {
        let id = format!("{}.ended", attempt.number);
        let exit = attempt.exit.as_ref();
        let data = json!({
            "attempt": attempt.number,
            "finishedAt": attempt.finished_at.map(|time| time.to_string()),
            "exitCode": exit.and_then(|exit| exit.code),
            "signal": exit.and_then(|exit| exit.signal.as_ref()),
            "reason": exit.and_then(|exit| exit.reason).map(|reason| reason.to_string()),
            "message": exit.and_then(|exit| exit.message.as_ref()),
        });
        self.event(view, ATTEMPT_ENDED, &id, attempt.finished_at, data)
    }

    /// The process has ended: the data is that of the result of a trigger. Without the output if that is not sealed, since
    /// its sizes and hashes may still change. `None` if the process has not ended.
    pub fn finished(&self, view: &View, is_sealed: bool) -> Option<CloudEvent> {
        let result = outcome::result(&view.process)?;
        let mut data = result.data;
        if !is_sealed {
            for output in ["stdout", "stderr", "tail"] {
                data[output] = Value::Null;
            }
            data["sealed"] = json!(false);
        }
        Some(CloudEvent {
            id: format!("{}.finished", view.uid()),
            source: self.source.clone(),
            data,
            ..result
        })
    }

    /// The process is gone before all its events were sent.
    pub fn deleted(&self, view: &View, unsent: &[Unsent]) -> CloudEvent {
        let output = unsent
            .iter()
            .map(|unsent| json!({"attempt": unsent.attempt, "stream": name(unsent.stream), "from": unsent.from}));
        let data = json!({
            "phase": view.phase().map(|phase| phase.to_string()),
            "attempt": view.latest(),
            "finishedSent": view.is_final(),
            "unsentOutput": output.collect::<Vec<_>>(),
        });
        self.event(view, DELETED, "deleted", None, data)
    }

    /// A part of the output. Its bytes as text if they are UTF-8, or else in base64.
    pub fn output(&self, view: &View, attempt: u32, stream: OutputStream, part: &Part) -> CloudEvent {
        let (stream, offset, length) = (name(stream), part.offset, part.bytes.len());
        let id = format!("{attempt}.{stream}.{offset}.{length}");
        let mut data = json!({"attempt": attempt, "stream": stream, "offset": offset, "length": length});
        match std::str::from_utf8(&part.bytes) {
            Ok(text) => data["text"] = json!(text),
            Err(_) => data["dataBase64"] = json!(STANDARD.encode(&part.bytes)),
        }
        self.event(view, OUTPUT, &id, None, data)
    }

    /// A range of the output that never comes. Without `to`, its end is not known.
    pub fn output_lost(&self, view: &View, attempt: u32, stream: OutputStream, lost: &Gap) -> CloudEvent {
        let stream = name(stream);
        let to = lost.to.map_or_else(|| "end".to_owned(), |to| to.to_string());
        let reason: &str = lost.reason().into();
        let id = format!("{attempt}.{stream}.lost.{}.{to}.{reason}", lost.from);
        let data = json!({
            "attempt": attempt, "stream": stream, "from": lost.from, "to": lost.to, "reason": reason,
            "message": gap::loss(lost),
        });
        self.event(view, OUTPUT_LOST, &id, None, data)
    }
}

/// Name of a stream in events.
fn name(stream: OutputStream) -> &'static str {
    match stream {
        OutputStream::Stdout => "stdout",
        OutputStream::Stderr => "stderr",
    }
}
