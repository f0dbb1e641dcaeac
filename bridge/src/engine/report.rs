//! What the engine tells: conditions, status, and the test messages that people ask for.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::bridge::{BridgeCondition, BridgeReason};
use remoteprocess_api::names::ANNOTATION_TEST_MESSAGE;
use remoteprocess_api::trigger::{MAX_TEST_MESSAGE_BYTES, TEST_MESSAGE_SECONDS, TestMessage};
use serde_json::Value;
use tokio::time::Instant;

use super::Engine;
use crate::kubernetes::{ApiError, remedy};
use crate::message::Message;
use crate::source::SourceError;
use crate::status::{Count, Finding};

/// Shortest time between two writes of the status.
const WRITE: Duration = Duration::from_secs(2);
/// The same, if a condition is another one.
const WRITE_URGENT: Duration = Duration::from_millis(250);
/// How often the broker is asked how many messages wait.
const LAG: Duration = Duration::from_secs(5);
/// How often the broker is told that kept messages are still worked on.
const EXTEND: Duration = Duration::from_secs(3);
/// How often processes whose time is over are looked for.
const FORGET: Duration = Duration::from_secs(1);
/// Pause between two tries to send a test message.
const TEST_AGAIN: Duration = Duration::from_secs(2);
/// For how long a message that is stuck is reported after it was seen last. It is tried again every few seconds.
const STUCK: Duration = Duration::from_secs(60);

/// What is known about the state of the trigger.
pub(super) struct Report {
    /// Why no message is taken.
    pub(super) closed: Option<BridgeReason>,
    /// The last refusal of a process, until another is accepted.
    pub(super) invalid: Option<ApiError>,
    /// A message that can neither become a process nor a dead letter, why, and when that was seen last.
    pub(super) stuck: Option<(SourceError, Instant)>,
    /// Why processes cannot be watched, before the first list is there.
    pub(super) watch_error: Option<String>,
    /// Whether the list that is being read has named the trigger.
    pub(super) is_listed: bool,
    pub(super) writing: Option<BoxFuture<'static, (Value, Result<(), ApiError>)>>,
    /// Whether the last write of the status failed.
    pub(super) write_failed: bool,
    pub(super) testing: Option<BoxFuture<'static, Result<(), SourceError>>>,
    source: Result<(), SourceError>,
    test: Option<TestMessage>,
    tested: Option<String>,
    times: Times,
}

/// When what is done at intervals was done last.
#[derive(Default)]
struct Times {
    written: Option<Instant>,
    lag: Option<Instant>,
    extended: Option<Instant>,
    forgotten: Option<Instant>,
    tested: Option<Instant>,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            closed: Some(BridgeReason::Waiting),
            invalid: None,
            stuck: None,
            watch_error: None,
            is_listed: true,
            writing: None,
            write_failed: false,
            testing: None,
            source: Err(connecting()),
            test: None,
            tested: None,
            times: Times::default(),
        }
    }
}

fn connecting() -> SourceError {
    SourceError::unreachable("connecting to the source")
}

/// What is told first about the source.
pub fn first_finding() -> Finding {
    let error = connecting();
    finding(false, error.reason, &error.message)
}

impl Report {
    pub(super) fn connecting(&mut self) {
        self.source = Err(connecting());
    }

    pub(super) fn connected(&mut self) {
        tracing::info!("the source is connected");
        self.source = Ok(());
    }

    pub(super) fn lost(&mut self, error: SourceError) {
        self.source = Err(error);
    }

    /// Notes the test message of a trigger, if it is new.
    pub(super) fn see_test(&mut self, trigger: &ProcessTrigger, now: Timestamp) {
        let test = trigger
            .annotations()
            .get(ANNOTATION_TEST_MESSAGE)
            .and_then(|text| read_test(text));
        let is_new = |test: &TestMessage| self.tested.as_ref() != Some(&test.nonce) && is_fresh(test.time, now);
        if let Some(test) = test.filter(is_new) {
            self.test = Some(test);
        }
    }

    pub(super) fn tested(&mut self, tested: Result<(), SourceError>) {
        match tested {
            Ok(()) => self.tested = self.test.take().map(|test| test.nonce),
            Err(error) => tracing::warn!(%error, "cannot send the test message, will try again"),
        }
    }
}

