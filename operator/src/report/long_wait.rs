//! Decides when a wait is worth an Event.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use remoteprocess_api::{Phase, Reason, RemoteProcess};

use crate::backoff::Backoff;

/// A wait of this length is reported.
const LONG: Duration = Duration::from_secs(30);
/// Pause between the first two reports, and, as it doubles, the longest pause: an Event lives for an hour.
const PAUSES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(30 * 60));

/// One wait of a process, and its reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LongWait {
    /// Reason and message, while it waits.
    said: Option<(Reason, String)>,
    /// When the next report is due.
    due: Option<Timestamp>,
    /// Reports of this wait.
    reports: u32,
    /// Reports of this message.
    count: u32,
}

impl LongWait {
    /// Looks at the process. If a report is due, returns how many there were of this message, including this one.
    ///
    /// Another reason begins another wait. Another message does not: it may change all the time.
    pub(crate) fn see(&mut self, process: &RemoteProcess, now: Timestamp) -> Option<u32> {
        let said = waits_for(process);
        let reason = |said: &Option<(Reason, String)>| said.as_ref().map(|(reason, _)| *reason);
        if reason(&said) != reason(&self.said) {
            *self = Self {
                due: said.is_some().then(|| after(now, LONG)),
                ..Self::default()
            };
        } else if said != self.said {
            self.count = 0;
        }
        self.said = said;
        if self.due? > now {
            return None;
        }
        self.reports = self.reports.saturating_add(1);
        let (first, longest) = PAUSES;
        self.due = Some(after(now, Backoff::new(first, longest).after(self.reports)));
        self.count = self.count.saturating_add(1);
        Some(self.count)
    }
}

fn waits_for(process: &RemoteProcess) -> Option<(Reason, String)> {
    let status = process.status.as_ref()?;
    let waits = matches!(status.phase?, Phase::Pending | Phase::Starting);
    waits.then_some((status.reason?, status.message.clone().unwrap_or_default()))
}

fn after(now: Timestamp, span: Duration) -> Timestamp {
    let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    now.saturating_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn process(phase: &str, reason: &str, message: &str) -> RemoteProcess {
        serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "job"},
            "spec": {"image": "i", "command": ["x"]},
            "status": {"phase": phase, "reason": reason, "message": message},
        }))
        .unwrap()
    }

    /// The seconds at which reports are due, with a look each second.
    fn reports(seconds: i64, process: impl Fn(i64) -> RemoteProcess) -> Vec<(i64, u32)> {
        let mut wait = LongWait::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut see = |second| Some((second, wait.see(&process(second), at(second))?));
        (0..seconds).filter_map(&mut see).collect()
    }

    #[test]
    fn a_long_wait_is_reported_ever_more_seldom() {
        let waits = |_| process("Pending", "Unschedulable", "no cpu");
        assert_eq!(reports(30, waits), []);
        assert_eq!(reports(1000, waits), [(30, 1), (90, 2), (210, 3), (450, 4), (930, 5)]);
        assert!(reports(24 * 3600, waits).len() < 60, "within the write budget");
    }

    #[test]
    fn a_sentence_that_changes_with_every_look_costs_no_more() {
        let waits = |second: i64| process("Pending", "Unschedulable", &format!("0/{second} nodes"));
        assert_eq!(reports(1000, waits), [(30, 1), (90, 1), (210, 1), (450, 1), (930, 1)]);
    }

    #[test]
    fn another_reason_is_another_wait_and_what_runs_waits_for_nothing() {
        let waits = |second| match second {
            0..100 => process("Pending", "Quota", "exceeded"),
            100..200 => process("Running", "Running", "it runs"),
            _ => process("Starting", "Enrolling", "it waits for its agent"),
        };
        assert_eq!(reports(300, waits), [(30, 1), (90, 2), (230, 1), (290, 2)]);
    }
}
