//! Whether messages are taken now. Pure but for the clock that it is given.

use std::collections::VecDeque;
use std::time::Duration;

use remoteprocess_api::ProcessTriggerSpec;
use remoteprocess_api::bridge::BridgeReason;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::kubernetes::ApiError;

/// The time in which `spec.policy.maxPerMinute` processes may be created.
const MINUTE: Duration = Duration::from_secs(60);

/// What the API server said last.
#[derive(Debug)]
enum Server {
    /// It has to be asked whether processes may be created.
    Unknown,
    /// It takes processes.
    Ready,
    /// It does not, and is not asked before this moment.
    Refuses { error: ApiError, until: Instant },
}

/// What decides about the next message.
#[derive(Debug)]
pub(super) struct Gate {
    server: Server,
    last_error: Option<ApiError>,
    backoff: Backoff,
    creations: VecDeque<Instant>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            server: Server::Unknown,
            last_error: None,
            backoff: Backoff::default(),
            creations: VecDeque::new(),
        }
    }

    /// A process was created.
    pub(super) fn created(&mut self, now: Instant) {
        self.creations.push_back(now);
        self.accepted();
    }

    /// The API server has answered as it should.
    pub(super) fn accepted(&mut self) {
        self.server = Server::Ready;
        self.last_error = None;
        self.backoff.reset();
    }

    /// The API server did not do what it should.
    pub(super) fn refused(&mut self, error: ApiError, now: Instant) {
        let until = now + self.backoff.pause();
        self.last_error = Some(error.clone());
        self.server = Server::Refuses { error, until };
    }

    /// Whether the API server has to be asked for the permission now.
    pub(super) fn must_ask(&self, now: Instant) -> bool {
        match &self.server {
            Server::Unknown => true,
            Server::Ready => false,
            Server::Refuses { until, .. } => *until <= now,
        }
    }

    /// The API server permits processes. The next one shows whether it is so: until then, pauses do not become shorter.
    pub(super) fn permitted(&mut self) {
        self.server = Server::Ready;
        if matches!(self.last_error, Some(ApiError::Unavailable(_))) {
            self.last_error = None;
        }
    }

    /// What the API server refused last, until it accepts a process.
    pub(super) fn error(&self) -> Option<&ApiError> {
        match &self.server {
            Server::Refuses { error, .. } => Some(error),
            Server::Unknown | Server::Ready => self.last_error.as_ref(),
        }
    }

    /// Why no message is taken now.
    pub(super) fn closed(&mut self, spec: &ProcessTriggerSpec, running: usize, now: Instant) -> Option<BridgeReason> {
        let is_over = |moment: &Instant| now.saturating_duration_since(*moment) >= MINUTE;
        while self.creations.front().is_some_and(is_over) {
            self.creations.pop_front();
        }
        if spec.is_suspended() {
            return Some(BridgeReason::Suspended);
        }
        match &self.server {
            Server::Unknown => return Some(BridgeReason::Waiting),
            Server::Refuses { error, .. } => return Some(error.reason()),
            Server::Ready => {}
        }
        let most = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
        let per_minute = spec.policy.as_ref().and_then(|policy| policy.max_per_minute);
        let is_limited =
            running >= most(spec.max_running()) || per_minute.is_some_and(|limit| self.creations.len() >= most(limit));
        is_limited.then_some(BridgeReason::Limited)
    }
}

#[cfg(test)]
mod tests {
    use remoteprocess_api::trigger::PolicySpec;

    use super::*;

    fn spec(max_running: u32, max_per_minute: Option<u32>) -> ProcessTriggerSpec {
        ProcessTriggerSpec {
            policy: Some(PolicySpec {
                max_running: Some(max_running),
                max_per_minute,
                ..PolicySpec::default()
            }),
            ..ProcessTriggerSpec::default()
        }
    }

    fn open() -> Gate {
        let mut gate = Gate::new();
        gate.accepted();
        gate
    }

    #[test]
    fn no_more_run_than_may() {
        let (mut gate, now) = (open(), Instant::now());
        assert_eq!(gate.closed(&spec(5, None), 4, now), None);
        assert_eq!(gate.closed(&spec(5, None), 5, now), Some(BridgeReason::Limited));
        let suspended = ProcessTriggerSpec {
            suspend: Some(true),
            ..spec(5, None)
        };
        assert_eq!(gate.closed(&suspended, 0, now), Some(BridgeReason::Suspended));
    }

    #[test]
    fn no_more_are_created_in_a_minute_than_may() {
        let (mut gate, now) = (open(), Instant::now());
        let spec = spec(100, Some(2));
        gate.created(now);
        gate.created(now + Duration::from_secs(30));
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(gate.closed(&spec, 0, after(59)), Some(BridgeReason::Limited));
        assert_eq!(gate.closed(&spec, 0, after(60)), None);
        gate.created(after(60));
        assert_eq!(gate.closed(&spec, 0, after(89)), Some(BridgeReason::Limited));
        assert_eq!(gate.closed(&spec, 0, after(90)), None);
    }

    #[test]
    fn a_server_that_refuses_is_asked_again_after_a_pause() {
        let (mut gate, now) = (Gate::new(), Instant::now());
        assert!(gate.must_ask(now), "before the first message");
        assert_eq!(gate.closed(&spec(5, None), 0, now), Some(BridgeReason::Waiting));
        gate.refused(ApiError::Forbidden("no".into()), now);
        assert_eq!(gate.closed(&spec(5, None), 0, now), Some(BridgeReason::Forbidden));
        assert!(!gate.must_ask(now + Duration::from_millis(300)));
        assert!(gate.must_ask(now + Duration::from_millis(500)));
        gate.permitted();
        assert_eq!(gate.closed(&spec(5, None), 0, now), None);
        assert!(gate.error().is_some(), "a quota may still refuse it");
        gate.created(now);
        assert_eq!(gate.error(), None);
    }
}
