//! Converts the end of an attempt between the wire and the status.

use remoteprocess_api::sanitize::plain;
use remoteprocess_api::{
    AttemptExit, AttemptStatus, ExitSource, RemoteProcess, RemoteProcessStatus, StopStatus, signal,
};
use remoteprocess_proto::v1::exit::{Outcome, Source, Stop};
use remoteprocess_proto::v1::{self, Exit, Seal, SealReason, StreamSeal};

use super::reason;

/// Maximum length of a message that is copied into the status, in characters.
const SENTENCE: usize = 512;

/// An exit frame in its form in the status.
pub(super) fn exit_to_status(exit: &Exit) -> AttemptExit {
    // Without `..`: a new field of the wire does not compile until its place in the status is chosen. Output and usage
    // of the attempt have fields of their own.
    let Exit {
        outcome: _,
        value,
        source: _,
        sealed: _,
        reason: _,
        message,
        stop,
        seal: _,
        usage: _,
        started_unix_nanos: _,
        finished_unix_nanos: _,
        leftovers,
        oom_kills,
    } = exit;
    let is_code = exit.outcome() == Outcome::Code;
    let is_signal = exit.outcome() == Outcome::Signal;
    AttemptExit {
        code: is_code.then_some(*value),
        signal: is_signal.then(|| signal::name(*value)),
        source: match exit.source() {
            Source::Entrypoint => ExitSource::Entrypoint,
            Source::Kubelet => ExitSource::Kubelet,
            Source::None => ExitSource::None,
        },
        reason: reason::from_wire(exit.reason()),
        message: sentence(message),
        stop: stop.as_ref().map(|stop| StopStatus {
            requested_by: sentence(&stop.requested_by).unwrap_or_default(),
            message: sentence(&stop.message),
        }),
        leftovers: (*leftovers > 0).then_some(*leftovers),
        oom_kills: (*oom_kills > 0).then_some(*oom_kills),
    }
}

/// A peer's message, without control bytes, and shortened.
fn sentence(text: &str) -> Option<String> {
    let clean = plain(text, SENTENCE);
    (!clean.is_empty()).then_some(clean)
}

/// How an attempt ended, as far as the status knows; `None` while it may continue. For attempt 0 (none was made): how
/// the process ended.
pub fn known_end(process: &RemoteProcess, number: u32) -> Option<Exit> {
    let status = process.status.as_ref()?;
    if let Some(exit) = status
        .attempt(number)
        .and_then(|attempt| exit_from_status(status, attempt))
    {
        return Some(exit);
    }
    let current = status.current_attempt().unwrap_or_default();
    if current > number {
        return Some(Exit {
            reason: v1::Reason::Interrupted.into(),
            message: format!("attempt {current} has taken the place of attempt {number}"),
            ..Exit::default()
        });
    }
    let is_over = current == number && status.phase.is_some_and(remoteprocess_api::Phase::is_final);
    is_over.then(|| Exit {
        reason: status.reason.map(reason::to_wire).unwrap_or_default().into(),
        message: status.message.clone().unwrap_or_default(),
        ..Exit::default()
    })
}

/// The exit of an attempt from the status, `sealed: false`; `None` if it has none.
pub fn exit_from_status(status: &RemoteProcessStatus, attempt: &AttemptStatus) -> Option<Exit> {
    // Without `..`: a field that is added to the status does not compile until it has a place here.
    let AttemptExit {
        code,
        signal: signal_name,
        source,
        reason,
        message,
        stop,
        leftovers,
        oom_kills,
    } = attempt.exit.as_ref()?;
    let is_current = status.current_attempt() == Some(attempt.number);
    let (outcome, value) = match (code, signal_name) {
        (Some(code), _) => (Outcome::Code, *code),
        (None, Some(name)) => (Outcome::Signal, signal::parse(name).unwrap_or_default()),
        (None, None) => (Outcome::Unknown, 0),
    };
    let reason = reason.or(status.reason.filter(|_| is_current));
    let message = message
        .clone()
        .or_else(|| status.message.clone().filter(|_| is_current));
    Some(Exit {
        outcome: outcome.into(),
        value,
        source: match source {
            ExitSource::Entrypoint => Source::Entrypoint,
            ExitSource::Kubelet => Source::Kubelet,
            ExitSource::None => Source::None,
        }
        .into(),
        sealed: false,
        reason: reason.map(reason::to_wire).unwrap_or_default().into(),
        message: message.unwrap_or_default(),
        stop: stop.as_ref().map(|stop| Stop {
            requested_by: stop.requested_by.clone(),
            message: stop.message.clone().unwrap_or_default(),
        }),
        seal: attempt.output.as_ref().map(|output| Seal {
            stdout: Some(seal(&output.stdout)),
            stderr: Some(seal(&output.stderr)),
            reason: SealReason::Unspecified.into(),
        }),
        usage: None,
        started_unix_nanos: nanos(attempt.started_at),
        finished_unix_nanos: nanos(attempt.finished_at),
        leftovers: leftovers.unwrap_or_default(),
        oom_kills: oom_kills.unwrap_or_default(),
    })
}

fn seal(stream: &remoteprocess_api::StreamStatus) -> StreamSeal {
    let sha256 = stream
        .sha256
        .as_deref()
        .and_then(|text| hex::decode(text).ok())
        .unwrap_or_default();
    StreamSeal {
        bytes: stream.bytes,
        sha256: sha256.into(),
        dropped_bytes: stream.lost_bytes.unwrap_or_default(),
        checksum: None,
    }
}

fn nanos(at: Option<jiff::Timestamp>) -> i64 {
    at.and_then(|at| i64::try_from(at.as_nanosecond()).ok())
        .unwrap_or_default()
}