fn read_test(text: &str) -> Option<TestMessage> {
    let test = (text.len() <= MAX_TEST_MESSAGE_BYTES).then(|| serde_json::from_str(text).ok());
    let test: Option<TestMessage> = test.flatten();
    if test.is_none() {
        tracing::warn!("the annotation {ANNOTATION_TEST_MESSAGE} is too large, or no test message: it is ignored");
    }
    test
}

/// Whether a request was made a short time ago; the clocks of people differ.
pub(super) fn is_fresh(made: Timestamp, now: Timestamp) -> bool {
    now.duration_since(made).abs() <= SignedDuration::from_secs(TEST_MESSAGE_SECONDS.into())
}

fn test_message(test: &TestMessage) -> Message {
    let mut message = Message {
        id: Some(test.id.clone()),
        payload: STANDARD.decode(&test.data).unwrap_or_default().into(),
        ..Message::default()
    };
    for (name, value) in &test.headers {
        message.insert(name, value);
    }
    message.content_type = message.header("content-type").map(str::to_owned);
    message
}

/// Whether this is due again; if so, it counts as done now.
fn is_due(last: &mut Option<Instant>, every: Duration, now: Instant) -> bool {
    let is_due = last.is_none_or(|last| now.duration_since(last) >= every);
    if is_due {
        *last = Some(now);
    }
    is_due
}

impl Engine {
    pub(super) async fn on_tick(&mut self) {
        let now = Instant::now();
        if is_due(&mut self.report.times.lag, LAG, now) {
            let lag = self.link.lag().await;
            self.board.lag(lag);
        }
        if is_due(&mut self.report.times.extended, EXTEND, now) {
            self.extend_kept().await;
        }
        if is_due(&mut self.report.times.forgotten, FORGET, now) {
            self.start_deletions();
            self.start_inspections();
            self.report
                .stuck
                .take_if(|(_, seen)| now.duration_since(*seen) >= STUCK);
        }
        let refused = self.link.refused();
        if refused > 0 {
            self.board.count(Count::Refused, refused);
        }
        self.start_test(now);
        self.start_replay();
    }

    fn start_test(&mut self, now: Instant) {
        let (Some(test), None) = (&self.report.test, &self.report.testing) else {
            return;
        };
        if !is_fresh(test.time, Timestamp::now()) {
            self.report.test = None;
            return;
        }
        let Some(publisher) = self.link.publisher() else { return };
        if is_due(&mut self.report.times.tested, TEST_AGAIN, now) {
            let message = test_message(test);
            self.report.testing = Some(Box::pin(async move { publisher.send(&message).await }));
        }
    }

    /// Decides whether messages are taken, and tells it to the source and in the status.
    pub(super) fn tell(&mut self, now: Instant) {
        let running = self.running();
        let closed = self.gate.closed(&self.trigger.spec, running, now);
        let closed = closed.or_else(|| (!self.runs.is_complete()).then_some(BridgeReason::Waiting));
        self.report.closed = closed;
        self.link.hold(closed);
        self.board.running(running);
        self.board.replaying(self.replays.progress());
        let moment = Timestamp::now();
        let findings = [
            (BridgeCondition::Connected, self.connected_finding()),
            (BridgeCondition::Ready, self.ready_finding()),
        ];
        for (condition, finding) in findings {
            // Connected says it already.
            let is_repeated = condition == BridgeCondition::Ready && self.report.source.is_err();
            if self.board.set(condition, &finding, moment) && !is_repeated {
                self.write_event(condition, finding);
            }
        }
        let may_write = self.report.writing.is_none();
        let Some(status) = self.board.unwritten().filter(|_| may_write) else {
            return;
        };
        let is_urgent = self.board.is_urgent() && !self.report.write_failed;
        let pause = if is_urgent { WRITE_URGENT } else { WRITE };
        if is_due(&mut self.report.times.written, pause, now) {
            let (kubernetes, name) = (self.kubernetes.clone(), self.trigger.name_any());
            self.report.writing = Some(Box::pin(async move {
                let written = kubernetes.apply_status::<ProcessTrigger>(&name, &status).await;
                (status, written)
            }));
        }
    }

