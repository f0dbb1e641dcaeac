//! What people learn: conditions, counts, Events.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::core::Selector;
use remoteprocess_api::ProcessSink;
use remoteprocess_api::bridge::{BridgeCondition, BridgeReason};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::super::worker::Problem;
use super::Engine;
use crate::kubernetes::{ApiError, remedy_for_sink};
use crate::status::Finding;

/// For how long a watch that broke is reported: it is tried again at least every eight seconds, and a watch that works
/// may have nothing to say.
const BROKEN: Duration = Duration::from_secs(20);
/// How long the last write of the status may take.
const LAST_WRITE: Duration = Duration::from_secs(2);
/// Least time between two writes of the status.
const WRITE: Duration = Duration::from_secs(5);
/// The same, if a condition has changed.
const WRITE_URGENT: Duration = Duration::from_secs(1);

/// What was seen and written.
#[derive(Default)]
pub(super) struct State {
    /// Why processes could not be watched, and when.
    pub(super) watch_error: Option<(ApiError, Instant)>,
    written: Option<Instant>,
    write_failed: bool,
}

impl Engine {
    pub(super) fn status_written(&mut self, status: Value, written: Result<(), ApiError>) {
        self.report.write_failed = written.is_err();
        match written {
            Ok(()) => self.board.written(status),
            Err(error) => tracing::warn!(%error, "cannot write the status, will try again"),
        }
    }

    /// Brings the board up to date, and writes what has changed.
    pub(super) fn tell(&mut self) {
        self.count();
        let now = Timestamp::now();
        let (connected, ready) = (self.connected(), self.ready());
        let mut set = |condition, finding: Option<Finding>, is_repeated: bool| {
            let Some(finding) = finding else { return };
            if self.board.set(condition, &finding, now) && !is_repeated {
                let (kubernetes, sink) = (self.kubernetes.clone(), self.sink.clone());
                tokio::spawn(async move { kubernetes.report(&*sink, condition, &finding).await });
            }
        };
        // Ready says what Connected says: one Event is enough.
        let is_repeated = connected.as_ref().is_some_and(|connected| !connected.holds);
        set(BridgeCondition::Connected, connected, false);
        set(BridgeCondition::Ready, Some(ready), is_repeated);
        self.write();
    }

    /// Counts what has happened since the last call.
    pub(super) fn count(&mut self) {
        let running = &mut self.running;
        let tally = running.link.outbox().take_tally();
        self.board.count(&tally, running.book.take_dropped());
        self.board.queue(running.book.waiting(), running.workers.len());
    }

    /// Writes the counts at the end, so that the next bridge continues from there.
    pub(super) async fn say_last(&mut self) {
        let Some(status) = self.board.unwritten().filter(|_| !self.is_gone) else {
            return;
        };
        let name = self.sink.name_any();
        let written = self.kubernetes.apply_status::<ProcessSink>(&name, &status);
        if timeout(LAST_WRITE, written).await.is_err() {
            tracing::warn!("the last counts are not written");
        }
    }

    fn write(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let Some(status) = self.board.unwritten() else { return };
        let is_urgent = self.board.is_urgent() && !self.report.write_failed;
        let pause = if is_urgent { WRITE_URGENT } else { WRITE };
        if self.report.written.is_some_and(|written| written.elapsed() < pause) {
            return;
        }
        self.report.written = Some(Instant::now());
        let (kubernetes, name) = (self.kubernetes.clone(), self.sink.name_any());
        self.writing = Some(Box::pin(async move {
            let written = kubernetes.apply_status::<ProcessSink>(&name, &status).await;
            (status, written)
        }));
    }

    /// `None`: nothing is known yet.
    fn connected(&self) -> Option<Finding> {
        let outbox = self.running.link.outbox();
        match outbox.problem() {
            Some(error) => Some(finding(false, error.reason, &error.message)),
            None if outbox.is_open() => {
                let to = &self.sink.spec.destination;
                // There is no connection that stays.
                let is_known = outbox.confirmations() > 0 || (to.http.is_none() && to.pubsub.is_none());
                let sentence = if is_known {
                    "the destination is connected"
                } else {
                    "ready to send: nothing was sent since the bridge began"
                };
                Some(finding(true, BridgeReason::Connected, sentence))
            }
            None if outbox.is_known() => None,
            None => Some(first_finding()),
        }
    }

    fn ready(&self) -> Finding {
        let spec = &self.sink.spec;
        if spec.is_suspended() {
            return finding(
                false,
                BridgeReason::Suspended,
                "spec.suspend is set: events are sent later",
            );
        }
        if let Some(Err(error)) = spec.selector.clone().map(Selector::try_from) {
            return finding(
                false,
                BridgeReason::InvalidDestination,
                &format!("spec.selector: {error}"),
            );
        }
        let broken = self.report.watch_error.as_ref();
        if let Some((error, _)) = broken.filter(|(_, seen)| seen.elapsed() < BROKEN) {
            let message = format!("processes cannot be watched: {}", self.advice(&error.into()));
            return finding(false, error.reason(), &message);
        }
        if !self.running.is_complete {
            return finding(false, BridgeReason::Waiting, "waits for the API server");
        }
        if let Some(error) = self.running.link.outbox().problem() {
            return finding(false, error.reason, &error.message);
        }
        if let Some(problem) = self.running.book.problem() {
            return finding(false, problem.reason, &self.advice(problem));
        }
        if let Some(why) = self.running.tools.reader.problem() {
            let message = format!("output cannot be read: {why}");
            return finding(false, BridgeReason::OutputUnavailable, &message);
        }
        finding(true, BridgeReason::Sending, "events are sent")
    }

    /// The sentence, with what helps.
    fn advice(&self, problem: &Problem) -> String {
        let said = &problem.message;
        if !problem.lacks_right {
            return said.clone();
        }
        let namespace = self.sink.namespace().unwrap_or_default();
        let account = &self.sink.spec.service_account_name;
        format!(
            "{said}; allow it: {}",
            remedy_for_sink(&self.sink.name_any(), &namespace, account)
        )
    }
}

/// What is told first about the destination.
pub fn first_finding() -> Finding {
    finding(false, BridgeReason::Waiting, "the destination is not connected yet")
}

fn finding(holds: bool, reason: BridgeReason, message: &str) -> Finding {
    Finding {
        holds,
        reason,
        message: message.to_owned(),
    }
}
