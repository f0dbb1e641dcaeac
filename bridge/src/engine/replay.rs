//! Dead letters on their way back to the source, when a person asks for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::ResourceExt as _;
use remoteprocess_api::names::ANNOTATION_REPLAY;
use remoteprocess_api::trigger::{MAX_REPLAY, MAX_TEST_MESSAGE_BYTES, ReplayProgress, ReplayRequest, ReplayStatus};
use remoteprocess_api::{ProcessTrigger, ProcessTriggerStatus, sanitize};
use tokio::time::timeout;

use super::Engine;
use super::jobs::SendError;
use super::report::is_fresh;
use crate::kubernetes::Kubernetes;
use crate::message::{self, DEAD_LETTER_TRIGGER, Message, REPLAY_OF};
use crate::outcome;
use crate::process::name_of;
use crate::source::{Publisher, SourceError};

/// How long one replay may take. What remains is for the next one.
const LONGEST: Duration = Duration::from_secs(60);
/// Longest sentence about what went wrong, in characters.
const MAX_SENTENCE: usize = 1024;

/// What people asked for.
#[derive(Default)]
pub(super) struct Replays {
    request: Option<ReplayRequest>,
    /// The last one that was answered.
    answered: Option<String>,
    /// The one that runs, or that an earlier bridge has begun.
    begun: Option<Begun>,
    pub(super) running: Option<BoxFuture<'static, ReplayStatus>>,
}

/// A replay, and how many letters it has sent.
#[derive(Clone)]
struct Begun {
    nonce: String,
    replayed: Arc<AtomicU32>,
}

impl Replays {
    /// Continues after the answers of an earlier bridge, and with what it had begun.
    pub(super) fn after(status: Option<&ProcessTriggerStatus>) -> Self {
        let begun = status.and_then(|status| status.replaying.as_ref());
        Self {
            answered: status.and_then(|status| Some(status.replay.as_ref()?.nonce.clone())),
            begun: begun.map(|progress| Begun {
                nonce: progress.nonce.clone(),
                replayed: Arc::new(progress.replayed.into()),
            }),
            ..Self::default()
        }
    }

    /// How far the one is that has not ended.
    pub(super) fn progress(&self) -> Option<ReplayProgress> {
        self.begun.as_ref().map(|begun| ReplayProgress {
            nonce: begun.nonce.clone(),
            replayed: begun.replayed.load(Ordering::Relaxed),
        })
    }

    /// It has ended.
    pub(super) fn ended(&mut self) {
        self.begun = None;
    }

    /// Notes the request of a trigger, if it is new.
    pub(super) fn see(&mut self, trigger: &ProcessTrigger, now: Timestamp) {
        let text = trigger.annotations().get(ANNOTATION_REPLAY);
        let Some(text) = text.filter(|text| text.len() <= MAX_TEST_MESSAGE_BYTES) else {
            return;
        };
        match serde_json::from_str::<ReplayRequest>(text) {
            Ok(request) if self.is_open(&request, now) => self.request = Some(request),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the annotation {ANNOTATION_REPLAY} is no request: it is ignored"),
        }
    }

    /// Whether a request is to be answered. One that was begun is, however long no bridge was there.
    fn is_open(&self, request: &ReplayRequest, now: Timestamp) -> bool {
        let is_begun = || self.begun.as_ref().is_some_and(|begun| begun.nonce == request.nonce);
        self.answered.as_ref() != Some(&request.nonce) && (is_fresh(request.time, now) || is_begun())
    }

    /// What is to be done now.
    fn due(&mut self, now: Timestamp) -> Option<(ReplayRequest, Arc<AtomicU32>)> {
        if self.running.is_some() {
            return None;
        }
        let request = self.request.take()?;
        self.answered = Some(request.nonce.clone());
        let former = self.begun.take().filter(|begun| begun.nonce == request.nonce);
        if former.is_none() && !is_fresh(request.time, now) {
            return None;
        }
        let begun = former.unwrap_or_else(|| Begun {
            nonce: request.nonce.clone(),
            replayed: Arc::default(),
        });
        self.begun = Some(begun.clone());
        Some((request, begun.replayed))
    }
}

impl Engine {
    /// Begins what was asked for, as soon as the source is open.
    pub(super) fn start_replay(&mut self) {
        let Some(publisher) = self.link.publisher() else { return };
        let Some((request, replayed)) = self.replays.due(Timestamp::now()) else {
            return;
        };
        let (kubernetes, trigger) = (self.kubernetes.clone(), self.trigger.clone());
        self.replays.running = Some(Box::pin(replay(kubernetes, publisher, trigger, request, replayed)));
    }
}

async fn replay(
    kubernetes: Kubernetes,
    publisher: Arc<dyn Publisher>,
    trigger: Arc<ProcessTrigger>,
    request: ReplayRequest,
    replayed: Arc<AtomicU32>,
) -> ReplayStatus {
    let limit = request.limit.min(MAX_REPLAY);
    let sending = async {
        // Nobody has asked for what has become a dead letter since.
        if !is_fresh(request.time, Timestamp::now()) {
            let error = SourceError::unreachable("no bridge was there for too long; ask again for the rest");
            return Err(error.into());
        }
        send_all(&kubernetes, &*publisher, &trigger, limit, &replayed).await
    };
    let (left, message) = match timeout(LONGEST, sending).await {
        Ok(Ok(left)) => (left, None),
        Ok(Err(error)) => (None, Some(error.to_string())),
        Err(_) => {
            let seconds = LONGEST.as_secs();
            (
                None,
                Some(format!("there are more, but a replay ends after {seconds} s")),
            )
        }
    };
    let replayed = replayed.load(Ordering::Relaxed);
    tracing::info!(replayed, left, message, "dead letters were sent to the source again");
    ReplayStatus {
        nonce: request.nonce,
        time: Some(Timestamp::now()),
        replayed,
        left,
        message: message.map(|message| sanitize::plain(&message, MAX_SENTENCE)),
    }
}