    /// Conditions change at most as often as the backoff of the source and of the API server lets them.
    fn write_event(&self, condition: BridgeCondition, finding: Finding) {
        let (kubernetes, trigger) = (self.kubernetes.clone(), self.trigger.clone());
        tokio::spawn(async move { kubernetes.report(&*trigger, condition, &finding).await });
    }

    fn connected_finding(&self) -> Finding {
        match &self.report.source {
            Ok(()) => finding(true, BridgeReason::Connected, "the source is connected"),
            Err(error) => finding(false, error.reason, &error.message),
        }
    }

    fn ready_finding(&self) -> Finding {
        if self.trigger.spec.is_suspended() {
            return finding(
                false,
                BridgeReason::Suspended,
                "spec.suspend is set: messages wait in the source",
            );
        }
        if let Some(error) = self.report.watch_error.as_ref().filter(|_| !self.runs.is_complete()) {
            return finding(
                false,
                BridgeReason::Waiting,
                &format!("processes cannot be watched: {error}"),
            );
        }
        if let Some(error) = self.gate.error() {
            return finding(false, error.reason(), &self.advice(error));
        }
        if let Err(error) = &self.report.source {
            return finding(false, error.reason, &error.message);
        }
        if let Some(error) = &self.report.invalid {
            return finding(false, BridgeReason::InvalidTemplate, &error.to_string());
        }
        if let Some((error, _)) = &self.report.stuck {
            return finding(false, error.reason, &error.message);
        }
        match (self.report.closed, &self.results.problem) {
            (Some(BridgeReason::Waiting), _) => finding(false, BridgeReason::Waiting, "waits for the API server"),
            (Some(BridgeReason::Limited), None) => finding(
                true,
                BridgeReason::Limited,
                "as many processes run as may (spec.policy): messages wait",
            ),
            (_, Some(problem)) => {
                let message = format!("messages become processes, but results cannot be sent: {problem}");
                finding(true, BridgeReason::Taking, &message)
            }
            _ => finding(true, BridgeReason::Taking, "messages become processes"),
        }
    }

    /// The error, with what helps.
    fn advice(&self, error: &ApiError) -> String {
        let namespace = self.trigger.namespace().unwrap_or_default();
        match error {
            // A policy of admission, not a missing permission.
            ApiError::Forbidden(said) if said.contains("denied") => {
                format!("a policy of the cluster does not let the process be created: {said}")
            }
            ApiError::Forbidden(said) if !said.contains("quota") => {
                let account = &self.trigger.spec.service_account_name;
                format!(
                    "{said}; allow it: {}",
                    remedy(&self.trigger.name_any(), &namespace, account)
                )
            }
            other => other.to_string(),
        }
    }
}

fn finding(holds: bool, reason: BridgeReason, message: &str) -> Finding {
    Finding {
        holds,
        reason,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_message_counts_once_and_only_for_a_while() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let with = |text: &str| {
            let mut trigger = ProcessTrigger::new("orders", remoteprocess_api::ProcessTriggerSpec::default());
            trigger
                .annotations_mut()
                .insert(ANNOTATION_TEST_MESSAGE.into(), text.into());
            trigger
        };
        let test = r#"{"nonce":"1","time":"2026-01-01T00:00:00Z","id":"t1","headers":{"A":"b"},"data":"aGk="}"#;
        let mut report = Report::default();
        report.see_test(&with(test), now);
        let message = test_message(report.test.as_ref().unwrap());
        assert_eq!(
            (message.id.as_deref(), &message.payload[..], message.header("a")),
            (Some("t1"), &b"hi"[..], Some("b"))
        );
        report.tested(Err(SourceError::unreachable("no")));
        assert!(report.test.is_some(), "it is tried again");
        report.tested(Ok(()));
        report.see_test(&with(test), now);
        assert_eq!(report.test, None, "it was sent");
        report.see_test(
            &with(&test.replace("\"1\"", "\"2\"")),
            now + SignedDuration::from_secs(1),
        );
        assert_eq!(report.test, None, "too old");
        report.see_test(&with("nonsense"), now);
        report.see_test(&with(&format!("{test}{}", " ".repeat(MAX_TEST_MESSAGE_BYTES))), now);
        assert_eq!(report.test, None);
    }
}
