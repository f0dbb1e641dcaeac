//! Receivers that may not exist: the sender of a message chooses where its result goes.

use jiff::{SignedDuration, Timestamp};
use remoteprocess_api::bridge::BridgeReason;

use super::SourceError;
use crate::outcome::CloudEvent;

/// For how long after the end of a process its result is sent to an address that does not exist. Otherwise a sender could
/// keep processes, which are deleted after their result was sent, forever.
const PATIENCE: SignedDuration = SignedDuration::from_mins(10);

/// What comes of a result for an address that a sender has chosen: one that the broker does not have, or does not let us
/// use, counts as sent in the end.
///
/// # Errors
/// Those of `sent`, for now.
pub(super) fn settled(sent: Result<(), SourceError>, event: &CloudEvent, now: Timestamp) -> Result<(), SourceError> {
    match sent {
        Err(error) if is_permanent(error.reason) && is_old(event, now) => {
            tracing::warn!(%error, process = event.subject, "a result has no receiver: it is not sent any more");
            Ok(())
        }
        sent => sent,
    }
}

fn is_old(event: &CloudEvent, now: Timestamp) -> bool {
    event.time.is_some_and(|time| now.duration_since(time) > PATIENCE)
}

fn is_permanent(reason: BridgeReason) -> bool {
    matches!(reason, BridgeReason::NotFound | BridgeReason::Unauthorized)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_result_without_a_receiver_is_given_up_after_a_while() {
        let event = CloudEvent {
            id: "u".into(),
            kind: "t",
            source: "s".into(),
            subject: "p".into(),
            time: Some(Timestamp::UNIX_EPOCH),
            data: json!({}),
        };
        let after = |reason, seconds| {
            let sent = Err(SourceError::new(reason, "no queue"));
            settled(sent, &event, Timestamp::from_second(seconds).unwrap()).is_ok()
        };
        assert!(!after(BridgeReason::NotFound, 600) && after(BridgeReason::NotFound, 601));
        assert!(after(BridgeReason::Unauthorized, 601));
        assert!(
            !after(BridgeReason::Unreachable, 1_000_000),
            "a broker that is away comes back"
        );
    }
}
