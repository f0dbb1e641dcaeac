//! The connection to the destination: a task opens it, loses it, waits, and opens it again. Workers send over it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::sink::DestinationSpec;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::destination::{self, Destination};
use crate::backoff::Backoff;
use crate::outcome::CloudEvent;
use crate::source::{Secrets, SourceError};

/// How long it may take to open a destination.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// After so many tries of an event that fails, it is the event, if others were confirmed in the meantime.
const TRIES: u32 = 3;
/// A destination that has confirmed an event within this time is connected, even if another event fails.
const RECENT: Duration = Duration::from_secs(5);

/// What has become of the events, since the last look.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Events that the destination has confirmed.
    pub(super) sent: u64,
    /// Times that an event was sent again.
    pub(super) resent: u64,
    /// When the last one was confirmed.
    pub(super) last: Option<Timestamp>,
}

/// What workers and the link share.
#[derive(Default)]
struct State {
    tally: Tally,
    /// Why nothing can be sent, and whether that was said when something was sent: then only the next confirmation shows
    /// that it is over.
    problem: Option<(SourceError, bool)>,
    /// An event that was not taken shortly after another one was, and when: if nothing is taken after it, it is the
    /// destination.
    doubt: Option<(SourceError, Instant)>,
    /// There was a connection.
    is_known: bool,
    /// Events that were confirmed, ever.
    confirmed: u64,
    /// When the last one was.
    confirmed_at: Option<Instant>,
}

impl State {
    /// The destination takes events, or refuses one of them.
    fn is_well(&mut self) {
        (self.problem, self.doubt) = (None, None);
    }
}

/// An open destination.
#[derive(Clone)]
struct Open {
    destination: Arc<dyn Destination>,
    /// Becomes true when an event could not be sent.
    broken: watch::Sender<bool>,
}

/// Sends events. Cheap to clone.
#[derive(Clone)]
pub(super) struct Outbox {
    open: watch::Receiver<Option<Open>>,
    state: Arc<Mutex<State>>,
}

/// The task that holds the connection. It ends when this is dropped.
pub(super) struct Link {
    outbox: Outbox,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Begins to connect. `name` is `NAMESPACE/NAME` of the sink.
    pub(super) fn new(spec: DestinationSpec, name: String, secrets: Secrets) -> Self {
        let (sender, open) = watch::channel(None);
        let outbox = Outbox {
            open,
            state: Arc::default(),
        };
        let task = tokio::spawn(hold(spec, name, secrets, sender, outbox.clone()));
        Self { outbox, task }
    }

    /// What sends over it.
    pub(super) fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }
}

/// Opens the destination again and again.
async fn hold(
    spec: DestinationSpec,
    name: String,
    secrets: Secrets,
    sender: watch::Sender<Option<Open>>,
    outbox: Outbox,
) {
    let (mut backoff, mut confirmed) = (Backoff::default(), 0);
    loop {
        let late = |_| Err(SourceError::unreachable("the destination does not answer"));
        let opened = timeout(OPEN_TIMEOUT, destination::open(&spec, &name, &secrets)).await;
        match opened.unwrap_or_else(late) {
            Ok(destination) => {
                outbox.opened();
                let (broken, mut breaks) = watch::channel(false);
                let lost = destination.clone();
                sender.send_replace(Some(Open { destination, broken }));
                tokio::select! {
                    error = lost.lost() => outbox.lost(error),
                    _ = breaks.wait_for(|is_broken| *is_broken) => {}
                }
                sender.send_replace(None);
                // An event may have been confirmed after another one broke the last connection.
                if outbox.has_sent_since(confirmed) {
                    backoff.reset();
                }
                confirmed = outbox.confirmations();
            }
            Err(error) => outbox.lost(error),
        }
        sleep(backoff.pause()).await;
    }
}

/// Whether the connection works, and the event, or the place where it should go, is the problem.
fn is_refusal(error: &SourceError) -> bool {
    let of_connection = [
        BridgeReason::Unreachable,
        BridgeReason::Untrusted,
        BridgeReason::Unauthorized,
    ];
    !of_connection.contains(&error.reason)
}

