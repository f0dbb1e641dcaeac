//! Archives what the upstream brings, tells the agent what is durable, and closes the attempt.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use remoteprocess_proto::v1::exit::Source;
use remoteprocess_proto::v1::{Cursor, Exit};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::upstream::{self, End};
use super::{Fact, LiveAttempt, TAIL_BYTES, conditions, desired};
use crate::backoff::Backoff;
use crate::relay::archive::{Error, SEGMENT_BYTES, Unavailable, Writer};
use crate::relay::metrics::metrics;
use crate::relay::piece::{Piece, distance};

/// Maximum time that received bytes wait before their segment is stored.
const AGE: Duration = Duration::from_secs(1);
/// Pauses between retries of the store.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
/// Pause between two tries to tell the agent that it may exit.
const FAREWELL_PAUSE: Duration = Duration::from_millis(100);
/// How long to try to tell an absent agent that everything is durable; an agent that comes later asks by itself.
const FAREWELL: Duration = Duration::from_secs(30);
/// The controller waits at most 10 s for the kubelet's status of a container that ended without a report.
const KUBELET: Duration = Duration::from_secs(15);

/// Runs a live attempt from its first connection to the agent's farewell, or to the relay's shutdown.
pub(super) async fn run(live: &LiveAttempt) {
    tokio::select! {
        () = carry(live) => {}
        () = conditions::run(live) => {}
    }
}

async fn carry(live: &LiveAttempt) {
    let shutdown = &live.context.shutdown;
    let opened = shutdown
        .run_until_cancelled(retry(live, "open the archive", || {
            live.context.archive.writer(live.subject.clone())
        }))
        .await;
    let Some(writer) = opened else { return };
    live.ring.begin(writer.saved());
    let saved = watch::Sender::new(writer.saved());
    let serve = async {
        if let Some(exit) = writer.sealed_exit() {
            return close(live, writer, &exit).await;
        }
        let (end, writer) = tokio::join!(
            async {
                let end = shutdown.run_until_cancelled(upstream::run(live)).await;
                live.ring.end_upstream();
                end
            },
            archive(live, writer, &saved)
        );
        if let Some(End::Exit(exit)) = end {
            let exit = ask_status(live, *exit).await;
            close(live, writer, &exit).await;
        }
    };
    tokio::select! {
        () = serve => {}
        () = beside(live, &saved) => {}
    }
}

/// What runs in parallel to the stream; never returns.
async fn beside(live: &LiveAttempt, saved: &watch::Sender<Cursor>) {
    tokio::join!(
        tell_saved(live, saved.subscribe()),
        note_start(live),
        desired::run(live)
    );
    std::future::pending().await
}

/// Stores segments until no piece will follow.
async fn archive(live: &LiveAttempt, writer: Writer, saved: &watch::Sender<Cursor>) -> Writer {
    let mut archiver = Archiver {
        live,
        writer,
        saved,
        index: 0,
        oldest: None,
        stored: VecDeque::new(),
        backoff: BACKOFF,
    };
    loop {
        let is_last = archiver.take();
        if archiver.is_due(is_last) && archiver.writer.may_store() {
            archiver.writer.store().await;
            archiver.stored.push_back(archiver.index);
            archiver.oldest = None;
            continue;
        }
        if is_last && archiver.oldest.is_none() && archiver.writer.is_settled() {
            return archiver.writer;
        }
        let is_waiting = archiver.oldest.is_some() && !archiver.writer.may_store();
        let timer = archiver
            .oldest
            .map_or_else(|| Instant::now() + AGE, |oldest| oldest + AGE);
        tokio::select! {
            settled = archiver.writer.settle(), if !archiver.writer.is_settled() => archiver.settled(settled).await,
            () = live.ring.due() => {}
            () = sleep_until(timer), if !is_waiting => live.ring.ease(),
        }
    }
}

/// The task between the ring and the archive.
struct Archiver<'a> {
    live: &'a LiveAttempt,
    writer: Writer,
    saved: &'a watch::Sender<Cursor>,
    /// Index of the next piece in the ring.
    index: u64,
    /// Since when the open segment has content.
    oldest: Option<Instant>,
    /// For each segment whose put is in progress: the index of the ring's next piece after it.
    stored: VecDeque<u64>,
    backoff: Backoff,
}

impl Archiver<'_> {
    /// Takes as much as fits of what has arrived; returns true when nothing more will arrive.
    fn take(&mut self) -> bool {
        let room = SEGMENT_BYTES.saturating_sub(self.writer.open_bytes());
        let (pieces, next) = self.live.ring.unkept(self.index, room);
        for placed in &pieces {
            if let Piece::Gap(gap) = &placed.piece {
                metrics().count_gap(gap);
            }
            self.writer.append(placed);
        }
        if next > self.index {
            self.oldest.get_or_insert_with(Instant::now);
        }
        self.index = next;
        self.live.ring.is_ended_at(next)
    }

    fn is_due(&self, is_last: bool) -> bool {
        let is_old = || self.oldest.is_some_and(|oldest| oldest.elapsed() >= AGE);
        let is_tight = || self.live.context.memory.is_tight();
        self.oldest.is_some() && (self.writer.is_full() || is_last || is_old() || is_tight())
    }

    async fn settled(&mut self, settled: Result<Cursor, Error>) {
        match settled {
            Ok(saved) => {
                let before = distance(&self.saved.borrow());
                metrics().archived.inc_by(distance(&saved) - before);
                if let Some(index) = self.stored.pop_front() {
                    self.live.ring.keep(index);
                }
                self.saved.send_replace(saved);
                self.backoff.reset();
                note(self.live, None);
            }
            Err(error) => pause(self.live, "store a segment", &error, &mut self.backoff).await,
        }
    }
}

