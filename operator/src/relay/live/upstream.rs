//! Reads the agent's output into the ring, over as many connections as it takes.

use std::time::Duration;

use remoteprocess_proto::timing::SILENCE;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{Exit, GapReason, Phase, Seal, Spool, Stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::bounds::bound;
use super::{Desired, LiveAttempt, Observed};
use crate::backoff::Backoff;
use crate::relay::attempt::Agent;
use crate::relay::error::{Code, Error};
use crate::relay::metrics::metrics;
use crate::relay::piece::{Piece, gap};

/// First and longest pause between two tries.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// After this long without an agent the relay stops dialing: an agent that lives comes by itself.
const PARK: Duration = Duration::from_secs(60);
/// An absent agent gets this long to come back before the end in the status is used.
const LAST_CALL: Duration = Duration::from_secs(10);

/// How the reading from an agent ended.
pub(super) enum End {
    /// The agent reported the end, or the status did and there is no agent.
    Exit(Box<Exit>),
    /// Another replica is this attempt's home now.
    Superseded,
}

/// Size above which the report of an agent about its spool is not believed, in bytes.
const LARGEST_SPOOL: u64 = 1 << 40;

enum Cut {
    End(End),
    Broken(String),
}

/// Reads until the end, or until another home has recorded the end.
pub(super) async fn run(live: &LiveAttempt) -> End {
    tokio::select! {
        end = follow(live) => end,
        () = sealed_elsewhere(live) => End::Superseded,
    }
}

/// Returns when both status and archive contain the end. An agent that has exited does not tell earlier homes.
async fn sealed_elsewhere(live: &LiveAttempt) {
    let mut desired = live.desired.subscribe();
    // The sender lives in the live attempt.
    let _ = desired.wait_for(|desired| desired.is_recorded).await;
    loop {
        match live.context.archive.manifest(&live.subject.key).await {
            Ok(manifest) if manifest.as_ref().is_some_and(|manifest| manifest.exit.is_some()) => return,
            // The output that the status describes is in another archive.
            Ok(_) => return std::future::pending().await,
            Err(_) => sleep(BACKOFF.longest()).await,
        }
    }
}

async fn follow(live: &LiveAttempt) -> End {
    let mut agent = live.agent.subscribe();
    let mut desired = live.desired.subscribe();
    let mut seen = Instant::now();
    let mut backoff = BACKOFF;
    loop {
        let target = agent.borrow_and_update().clone();
        let (received, begun) = (live.received(), Instant::now());
        let mut was_connected = false;
        let cut = tokio::select! {
            cut = read(live, &target, &mut was_connected) => cut,
            // The agent lost this home, whatever our side of the connection looks like.
            _ = agent.changed() => {
                (seen, backoff) = (Instant::now(), BACKOFF);
                continue;
            }
        };
        match cut {
            Cut::End(end) => return end,
            Cut::Broken(reason) => debug!(uid = live.subject.key.uid, reason, "the agent's stream ended"),
        }
        if was_connected {
            seen = Instant::now();
        }
        if received != live.received() || begun.elapsed() > BACKOFF.longest() {
            backoff.reset();
        }
        let again = sleep(backoff.pause());
        tokio::select! {
            () = again, if seen.elapsed() < PARK => {}
            _ = agent.changed() => (seen, backoff) = (Instant::now(), BACKOFF),
            exit = last_call(&mut desired, seen) => return End::Exit(Box::new(give_up(live, exit))),
        }
    }
}

/// Waits until the status contains an end and the agent has had its time.
async fn last_call(desired: &mut watch::Receiver<Desired>, seen: Instant) -> Exit {
    let ended = desired.wait_for(|desired| desired.end.is_some()).await;
    let Ok(Some(exit)) = ended.map(|desired| desired.end.clone()) else {
        return std::future::pending().await;
    };
    tokio::time::sleep_until(seen + LAST_CALL).await;
    exit
}

/// The end of streams for which no seal will come.
fn give_up(live: &LiveAttempt, exit: Exit) -> Exit {
    info!(
        uid = live.subject.key.uid,
        "the agent is gone: the attempt ends with what the status says"
    );
    let end = live.received();
    for stream in remoteprocess_proto::STREAMS {
        live.ring
            .push(gap(stream, end.of(stream), None, GapReason::NeverSealed));
    }
    Exit {
        sealed: false,
        seal: None,
        ..exit
    }
}

async fn read(live: &LiveAttempt, agent: &Agent, was_connected: &mut bool) -> Cut {
    let mut frames = match live.client.watch_output(agent, live.received()).await {
        Ok(frames) => frames,
        Err(error) => return refused(&error),
    };
    let _connected = Connected::new(live);
    let mut pressure = Pressure::default();
    *was_connected = true;
    loop {
        live.ring.room().await;
        let (frame, wire) = match timeout(SILENCE, frames.next()).await {
            Ok(Ok(Some(found))) => found,
            Ok(Ok(None)) => return Cut::Broken("ended without an exit".to_owned()),
            Ok(Err(error)) => return refused(&error),
            Err(_) => return Cut::Broken("silent".to_owned()),
        };
        let frame = match bound(frame) {
            Ok(frame) => frame,
            Err(why) => {
                live.observed
                    .send_if_modified(|observed| observed.refused.replace(why) != Some(why));
                return Cut::Broken(format!("the agent sent {why}"));
            }
        };
        match frame {
            Frame::Data(data) => {
                live.observed.send_if_modified(|observed| {
                    let is_news = !observed.is_started || observed.refused.is_some();
                    (observed.is_started, observed.refused) = (true, None);
                    is_news
                });
                metrics().received.inc_by(data.bytes.len() as u64);
                live.ring.push_message(Piece::Data(data), wire);
            }
            Frame::Gap(gap) => live.ring.push(Piece::Gap(gap)),
            Frame::State(state) => live.observed.send_modify(|observed| {
                observed.is_started |= matches!(state.phase(), Phase::Running | Phase::Paused);
                observed.state = Some(state);
            }),
            Frame::Spool(spool) => {
                pressure.change(&spool);
                let blocked = spool.blocked.then_some(spool.size_bytes);
                live.observed
                    .send_if_modified(|observed| std::mem::replace(&mut observed.blocked, blocked) != blocked);
            }
            Frame::Heartbeat(_) => {}
            Frame::Exit(exit) => return Cut::End(End::Exit(Box::new(complete(live, exit)))),
        }
    }
}

/// What this stream adds to the metrics of spools while it is open.
#[derive(Default)]
struct Pressure {
    is_full: bool,
    used: i64,
}

impl Pressure {
    fn change(&mut self, spool: &Spool) {
        let used = i64::try_from(spool.used_bytes.min(LARGEST_SPOOL)).unwrap_or_default();
        metrics().spool_used.inc_by(used - self.used);
        metrics()
            .spools_full
            .inc_by(i64::from(spool.blocked) - i64::from(self.is_full));
        (self.is_full, self.used) = (spool.blocked, used);
    }
}

impl Drop for Pressure {
    fn drop(&mut self) {
        self.change(&Spool::default());
    }
}

/// Marks the live attempt as connected while it lives.
struct Connected<'a>(&'a watch::Sender<Observed>);

impl<'a> Connected<'a> {
    fn new(live: &'a LiveAttempt) -> Self {
        live.observed.send_modify(|observed| observed.is_connected = true);
        Self(&live.observed)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|observed| observed.is_connected = false);
    }
}

/// An agent ends an earlier home's stream with `ABORTED` when a later one has come.
fn refused(error: &Error) -> Cut {
    match error.code {
        Code::Aborted => Cut::End(End::Superseded),
        _ => Cut::Broken(error.to_string()),
    }
}

/// What the seal counts and was never delivered is reported as a gap.
fn complete(live: &LiveAttempt, exit: Exit) -> Exit {
    let Some(Seal { stdout, stderr, .. }) = &exit.seal else {
        return exit;
    };
    let end = live.received();
    for (stream, seal) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
        let sealed = seal.as_ref().map_or(0, |seal| seal.bytes);
        if sealed > end.of(stream) {
            live.ring
                .push(gap(stream, end.of(stream), Some(sealed), GapReason::NeverDelivered));
        }
    }
    exit
}
