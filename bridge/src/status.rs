//! What the bridge tells about its trigger: counts, conditions and metrics.

mod sheet;

use jiff::Timestamp;
use remoteprocess_api::bridge::{BridgeCondition, BridgeReason};
use remoteprocess_api::trigger::{ReplayProgress, ReplayStatus};
use remoteprocess_api::{ProcessTrigger, ProcessTriggerStatus};
use remoteprocess_runtime::prometheus_client::metrics::counter::Counter;
use remoteprocess_runtime::prometheus_client::metrics::gauge::Gauge;
use remoteprocess_runtime::prometheus_client::registry::Registry;
use serde_json::Value;

pub(crate) use sheet::Sheet;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Messages that were delivered.
    Received,
    /// Processes that were created.
    Started,
    /// Messages whose process existed already.
    Duplicate,
    /// Processes that succeeded.
    Succeeded,
    /// Processes that failed.
    Failed,
    /// Messages that were dead-lettered.
    DeadLettered,
    /// Requests that were refused.
    Refused,
}

/// Metrics of the bridge. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    received: Counter,
    started: Counter,
    duplicates: Counter,
    succeeded: Counter,
    failed: Counter,
    dead_lettered: Counter,
    refused: Counter,
    running: Gauge,
    lag: Gauge,
    connected: Gauge,
}

/// The state of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it is true.
    pub holds: bool,
    /// Why.
    pub reason: BridgeReason,
    /// A sentence.
    pub message: String,
}

/// Collects what is told.
#[derive(Debug)]
pub struct Board {
    sheet: Sheet<ProcessTriggerStatus>,
    metrics: Metrics,
}

impl Metrics {
    /// Adds the metrics to the program's registry.
    pub fn register(&self, registry: &mut Registry) {
        let bridge = registry.sub_registry_with_prefix("remoteprocess_bridge");
        bridge.register("received", "Messages that were delivered", self.received.clone());
        bridge.register("started", "Processes that were created", self.started.clone());
        let help = "Messages whose process existed already";
        bridge.register("duplicates", help, self.duplicates.clone());
        bridge.register("succeeded", "Processes that succeeded", self.succeeded.clone());
        bridge.register("failed", "Processes that failed", self.failed.clone());
        let help = "Messages that were dead-lettered";
        bridge.register("dead_lettered", help, self.dead_lettered.clone());
        bridge.register("refused", "Requests that were refused", self.refused.clone());
        bridge.register("running", "Processes that have not ended", self.running.clone());
        bridge.register("lag", "Messages that wait in the broker", self.lag.clone());
        bridge.register("connected", "1 if the source is connected", self.connected.clone());
    }
}

impl Metrics {
    /// This bridge does not work any more: what was so then is not so now.
    pub fn idle(&self) {
        for gauge in [&self.running, &self.lag, &self.connected] {
            gauge.set(0);
        }
    }
}

impl Board {
    /// Continues from the status that the trigger has.
    pub fn new(trigger: &ProcessTrigger, metrics: Metrics) -> Self {
        let mut board = Self {
            sheet: Sheet::after(trigger.status.clone()),
            metrics,
        };
        board.observe(trigger);
        board
    }

    /// Describes this version of the trigger from now on.
    pub fn observe(&mut self, trigger: &ProcessTrigger) {
        self.sheet.status.observed_generation = trigger.metadata.generation;
        self.sheet.status.source = Some(trigger.spec.source.kind().to_owned());
    }

    /// Counts.
    pub fn count(&mut self, what: Count, number: u64) {
        let (status, metrics) = (&mut self.sheet.status, &self.metrics);
        let (count, counter) = match what {
            Count::Received => (&mut status.received, &metrics.received),
            Count::Started => (&mut status.started, &metrics.started),
            Count::Duplicate => (&mut status.duplicates, &metrics.duplicates),
            Count::Succeeded => (&mut status.succeeded, &metrics.succeeded),
            Count::Failed => (&mut status.failed, &metrics.failed),
            Count::DeadLettered => (&mut status.dead_lettered, &metrics.dead_lettered),
            Count::Refused => (&mut status.refused, &metrics.refused),
        };
        *count = Some(count.unwrap_or_default().saturating_add(number));
        counter.inc_by(number);
    }

    /// A message has arrived.
    pub fn received(&mut self, now: Timestamp) {
        self.count(Count::Received, 1);
        self.sheet.status.last_message_time = Some(whole_seconds(now));
    }

    /// How many processes run.
    pub fn running(&mut self, running: usize) {
        self.sheet.status.running = Some(u32::try_from(running).unwrap_or(u32::MAX));
        self.metrics.running.set(i64::try_from(running).unwrap_or(i64::MAX));
    }

    /// How many messages wait.
    pub fn lag(&mut self, lag: Option<u64>) {
        self.sheet.status.lag = lag;
        self.metrics
            .lag
            .set(i64::try_from(lag.unwrap_or_default()).unwrap_or(i64::MAX));
    }

    /// Sets a condition. Returns whether that is news for people: another status, or another reason for False.
    pub fn set(&mut self, condition: BridgeCondition, finding: &Finding, now: Timestamp) -> bool {
        if condition == BridgeCondition::Connected {
            self.metrics.connected.set(finding.holds.into());
        }
        self.sheet.set(condition, finding, now)
    }

