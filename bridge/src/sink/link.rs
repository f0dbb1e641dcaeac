//! The connection to the destination: a task opens it, loses it, waits, and opens it again. Workers send over it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::sink::DestinationSpec;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::destination::{self, Destination};
use crate::backoff::Backoff;
use crate::outcome::CloudEvent;
use crate::source::{Secrets, SourceError};

/// How long it may take to open a destination.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

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
    /// There was a connection.
    is_known: bool,
    /// Events that were confirmed, ever.
    confirmed: u64,
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
    let mut backoff = Backoff::default();
    loop {
        let late = |_| Err(SourceError::unreachable("the destination does not answer"));
        let opened = timeout(OPEN_TIMEOUT, destination::open(&spec, &name, &secrets)).await;
        match opened.unwrap_or_else(late) {
            Ok(destination) => {
                let before = outbox.opened();
                let (broken, mut breaks) = watch::channel(false);
                let lost = destination.clone();
                sender.send_replace(Some(Open { destination, broken }));
                tokio::select! {
                    error = lost.lost() => outbox.failed(error, false),
                    _ = breaks.wait_for(|is_broken| *is_broken) => {}
                }
                sender.send_replace(None);
                if outbox.has_sent_since(before) {
                    backoff.reset();
                }
            }
            Err(error) => outbox.failed(error, false),
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
    /// Sends an event until the destination confirms it. Cancel-safe: an event that is dropped was not confirmed.
    ///
    /// # Errors
    /// The destination is there, and refuses the event.
    pub(super) async fn send(&mut self, event: &CloudEvent, key: &str) -> Result<(), SourceError> {
        let mut is_again = false;
        loop {
            let Some(open) = self.connected().await else {
                // The link is being replaced, and this worker with it.
                return std::future::pending().await;
            };
            if std::mem::replace(&mut is_again, true) {
                self.state().tally.resent += 1;
            }
            match open.destination.send(event, key).await {
                Ok(()) => {
                    self.confirmed();
                    return Ok(());
                }
                Err(error) if is_refusal(&error) => {
                    self.refused(&error);
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(id = event.id, %error, "an event is not confirmed, will try again");
                    self.failed(error, true);
                    open.broken.send_replace(true);
                }
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
        self.state().problem.as_ref().map(|(error, _)| error.clone())
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

    /// Returns how many events were confirmed before.
    fn opened(&self) -> u64 {
        let mut state = self.state();
        state.is_known = true;
        state.problem.take_if(|(_, by_sending)| !*by_sending);
        state.confirmed
    }

    fn has_sent_since(&self, before: u64) -> bool {
        self.state().confirmed > before
    }

    fn confirmed(&self) {
        let mut state = self.state();
        state.problem = None;
        state.confirmed += 1;
        state.tally.sent += 1;
        state.tally.last = Some(Timestamp::now());
    }

    /// Other events may be taken, but not if the destination does not exist.
    fn refused(&self, error: &SourceError) {
        let mut state = self.state();
        state.tally.resent += 1;
        let is_missing = error.reason == BridgeReason::NotFound;
        state.problem = is_missing.then(|| (error.clone(), true));
    }

    /// Events that were confirmed, ever.
    pub(super) fn confirmations(&self) -> u64 {
        self.state().confirmed
    }

    fn failed(&self, error: SourceError, by_sending: bool) {
        self.state().problem = Some((error, by_sending));
    }
}