impl Outbox {
    /// Sends an event until the destination confirms it. Cancel-safe: an event that is dropped was not confirmed. An event
    /// of a process that the destination has refused before (`is_suspect`) is sent once, and says nothing about the
    /// connection if it fails.
    ///
    /// # Errors
    /// The destination refuses the event; or it fails, and others wait (`is_crowded`) that may fare better.
    pub(super) async fn send(
        &mut self,
        event: &CloudEvent,
        key: &str,
        is_crowded: &AtomicBool,
        is_suspect: bool,
    ) -> Result<(), SourceError> {
        let (before, mut tries) = (self.confirmations(), 0);
        loop {
            let Some(open) = self.connected().await else {
                // The link is being replaced, and this worker with it.
                return std::future::pending().await;
            };
            let Err(error) = open.destination.send(event, key).await else {
                self.confirmed();
                return Ok(());
            };
            tries += 1;
            self.state().tally.resent += 1;
            let is_of_event = tries >= TRIES && self.has_sent_since(before);
            if is_refusal(&error) || is_of_event {
                self.refused(&error, is_suspect);
                return Err(error);
            }
            tracing::warn!(id = event.id, %error, "an event is not confirmed, will try again");
            if !is_suspect {
                self.failed(&error);
            }
            open.broken.send_replace(true);
            if is_suspect || is_crowded.load(Ordering::Relaxed) {
                return Err(error);
            }
        }
    }

    /// The destination, once it is open; `None` if it never will be. The link pauses before it opens another one.
    async fn connected(&mut self) -> Option<Open> {
        let is_whole = |open: &Option<Open>| open.as_ref().is_some_and(|open| !*open.broken.borrow());
        self.open.wait_for(is_whole).await.ok()?.clone()
    }

    /// Whether there is a connection.
    pub(super) fn is_open(&self) -> bool {
        self.open.borrow().is_some()
    }

    /// Why nothing can be sent, if that is so.
    pub(super) fn problem(&self) -> Option<SourceError> {
        let state = self.state();
        let known = state.problem.as_ref().map(|(error, _)| error);
        let doubt = state.doubt.as_ref().filter(|(_, at)| at.elapsed() >= RECENT);
        known.or(doubt.map(|(error, _)| error)).cloned()
    }

    /// Whether there ever was a connection.
    pub(super) fn is_known(&self) -> bool {
        self.state().is_known
    }

    /// What has become of the events since the last call.
    pub(super) fn take_tally(&self) -> Tally {
        std::mem::take(&mut self.state().tally)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) {
        let mut state = self.state();
        state.is_known = true;
        state.problem.take_if(|(_, by_sending)| !*by_sending);
    }

    fn has_sent_since(&self, before: u64) -> bool {
        self.state().confirmed > before
    }

    fn confirmed(&self) {
        let mut state = self.state();
        state.is_well();
        state.confirmed += 1;
        state.confirmed_at = Some(Instant::now());
        state.tally.sent += 1;
        state.tally.last = Some(Timestamp::now());
    }

    /// The destination is there, and others may be taken, but not if the place where they should go does not exist.
    fn refused(&self, error: &SourceError, is_suspect: bool) {
        if error.reason == BridgeReason::NotFound {
            if !is_suspect {
                self.failed(error);
            }
        } else {
            self.state().is_well();
        }
    }

    /// Events that were confirmed, ever.
    pub(super) fn confirmations(&self) -> u64 {
        self.state().confirmed
    }

    /// There is no connection.
    fn lost(&self, error: SourceError) {
        self.state().problem = Some((error, false));
    }

