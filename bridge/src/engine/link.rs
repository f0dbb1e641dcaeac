//! The connection to the source: opens it, loses it, waits, opens it again.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use remoteprocess_api::ProcessTrigger;
use remoteprocess_api::bridge::BridgeReason;
use tokio::time::{Instant, sleep_until, timeout};

use crate::backoff::Backoff;
use crate::source::{self, Delivery, Publisher, Settings, Source, SourceError};

/// How long it may take to open a source.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the number of waiting messages may take.
const LAG_TIMEOUT: Duration = Duration::from_secs(1);

enum State {
    Waiting(Instant),
    Opening(BoxFuture<'static, Result<Box<dyn Source>, SourceError>>),
    Open(Box<dyn Source>),
}

/// What has happened to the source.
pub(super) enum News {
    Opened,
    Lost(SourceError),
    Delivered(Delivery),
}

pub(super) struct Link {
    state: State,
    trigger: Arc<ProcessTrigger>,
    settings: Settings,
    backoff: Backoff,
    hold: Option<BridgeReason>,
}

impl Link {
    pub(super) fn new(trigger: Arc<ProcessTrigger>, settings: Settings) -> Self {
        Self {
            state: State::Waiting(Instant::now()),
            trigger,
            settings,
            backoff: Backoff::default(),
            hold: None,
        }
    }

    /// Uses this version of the trigger; opens the source again if it is another one. Returns whether it does.
    pub(super) fn observe(&mut self, trigger: Arc<ProcessTrigger>) -> bool {
        let seen = |trigger: &ProcessTrigger| {
            let spec = &trigger.spec;
            let id_header = spec.message.as_ref().and_then(|message| message.id_header.clone());
            (spec.source.clone(), spec.max_payload_bytes(), id_header)
        };
        let is_other = seen(&trigger) != seen(&self.trigger);
        self.trigger = trigger;
        if is_other {
            self.state = State::Waiting(Instant::now());
            self.backoff.reset();
        }
        is_other
    }

    /// Waits for what happens next. Cancel-safe. Takes a message only if `takes`.
    pub(super) async fn next(&mut self, takes: bool) -> News {
        loop {
            match &mut self.state {
                State::Waiting(until) => {
                    sleep_until(*until).await;
                    let (trigger, settings) = (self.trigger.clone(), self.settings.clone());
                    self.state = State::Opening(Box::pin(async move {
                        let late = |_| Err(SourceError::unreachable("the source does not answer"));
                        timeout(OPEN_TIMEOUT, source::open(&trigger, &settings))
                            .await
                            .unwrap_or_else(late)
                    }));
                }
                State::Opening(opening) => {
                    return match opening.await {
                        Ok(mut source) => {
                            source.hold(self.hold);
                            self.state = State::Open(source);
                            News::Opened
                        }
                        Err(error) => self.lose(error),
                    };
                }
                State::Open(source) if !takes => {
                    let error = source.lost().await;
                    return self.lose(error);
                }
                State::Open(source) => {
                    return match source.next().await {
                        Ok(delivery) => {
                            self.backoff.reset();
                            News::Delivered(delivery)
                        }
                        Err(error) => self.lose(error),
                    };
                }
            }
        }
    }

    fn lose(&mut self, error: SourceError) -> News {
        self.state = State::Waiting(Instant::now() + self.backoff.pause());
        News::Lost(error)
    }

    /// What publishes, while the source is open.
    pub(super) fn publisher(&self) -> Option<Arc<dyn Publisher>> {
        match &self.state {
            State::Open(source) => Some(source.publisher()),
            State::Waiting(_) | State::Opening(_) => None,
        }
    }

    /// Whether messages can stay unsettled until their process has ended.
    pub(super) fn keeps_messages(&self) -> bool {
        match &self.state {
            State::Open(source) => source.keeps_messages(),
            State::Waiting(_) | State::Opening(_) => true,
        }
    }

    /// Tells the source whether messages are taken, if that has changed.
    pub(super) fn hold(&mut self, reason: Option<BridgeReason>) {
        if self.hold == reason {
            return;
        }
        self.hold = reason;
        if let State::Open(source) = &mut self.state {
            source.hold(reason);
        }
    }

    /// Requests that the source has refused since the last call.
    pub(super) fn refused(&mut self) -> u64 {
        match &mut self.state {
            State::Open(source) => source.refused(),
            State::Waiting(_) | State::Opening(_) => 0,
        }
    }

    /// Number of messages that wait in the broker, if it tells.
    pub(super) async fn lag(&mut self) -> Option<u64> {
        match &mut self.state {
            State::Open(source) => timeout(LAG_TIMEOUT, source.lag()).await.ok().flatten(),
            State::Waiting(_) | State::Opening(_) => None,
        }
    }
}