    /// Whether a condition has another status, or another reason for False, than was written, or a person waits for the answer
    /// to a replay, or one is further: the next bridge would send again what it does not know. That does not wait.
    pub fn is_urgent(&self) -> bool {
        let (status, written) = (&self.sheet.status, self.sheet.last());
        let of_replay = |status: &ProcessTriggerStatus| {
            let answer = status.replay.as_ref().map(|replay| replay.nonce.clone());
            (answer, status.replaying.clone())
        };
        self.sheet.is_urgent() || of_replay(status) != written.map(of_replay).unwrap_or_default()
    }

    /// Notes what came of a replay.
    pub fn replayed(&mut self, replay: ReplayStatus) {
        self.sheet.status.replay = Some(replay);
    }

    /// Notes how far a replay is that has not ended.
    pub fn replaying(&mut self, progress: Option<ReplayProgress>) {
        self.sheet.status.replaying = progress;
    }

    /// The status to write, if it differs from what was written last.
    pub fn unwritten(&self) -> Option<Value> {
        self.sheet.unwritten()
    }

    /// Notes what was written.
    pub fn written(&mut self, status: Value) {
        self.sheet.written(status);
    }
}

/// Times in the API have seconds.
pub(crate) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use remoteprocess_api::ProcessTriggerSpec;
    use remoteprocess_runtime::prometheus_client::encoding::text::encode;
    use serde_json::json;

    use super::*;

    fn trigger(status: Value) -> ProcessTrigger {
        let mut trigger = ProcessTrigger::new("orders", ProcessTriggerSpec::default());
        trigger.metadata.generation = Some(3);
        trigger.status = serde_json::from_value(status).unwrap();
        trigger
    }

    fn finding(holds: bool, reason: BridgeReason) -> Finding {
        Finding {
            holds,
            reason,
            message: "it\u{1b}[2J is so".into(),
        }
    }

    #[test]
    fn counts_continue_and_the_condition_of_the_operator_is_left_out() {
        let deployed = json!({"type": "Deployed", "status": "True", "reason": "Deployed", "message": "",
                              "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mut board = Board::new(
            &trigger(json!({"started": 7, "conditions": [deployed]})),
            Metrics::default(),
        );
        board.count(Count::Started, 1);
        let status = board.unwritten().unwrap();
        assert_eq!(
            (&status["started"], &status["observedGeneration"]),
            (&json!(8), &json!(3))
        );
        assert_eq!(status.get("conditions"), None);
        board.written(status);
        assert_eq!(board.unwritten(), None, "nothing new");
        board.count(Count::Refused, 2);
        assert_eq!(board.unwritten().unwrap()["refused"], 2);
    }

    #[test]
    fn the_transition_is_when_the_status_changed() {
        let mut board = Board::new(&trigger(json!({})), Metrics::default());
        let (first, later) = (
            Timestamp::from_second(100).unwrap(),
            Timestamp::from_second(200).unwrap(),
        );
        let is_news = board.set(BridgeCondition::Ready, &finding(true, BridgeReason::Taking), first);
        assert!(!is_news, "nothing was known before");
        assert!(board.is_urgent());
        board.written(board.unwritten().unwrap());
        assert!(!board.set(BridgeCondition::Ready, &finding(true, BridgeReason::Limited), later));
        let ready = board.unwritten().unwrap()["conditions"][0].clone();
        assert_eq!(ready["lastTransitionTime"], "1970-01-01T00:01:40Z");
        assert!(!board.is_urgent(), "that more or fewer run can wait");
        assert_eq!(
            (&ready["reason"], &ready["message"]),
            (&json!("Limited"), &json!("it[2J is so"))
        );
        assert!(board.set(BridgeCondition::Ready, &finding(false, BridgeReason::Forbidden), later));
        assert_eq!(
            board.unwritten().unwrap()["conditions"][0]["lastTransitionTime"],
            "1970-01-01T00:03:20Z"
        );
        assert!(board.is_urgent());
        let mut set = |reason| board.set(BridgeCondition::Ready, &finding(false, reason), later);
        assert!(!set(BridgeReason::Forbidden) && set(BridgeReason::NotFound) && !set(BridgeReason::Waiting));
    }

    #[test]
    fn metrics_have_their_names() {
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        let mut board = Board::new(&trigger(json!({})), metrics);
        board.count(Count::DeadLettered, 2);
        board.running(4);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("remoteprocess_bridge_dead_lettered_total 2"), "{text}");
        assert!(text.contains("remoteprocess_bridge_running 4"), "{text}");
    }

    #[test]
    fn every_metric_is_in_the_documentation() {
        let mut registry = Registry::default();
        Metrics::default().register(&mut registry);
        crate::standby::Metrics::default().register(&mut registry);
        documented(&registry, "remoteprocess_bridge_");
    }

    /// The metrics of the registry and those with this prefix in the documentation are the same.
    pub(crate) fn documented(registry: &Registry, prefix: &str) {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let ours: BTreeSet<_> = samples.filter_map(|line| line.split(' ').next()).collect();
        let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md")).unwrap();
        let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
        let names = rows.flat_map(|row| row.split(" |").next().unwrap().split('`'));
        let documented: BTreeSet<_> = names.filter(|name| name.starts_with(prefix)).collect();
        assert_eq!(ours, documented);
    }
}
