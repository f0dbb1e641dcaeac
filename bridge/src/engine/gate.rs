//! Whether messages are taken now. Pure but for the clock that it is given.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::SignedDuration;
use remoteprocess_api::ProcessTriggerSpec;
use remoteprocess_api::bridge::BridgeReason;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::kubernetes::ApiError;

/// The time in which `spec.policy.maxPerMinute` processes may be created.
const MINUTE: Duration = Duration::from_secs(60);

/// For how long a policy of admission may refuse a message, before that counts as its answer.
const PATIENCE: Duration = Duration::from_secs(600);
/// When a message that could not be handled is delivered again.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
/// The same at the latest, for one that a policy refuses again and again.
const LATEST: Duration = Duration::from_secs(60);
/// Most messages that are refused at the same time and known.
const MAX_REFUSALS: usize = 1024;

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
    /// Moments, in their order.
    creations: VecDeque<Instant>,
    /// Number of processes that were created.
    created: u64,
    /// Messages whose process the API server has refused with 403, by the name of the process.
    refusals: BTreeMap<String, Refusal>,
}

/// A message that is refused again and again.
#[derive(Debug)]
struct Refusal {
    first: Instant,
    last: Instant,
    /// [`Gate::created`] at the first time.
    created: u64,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            server: Server::Unknown,
            last_error: None,
            backoff: Backoff::default(),
            creations: VecDeque::new(),
            created: 0,
            refusals: BTreeMap::new(),
        }
    }

    /// A process was created.
    pub(super) fn created(&mut self, name: &str, now: Instant) {
        self.creations.push_back(now);
        self.created += 1;
        self.refusals.remove(name);
        self.accepted();
    }

    /// An earlier bridge has created a process this long ago. The API server tells whole seconds, and its clock may differ.
    pub(super) fn existed(&mut self, age: Option<SignedDuration>, now: Instant) {
        let age = age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
        let age = age.saturating_sub(Duration::from_secs(1));
        if let Some(moment) = now.checked_sub(age).filter(|_| age < MINUTE) {
            let place = self.creations.partition_point(|other| *other <= moment);
            self.creations.insert(place, moment);
        }
    }

    /// The processes that exist are listed again.
    pub(super) fn forget_creations(&mut self) {
        self.creations.clear();
    }

    /// Whether a message that the API server refuses with 403 can never become a process. It is, if a policy has refused it
    /// for ten minutes and let others pass meanwhile: it is the message, not the account, a quota or the template.
    pub(super) fn is_refused_for_good(&mut self, name: &str, said: &str, now: Instant) -> bool {
        if said.contains("quota") {
            return false;
        }
        // One that does not come any more.
        self.refusals
            .retain(|_, refusal| now.saturating_duration_since(refusal.last) < PATIENCE);
        if self.refusals.len() >= MAX_REFUSALS && !self.refusals.contains_key(name) {
            return false;
        }
        let created = self.created;
        let refusal = self.refusals.entry(name.to_owned()).or_insert(Refusal {
            first: now,
            last: now,
            created,
        });
        refusal.last = now;
        let is_over = now.saturating_duration_since(refusal.first) >= PATIENCE && created > refusal.created;
        if is_over {
            self.refusals.remove(name);
        }
        is_over
    }

    /// When a message whose process the API server does not take is tried again: later and later, if a policy refuses it
    /// and no other. Each try lets all messages wait for a moment.
    pub(super) fn delay(&self, name: &str, now: Instant) -> Duration {
        let refused_for = self
            .refusals
            .get(name)
            .map(|refusal| now.saturating_duration_since(refusal.first));
        refused_for.unwrap_or_default().clamp(AGAIN, LATEST)
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
        gate.created("a", now);
        gate.created("a", now + Duration::from_secs(30));
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(gate.closed(&spec, 0, after(59)), Some(BridgeReason::Limited));
        assert_eq!(gate.closed(&spec, 0, after(60)), None);
        gate.created("a", after(60));
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
        gate.created("a", now);
        assert_eq!(gate.error(), None);
    }

    #[test]
    fn what_an_earlier_bridge_has_created_counts_as_well() {
        let (mut gate, now) = (open(), Instant::now() + Duration::from_secs(3600));
        let spec = spec(100, Some(2));
        let ago = |seconds| Some(SignedDuration::from_secs(seconds));
        for age in [ago(90), ago(31), ago(-5), None] {
            gate.existed(age, now);
        }
        assert_eq!(gate.creations.len(), 3, "those of the last minute");
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(gate.closed(&spec, 0, after(0)), Some(BridgeReason::Limited));
        assert_eq!(gate.closed(&spec, 0, after(59)), Some(BridgeReason::Limited));
        assert_eq!(gate.closed(&spec, 0, after(60)), None, "the oldest comes first");
        gate.existed(ago(0), after(60));
        gate.existed(ago(0), after(60));
        gate.forget_creations();
        assert_eq!(gate.closed(&spec, 0, after(60)), None, "a new list");
    }

    #[test]
    fn a_message_that_a_policy_refuses_is_tried_less_and_less_often() {
        let (mut gate, now) = (open(), Instant::now());
        let (mut moment, mut delays) = (now, Vec::new());
        while moment < now + PATIENCE {
            assert!(!gate.is_refused_for_good("m", "denied", moment));
            delays.push(gate.delay("m", moment).as_secs());
            moment += gate.delay("m", moment);
        }
        assert_eq!(delays[..8], [1, 1, 2, 4, 8, 16, 32, 60]);
        gate.created("m", moment);
        assert_eq!((gate.delay("m", moment), gate.delay("other", moment)), (AGAIN, AGAIN));
    }

    #[test]
    fn a_message_that_a_policy_refuses_is_given_up_after_a_while_if_others_pass() {
        let (mut gate, now) = (open(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        let refused = |gate: &mut Gate, name: &str, seconds: u64| {
            (0..=seconds)
                .step_by(10)
                .all(|second| !gate.is_refused_for_good(name, "denied", after(second)))
        };
        assert!(refused(&mut gate, "m", 1200), "nothing passes: it is not this message");
        gate.created("other", after(1201));
        assert!(gate.is_refused_for_good("m", "denied", after(1210)));
        assert!(
            !gate.is_refused_for_good("m", "denied", after(1211)),
            "from the beginning"
        );
        gate.created("other", after(1212));
        assert!(
            !gate.is_refused_for_good("m", "exceeded quota", after(1811)),
            "a quota is not the message"
        );
        assert!(
            !gate.is_refused_for_good("m", "denied", after(1811)),
            "it was away for too long"
        );
    }
}