/// Returns how many remain.
async fn send_all(
    kubernetes: &Kubernetes,
    publisher: &dyn Publisher,
    trigger: &ProcessTrigger,
    limit: u32,
    replayed: &AtomicU32,
) -> Result<Option<u64>, SendError> {
    let mut letters = publisher.dead_letters(&full_name(trigger)).await?;
    while replayed.load(Ordering::Relaxed) < limit {
        let Some(letter) = letters.next().await? else { break };
        let message = as_another(kubernetes, trigger, letter).await?;
        publisher.send(&message).await?;
        // The source has confirmed it. If the bridge dies here, the next replay sends the same message with the same id.
        letters.remove().await?;
        replayed.fetch_add(1, Ordering::Relaxed);
    }
    Ok(letters.left().await)
}

/// The trigger, as in the header of a dead letter.
pub(super) fn full_name(trigger: &ProcessTrigger) -> String {
    message::full_name(trigger.namespace().as_deref(), &trigger.name_any())
}

/// A dead letter as a message that runs although its former process is remembered. A letter that the broker itself has
/// moved does not say which process failed: it is found by its name, also if that was a replay.
async fn as_another(kubernetes: &Kubernetes, trigger: &ProcessTrigger, letter: Message) -> Result<Message, SendError> {
    let is_ours = letter.header(DEAD_LETTER_TRIGGER).is_some();
    let mut message = letter.into_replay();
    if is_ours && message.replay_of().is_some() {
        return Ok(message);
    }
    let Ok(work) = message::read(&message, &trigger.name_any(), &trigger.spec) else {
        return Ok(message);
    };
    let process = kubernetes.process(&name_of(trigger, &work)).await?;
    let failed = process.filter(|process| outcome::failure(process).is_some());
    if let Some(uid) = failed.and_then(|process| process.uid()) {
        message.insert(REPLAY_OF, &uid);
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn a_request_counts_once_and_only_for_a_while() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let with = |nonce: &str| {
            let text = format!(r#"{{"nonce":"{nonce}","time":"2026-01-01T00:00:00Z","limit":7}}"#);
            let mut trigger = ProcessTrigger::new("orders", remoteprocess_api::ProcessTriggerSpec::default());
            trigger.annotations_mut().insert(ANNOTATION_REPLAY.into(), text);
            trigger
        };
        let mut replays = Replays::default();
        replays.see(&with("1"), now);
        let due = |replays: &mut Replays, now| replays.due(now).map(|(request, _)| request.limit);
        assert_eq!(due(&mut replays, now), Some(7));
        replays.see(&with("1"), now);
        assert_eq!(due(&mut replays, now), None, "it was answered");
        replays.see(&with("2"), now);
        assert_eq!(due(&mut replays, now + SignedDuration::from_secs(1)), None, "too old");
        let former = ReplayStatus {
            nonce: "3".into(),
            ..ReplayStatus::default()
        };
        let former = ProcessTriggerStatus {
            replay: Some(former),
            ..ProcessTriggerStatus::default()
        };
        let mut replays = Replays::after(Some(&former));
        replays.see(&with("3"), now);
        assert_eq!(due(&mut replays, now), None, "another bridge has answered it");
        replays.see(&with("\\"), now);
        assert_eq!(due(&mut replays, now), None, "nonsense");
    }

    #[test]
    fn a_replay_continues_where_another_bridge_was() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let request = |nonce: &str| ReplayRequest {
            nonce: nonce.into(),
            time: now,
            limit: 100,
        };
        let progress = ReplayProgress {
            nonce: "1".into(),
            replayed: 40,
        };
        let former = ProcessTriggerStatus {
            replaying: Some(progress.clone()),
            ..ProcessTriggerStatus::default()
        };
        for (nonce, expected) in [("1", 40), ("2", 0)] {
            let mut replays = Replays::after(Some(&former));
            assert_eq!(
                replays.progress(),
                Some(progress.clone()),
                "it is not forgotten before it continues"
            );
            replays.request = Some(request(nonce));
            let (_, replayed) = replays.due(now).unwrap();
            assert_eq!(replayed.load(Ordering::Relaxed), expected, "{nonce}");
            replayed.store(41, Ordering::Relaxed);
            assert_eq!(replays.progress().map(|progress| progress.replayed), Some(41));
            replays.ended();
            assert_eq!(replays.progress(), None);
        }
    }

    #[test]
    fn a_replay_that_has_begun_is_answered_however_old() {
        let now: Timestamp = "2026-01-03T00:00:00Z".parse().unwrap();
        let former = ProcessTriggerStatus {
            replaying: Some(ReplayProgress {
                nonce: "1".into(),
                replayed: 40,
            }),
            ..ProcessTriggerStatus::default()
        };
        for (nonce, is_due) in [("1", true), ("2", false)] {
            let text = format!(r#"{{"nonce":"{nonce}","time":"2026-01-01T00:00:00Z","limit":100}}"#);
            let mut trigger = ProcessTrigger::new("orders", remoteprocess_api::ProcessTriggerSpec::default());
            trigger.annotations_mut().insert(ANNOTATION_REPLAY.into(), text);
            let mut replays = Replays::after(Some(&former));
            replays.see(&trigger, now);
            let due = replays.due(now + SignedDuration::from_secs(3600));
            assert_eq!(due.is_some(), is_due, "{nonce}");
        }
    }
}