    /// An event was not taken. If another one was taken a short time ago, that says nothing about the connection yet.
    fn failed(&self, error: &SourceError) {
        let mut state = self.state();
        if state.confirmed_at.is_none_or(|at| at.elapsed() >= RECENT) {
            state.problem = Some((error.clone(), true));
        } else if state.doubt.is_none() {
            state.doubt = Some((error.clone(), Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;
    use serde_json::json;

    use super::*;

    /// Fails at events whose id is `bad`, in this manner.
    struct Picky(BridgeReason);

    impl Destination for Picky {
        fn send<'a>(&'a self, event: &'a CloudEvent, _key: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
            let answer = match event.id.as_str() {
                "bad" => Err(SourceError::new(self.0, "no")),
                _ => Ok(()),
            };
            Box::pin(async { answer })
        }
    }

    fn event(id: &str) -> CloudEvent {
        CloudEvent {
            id: id.to_owned(),
            kind: "k",
            source: "s".to_owned(),
            subject: "p".to_owned(),
            time: None,
            data: json!({}),
        }
    }

    /// A connection that is never replaced: an event that breaks it is the last one.
    struct Line {
        sender: watch::Sender<Option<Open>>,
        outbox: Outbox,
        reason: BridgeReason,
    }

    impl Line {
        fn new(reason: BridgeReason) -> Self {
            let (sender, open) = watch::channel(None);
            let state = Arc::default();
            let outbox = Outbox { open, state };
            Self { sender, outbox, reason }
        }

        /// The reason for which nothing can be sent, after one try to send over a new connection.
        async fn send(&mut self, id: &str, is_suspect: bool) -> Option<BridgeReason> {
            let (broken, _) = watch::channel(false);
            let destination = Arc::new(Picky(self.reason));
            self.sender.send_replace(Some(Open { destination, broken }));
            let is_crowded = AtomicBool::new(true);
            let sent = self.outbox.send(&event(id), "p", &is_crowded, is_suspect).await;
            assert_eq!(sent.is_ok(), id != "bad");
            self.outbox.problem().map(|error| error.reason)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_fails_is_no_lost_connection_while_others_are_taken() {
        for reason in [
            BridgeReason::Unreachable,
            BridgeReason::Unauthorized,
            BridgeReason::NotFound,
        ] {
            let mut line = Line::new(reason);
            assert_eq!(line.send("good", false).await, None);
            assert_eq!(line.send("bad", false).await, None, "{reason}");
            tokio::time::advance(Duration::from_secs(60)).await;
            assert_eq!(line.send("bad", true).await, Some(reason), "nothing was taken since");
            assert_eq!(line.send("good", false).await, None);
            for _ in 0..3 {
                tokio::time::advance(Duration::from_secs(60)).await;
                assert_eq!(line.send("bad", true).await, None, "{reason}: it has failed before");
                assert_eq!(line.send("good", false).await, None);
            }
            tokio::time::advance(RECENT).await;
            assert_eq!(line.send("bad", false).await, Some(reason), "nothing is taken");
            assert_eq!(line.send("bad", true).await, Some(reason), "that does not say more");
            assert_eq!(line.send("good", false).await, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_destination_that_takes_nothing_after_an_event_that_failed_is_lost() {
        let mut line = Line::new(BridgeReason::NotFound);
        line.send("good", false).await;
        for _ in 0..4 {
            assert_eq!(line.send("bad", false).await, None);
            tokio::time::advance(RECENT / 5).await;
        }
        tokio::time::advance(RECENT / 5).await;
        assert!(line.outbox.problem().is_some(), "also if it is not tried again");
        line.outbox.opened();
        assert!(line.outbox.problem().is_some(), "a new connection shows nothing");
        line.outbox
            .refused(&SourceError::new(BridgeReason::InvalidDestination, "no"), false);
        assert!(line.outbox.problem().is_none(), "it answers for another event");
    }

    #[tokio::test(start_paused = true)]
    async fn a_destination_that_refuses_an_event_is_there() {
        let mut line = Line::new(BridgeReason::InvalidDestination);
        line.outbox.failed(&SourceError::unreachable("no"));
        assert_eq!(line.send("bad", false).await, None);
        line.outbox.lost(SourceError::unreachable("gone"));
        assert!(line.outbox.problem().is_some(), "a lost connection is told at once");
    }
}