/// Everything is archived: updates manifest, followers, status and agent, in this order.
async fn close(live: &LiveAttempt, mut writer: Writer, exit: &Exit) {
    let mut backoff = BACKOFF;
    let manifest = loop {
        match writer.seal(exit).await {
            Ok(manifest) => break manifest,
            Err(error) => pause(live, "store the manifest", &error, &mut backoff).await,
        }
    };
    note(live, None);
    // A closed manifest has one. What the archive has not confirmed is not sealed.
    let unconfirmed = || Exit {
        sealed: false,
        ..exit.clone()
    };
    let exit = manifest.exit_frame().unwrap_or_else(unconfirmed);
    info!(
        uid = live.subject.key.uid,
        attempt = live.subject.key.attempt,
        sealed = exit.sealed,
        "archived"
    );
    live.ring.finish(exit, manifest.end());
    let archive = &live.context.archive;
    let tail = archive
        .last_bytes(&live.subject.key, TAIL_BYTES)
        .await
        .unwrap_or_else(|error| {
            warn!(%error, "cannot read the tail of the output back");
            Vec::new()
        });
    let written = live.end(&manifest, &tail);
    if live.context.shutdown.run_until_cancelled(written).await.is_some() {
        farewell(live, manifest.end()).await;
    }
}

/// If the entrypoint did not report the end, the kubelet does: the controller writes it into the status.
async fn ask_status(live: &LiveAttempt, exit: Exit) -> Exit {
    if exit.source() != Source::None {
        return exit;
    }
    let mut desired = live.desired.subscribe();
    let told = timeout(KUBELET, desired.wait_for(|desired| desired.end.is_some())).await;
    let Ok(Ok(Some(told))) = told.map(|told| told.map(|desired| desired.end.clone())) else {
        return exit;
    };
    Exit {
        outcome: told.outcome,
        value: told.value,
        source: told.source,
        reason: told.reason,
        message: told.message,
        ..exit
    }
}

/// Tells the agent that no more requests follow, so that it exits.
async fn farewell(live: &LiveAttempt, end: Cursor) {
    let give_up = Instant::now() + FAREWELL;
    while let Err(error) = live.client.commit(end, true).await {
        let gone = live.desired.borrow().end.is_some() && error.is_unavailable();
        if gone || Instant::now() >= give_up {
            return;
        }
        let pause = live.context.shutdown.run_until_cancelled(sleep(FAREWELL_PAUSE)).await;
        if pause.is_none() {
            return;
        }
    }
}

/// Lets the agent free its spool. If a call fails, the next one includes it.
async fn tell_saved(live: &LiveAttempt, mut saved: watch::Receiver<Cursor>) {
    if *saved.borrow() != Cursor::default() {
        // The agent may not know what an earlier relay archived, and its spool may be full of it.
        saved.mark_changed();
    }
    while saved.changed().await.is_ok() {
        let cursor = *saved.borrow_and_update();
        if live.client.commit(cursor, false).await.is_err() {
            sleep(BACKOFF.longest()).await;
            saved.mark_changed();
        }
    }
}

/// Records the start once, unless the end is known first: a short run costs one write less.
async fn note_start(live: &LiveAttempt) {
    let mut observed = live.observed.subscribe();
    if observed.wait_for(|observed| observed.is_started).await.is_err() {
        return;
    }
    let (at_unix_nanos, run_deadline) = match live.client.get_state().await {
        Ok(state) if state.started_unix_nanos > 0 => (
            state.started_unix_nanos,
            state.run_deadline.and_then(|span| span.try_into().ok()),
        ),
        _ => (
            i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or_default(),
            None,
        ),
    };
    if live.exit().is_none() {
        let fact = Fact::Started {
            at_unix_nanos,
            run_deadline,
        };
        live.learn(fact).await;
    }
}

async fn retry<T, F: Future<Output = Result<T, Error>>>(
    live: &LiveAttempt,
    what: &'static str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let mut backoff = BACKOFF;
    loop {
        match attempt().await {
            Ok(done) => {
                note(live, None);
                return done;
            }
            Err(error) => pause(live, what, &error, &mut backoff).await,
        }
    }
}

/// Records whether the archive takes output.
fn note(live: &LiveAttempt, unavailable: Option<Unavailable>) {
    live.unavailable
        .send_if_modified(|known| std::mem::replace(known, unavailable) != unavailable);
}

async fn pause(live: &LiveAttempt, what: &'static str, error: &Error, backoff: &mut Backoff) {
    metrics().archive_failures.inc();
    let unavailable = error.unavailable();
    warn!(uid = live.subject.key.uid, reason = %unavailable.reason(), %error, "cannot {what}, will try again");
    note(live, Some(unavailable));
    sleep(backoff.pause()).await;
}
