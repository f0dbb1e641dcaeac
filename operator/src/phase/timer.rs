//! Spans of time: what is left of one, and how often the message of a wait may change while its reason stays. Messages
//! from other components may change all the time.
//!
//! In: timestamps. Out: durations. Calls nothing of this module.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::backoff::Backoff;

/// Pause after the first renewal, and the longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// The renewals of one wait. The first may come at once: often the user has just fixed what the message named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Renewal {
    count: u32,
    last: Option<Timestamp>,
}

impl Renewal {
    /// How long the message must stay as it is; `None` when it may change.
    pub(super) fn left(&self, now: Timestamp) -> Option<Duration> {
        let (first, longest) = PAUSES;
        remaining(self.last?, Backoff::new(first, longest).after(self.count), now)
    }

    /// The state after another renewal.
    pub(super) fn next(&self, now: Timestamp) -> Self {
        Self {
            count: self.count.saturating_add(1),
            last: Some(now),
        }
    }
}

/// What is left of `span` since `since`; `None` when it is over.
pub(super) fn remaining(since: Timestamp, span: Duration, now: Timestamp) -> Option<Duration> {
    let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    let left = span.checked_sub(now.duration_since(since))?;
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}
