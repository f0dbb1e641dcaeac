//! What the bridge tells about its sink: counts, conditions and metrics.

use jiff::Timestamp;
use remoteprocess_api::bridge::BridgeCondition;
use remoteprocess_api::{ProcessSink, ProcessSinkStatus};
use remoteprocess_runtime::prometheus_client::metrics::counter::Counter;
use remoteprocess_runtime::prometheus_client::metrics::gauge::Gauge;
use remoteprocess_runtime::prometheus_client::registry::Registry;
use serde_json::Value;

use super::link::Tally;
use crate::status::{self, Finding, Sheet};

/// Metrics of the bridge of a sink. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    sent: Counter,
    resent: Counter,
    dropped: Counter,
    waiting: Gauge,
    working: Gauge,
    connected: Gauge,
}

impl Metrics {
    /// Adds the metrics to the program's registry.
    pub fn register(&self, registry: &mut Registry) {
        let sink = registry.sub_registry_with_prefix("remoteprocess_sink");
        sink.register("sent", "Events that the destination has confirmed", self.sent.clone());
        let help = "Times that an event was sent again";
        sink.register("resent", help, self.resent.clone());
        let help = "Processes that were deleted and whose last events were dropped";
        sink.register("dropped", help, self.dropped.clone());
        let help = "Processes with events that are not sent";
        sink.register("waiting", help, self.waiting.clone());
        let help = "Processes whose events are being sent";
        sink.register("working", help, self.working.clone());
        sink.register("connected", "1 if the destination is connected", self.connected.clone());
    }

    /// This bridge does not work any more: what was so then is not so now.
    pub fn idle(&self) {
        for gauge in [&self.waiting, &self.working, &self.connected] {
            gauge.set(0);
        }
    }
}

/// Collects what is told.
#[derive(Debug)]
pub(crate) struct Board {
    sheet: Sheet<ProcessSinkStatus>,
    metrics: Metrics,
}

impl Board {
    /// Continues from the status that the sink has.
    pub(crate) fn new(sink: &ProcessSink, metrics: Metrics) -> Self {
        let mut board = Self {
            sheet: Sheet::after(sink.status.clone()),
            metrics,
        };
        board.observe(sink);
        board
    }

    /// Describes this version of the sink from now on.
    pub(super) fn observe(&mut self, sink: &ProcessSink) {
        self.sheet.status.observed_generation = sink.metadata.generation;
        self.sheet.status.destination = Some(sink.spec.destination.kind().to_owned());
    }

    /// What has become of events.
    pub(super) fn count(&mut self, tally: &Tally, dropped: u64) {
        let add = |count: &mut Option<u64>, number| *count = Some(count.unwrap_or_default().saturating_add(number));
        add(&mut self.sheet.status.sent, tally.sent);
        add(&mut self.sheet.status.resent, tally.resent);
        if let Some(last) = tally.last {
            self.sheet.status.last_event_time = Some(status::whole_seconds(last));
        }
        self.metrics.sent.inc_by(tally.sent);
        self.metrics.resent.inc_by(tally.resent);
        self.metrics.dropped.inc_by(dropped);
    }

    /// How many processes have events to send, and of how many they are being sent.
    pub(super) fn queue(&mut self, waiting: usize, working: usize) {
        self.sheet.status.waiting = Some(u32::try_from(waiting).unwrap_or(u32::MAX));
        self.metrics.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.metrics.working.set(i64::try_from(working).unwrap_or(i64::MAX));
    }

    /// Sets a condition. Returns whether that is news for people.
    pub(crate) fn set(&mut self, condition: BridgeCondition, finding: &Finding, now: Timestamp) -> bool {
        if condition == BridgeCondition::Connected {
            self.metrics.connected.set(finding.holds.into());
        }
        self.sheet.set(condition, finding, now)
    }

    /// Whether a condition has another status, or another reason for False, than was written.
    pub(super) fn is_urgent(&self) -> bool {
        self.sheet.is_urgent()
    }

    /// The status to write, if it differs from what was written last.
    pub(crate) fn unwritten(&self) -> Option<Value> {
        self.sheet.unwritten()
    }

    /// Notes what was written.
    pub(super) fn written(&mut self, status: Value) {
        self.sheet.written(status);
    }
}

#[cfg(test)]
mod tests {
    use remoteprocess_api::ProcessSinkSpec;
    use remoteprocess_api::bridge::BridgeReason;
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_continue_and_the_condition_of_the_operator_is_left_out() {
        let mut sink = ProcessSink::new("events", ProcessSinkSpec::default());
        sink.metadata.generation = Some(4);
        let deployed = json!({"type": "Deployed", "status": "True", "reason": "Deployed", "message": "",
                              "lastTransitionTime": "2026-01-01T00:00:00Z"});
        sink.status = serde_json::from_value(json!({"sent": 7, "conditions": [deployed]})).unwrap();
        let mut board = Board::new(&sink, Metrics::default());
        let tally = Tally {
            sent: 2,
            resent: 1,
            last: Timestamp::from_second(100).ok(),
        };
        board.count(&tally, 0);
        board.queue(3, 1);
        let finding = Finding {
            holds: true,
            reason: BridgeReason::Sending,
            message: "events are sent".into(),
        };
        board.set(BridgeCondition::Ready, &finding, Timestamp::UNIX_EPOCH);
        assert!(board.is_urgent());
        let status = board.unwritten().unwrap();
        let expected = json!({
            "observedGeneration": 4, "destination": "none", "sent": 9, "resent": 1, "waiting": 3,
            "lastEventTime": "1970-01-01T00:01:40Z",
            "conditions": [{"type": "Ready", "status": "True", "reason": "Sending", "message": "events are sent",
                            "observedGeneration": 4, "lastTransitionTime": "1970-01-01T00:00:00Z"}],
        });
        assert_eq!(status, expected);
        board.written(status);
        assert!(board.unwritten().is_none() && !board.is_urgent());
    }

    #[test]
    fn every_metric_is_in_the_documentation() {
        let mut registry = Registry::default();
        Metrics::default().register(&mut registry);
        status::tests::documented(&registry, "remoteprocess_sink_");
    }
}
