//! One user's stream of one process: before, during and after the life of its pod.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kube::ResourceExt;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{Exit, Heartbeat, OutputFrame, State, Stream as WireStream, WatchOutputRequest};
use remoteprocess_proto::wire::encode;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;

use super::ended::Ended;
use super::state::wire_state;
use super::{RECHECK, RelayParts, Target, unreadable};
use crate::relay::archive::Error;
use crate::relay::attempt::AttemptKey;
use crate::relay::core::authorize::{Action, Caller};
use crate::relay::frame::Framed;
use crate::relay::grpc::Batch;
use crate::relay::live::{Follower, Next};
use crate::relay::metrics::metrics;
use crate::relay::piece::{Placed, Wanted};

/// Bytes that go to a reader at a time, and two of which wait for a slow one.
const BATCH: usize = 64 * 1024;
/// A silent stream says this often that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A reader that takes nothing for this long is parked: what is held for it is let go.
const STALLED: Duration = Duration::from_secs(1);
/// How often the archive is looked at while an attempt has no home that can be reached.
const POLL: Duration = Duration::from_secs(1);
/// How often it is looked at by a reader that is slower than the mirror of another home.
const CATCH_UP: Duration = Duration::from_millis(200);

/// Why a stream is over.
enum Over {
    /// Everything was said, or nobody listens.
    Done,
    /// The reader is told why.
    Failed(Status),
}

struct Pump {
    parts: Arc<RelayParts>,
    caller: Caller,
    target: Target,
    wanted: Wanted,
    tail_lines: Option<u64>,
    since: Option<i64>,
    follow: bool,
    attempt: u32,
    /// The reader knows the attempt, and it does not change any more.
    is_settled: bool,
    follower: Option<Follower>,
    told: Option<State>,
    /// The object's resourceVersion when it was last looked at.
    seen: Option<String>,
    heartbeat: Instant,
    recheck: Instant,
    changes: [watch::Receiver<u64>; 2],
    sender: mpsc::Sender<Batch>,
}

/// Starts a stream of `attempt`; of the latest, which is told as soon as it is settled, where that is `None`.
pub(crate) fn watch(
    parts: Arc<RelayParts>,
    caller: Caller,
    target: Target,
    attempt: Option<u32>,
    request: &WatchOutputRequest,
) -> mpsc::Receiver<Batch> {
    let (sender, receiver) = mpsc::channel(2);
    let only = match request.stream() {
        WireStream::Unspecified => None,
        only => Some(only),
    };
    let begins = request.cursor.is_none();
    let pump = Pump {
        changes: [parts.directory.changes(), parts.sessions.changes()],
        parts,
        caller,
        target,
        wanted: Wanted {
            cursor: request.cursor.unwrap_or_default(),
            only,
        },
        tail_lines: request.tail_lines.filter(|_| begins),
        since: request.since_unix_nanos.filter(|_| begins),
        follow: request.follow,
        attempt: attempt.unwrap_or_default(),
        is_settled: attempt.is_some(),
        follower: None,
        told: None,
        seen: None,
        heartbeat: Instant::now() + HEARTBEAT,
        recheck: Instant::now() + RECHECK,
        sender,
    };
    tokio::spawn(pump.run());
    receiver
}

fn failed(error: Error) -> Over {
    Over::Failed(unreadable(&error))
}

fn version(parts: &RelayParts, target: &Target) -> Option<String> {
    parts.object(target)?.resource_version()
}

impl Pump {
    async fn run(mut self) {
        metrics().followers.inc();
        let shutdown = self.parts.shutdown.clone();
        let over = tokio::select! {
            over = self.serve() => over,
            () = shutdown.cancelled() => Err(Over::Failed(Status::unavailable("this replica is going away"))),
        };
        if let Err(Over::Failed(status)) = over {
            // Nobody may be there to hear it.
            let _ = self.sender.send(Err(status)).await;
        }
        metrics().followers.dec();
    }

    async fn serve(&mut self) -> Result<(), Over> {
        loop {
            self.seen = version(&self.parts, &self.target);
            self.upkeep().await?;
            self.choose_attempt().await?;
            self.attach().await?;
            // What is known before the archive is read to its end decides whether that end is the end.
            let end = self.known_end().await?;
            match self.next().await? {
                Next::Frames(frames) => self.send_output(frames).await?,
                Next::Limit => return Err(Over::Done),
                Next::End(exit) => return self.finish(*exit).await,
                Next::Closed => self.detach(),
                Next::Crowded => self.wait().await?,
                Next::Wait if self.is_live() => self.wait().await?,
                Next::Wait => match end {
                    Some(end) => return self.finish_archived(end).await,
                    None if self.follow => {
                        self.tell_state().await?;
                        self.wait().await?;
                    }
                    None => return Err(Over::Done),
                },
            }
        }
    }

    /// The latest attempt is followed until one was granted, or something of it was sent.
    async fn choose_attempt(&mut self) -> Result<(), Over> {
        if self.is_settled {
            return Ok(());
        }
        let latest = match self.parts.object(&self.target) {
            Some(process) => process
                .status
                .as_ref()
                .and_then(|status| status.attempt)
                .unwrap_or_default(),
            None if self.attempt != 0 => self.attempt,
            None => {
                let attempts = self.parts.archive.attempts(&self.target.uid).await;
                attempts.map_err(failed)?.last().copied().unwrap_or_default()
            }
        };
        if latest != self.attempt {
            self.attempt = latest;
            self.follower = None;
        }
        if self.parts.settled(&self.target) == Some(latest) {
            self.settle().await?;
        }
        Ok(())
    }

    /// From here on the stream is of this attempt, and its reader knows.
    async fn settle(&mut self) -> Result<(), Over> {
        if std::mem::replace(&mut self.is_settled, true) {
            return Ok(());
        }
        self.send_position().await
    }

    /// Tells the reader what it has to know to resume.
    async fn send_position(&mut self) -> Result<(), Over> {
        let heartbeat = Heartbeat {
            offsets: self.follower.as_ref().map(Follower::position),
            attempt: if self.is_settled { self.attempt } else { 0 },
        };
        self.say(Frame::Heartbeat(heartbeat)).await
    }

    /// Gets a follower, and a live session for it where there is one.
    async fn attach(&mut self) -> Result<(), Over> {
        if self.attempt == 0 {
            return Ok(());
        }
        let key = self.key();
        if self.is_live() {
            return Ok(());
        }
        let is_new = self.follower.is_none();
        let wanted = self.wanted;
        let archive = self.parts.archive.clone();
        let follower = self
            .follower
            .get_or_insert_with(|| Follower::new(archive, key.clone(), wanted));
        let feed = self
            .parts
            .feed(&self.caller, &key, self.follow, is_new)
            .await
            .map_err(Over::Failed)?;
        if feed.is_some() {
            follower.attach(feed);
            if !self.follow {
                follower.limit_to_now();
            }
        }
        if !is_new || (self.tail_lines.is_none() && self.since.is_none()) {
            return Ok(());
        }
        if let Some(since) = self.since {
            follower.begin_since(since).await.map_err(failed)?;
        }
        if let Some(lines) = self.tail_lines {
            follower.begin_at_tail(lines).await.map_err(failed)?;
        }
        self.send_position().await
    }

    fn detach(&mut self) {
        if let Some(follower) = &mut self.follower {
            follower.attach(None);
        }
    }

    fn is_live(&self) -> bool {
        self.follower.as_ref().is_some_and(Follower::is_live)
    }

    async fn next(&mut self) -> Result<Next, Over> {
        match &mut self.follower {
            Some(follower) => follower.next(BATCH).await.map_err(failed),
            None => Ok(Next::Wait),
        }
    }

    async fn known_end(&self) -> Result<Option<Ended>, Over> {
        if self.is_live() {
            return Ok(None);
        }
        let ended = self.parts.ended(&self.target, self.attempt, self.is_settled).await;
        ended.map_err(failed)
    }

    /// The archive has been read to its end: what is missing is named, then comes the end.
    async fn finish_archived(&mut self, ended: Ended) -> Result<(), Over> {
        let reached = self.follower.as_ref().map(Follower::reached).unwrap_or_default();
        let gaps: Vec<Framed> = [WireStream::Stdout, WireStream::Stderr]
            .into_iter()
            .filter_map(|stream| ended.gap(stream, reached.of(stream))?.wanted(&self.wanted))
            .map(|piece| Framed::new(Placed { start: reached, piece }))
            .collect();
        let is_whole = gaps.is_empty();
        self.send_output(gaps).await?;
        let sealed = ended.exit.sealed && is_whole;
        self.finish(Exit { sealed, ..ended.exit }).await
    }

    async fn finish(&mut self, exit: Exit) -> Result<(), Over> {
        self.say(Frame::Exit(exit)).await?;
        Err(Over::Done)
    }

    async fn tell_state(&mut self) -> Result<(), Over> {
        let state = self.parts.object(&self.target).map(|process| wire_state(&process));
        match state {
            Some(state) if self.told.as_ref() != Some(&state) => {
                self.told = Some(state.clone());
                self.say(Frame::State(state)).await
            }
            _ => Ok(()),
        }
    }

    async fn send_output(&mut self, frames: Vec<Framed>) -> Result<(), Over> {
        if frames.is_empty() {
            return Ok(());
        }
        self.settle().await?;
        metrics().sent.inc_by(
            frames
                .iter()
                .map(|framed| framed.placed.piece.bytes().len() as u64)
                .sum(),
        );
        self.send(frames.into_iter().map(|framed| framed.wire).collect()).await
    }

    async fn say(&mut self, frame: Frame) -> Result<(), Over> {
        self.send(vec![encode(&OutputFrame { frame: Some(frame) })]).await
    }

    async fn send(&mut self, batch: Vec<Bytes>) -> Result<(), Over> {
        let permit = match timeout(STALLED, self.sender.reserve()).await {
            Ok(permit) => permit,
            Err(_) => {
                if let Some(follower) = &mut self.follower {
                    follower.park();
                }
                self.sender.reserve().await
            }
        };
        permit.map_err(|_| Over::Done)?.send(Ok(batch));
        Ok(())
    }

    /// Heartbeats, and the right to go on.
    async fn upkeep(&mut self) -> Result<(), Over> {
        if Instant::now() >= self.recheck {
            self.recheck = Instant::now() + RECHECK;
            let checked = self.parts.check(&self.caller, Action::Log, &self.target).await;
            checked.map_err(Over::Failed)?;
        }
        if Instant::now() >= self.heartbeat {
            self.heartbeat = Instant::now() + HEARTBEAT;
            self.send_position().await?;
        }
        Ok(())
    }

    async fn wait(&mut self) -> Result<(), Over> {
        let is_live = self.is_live();
        let due = self.heartbeat.min(self.recheck);
        let is_behind = self.follower.as_ref().is_some_and(Follower::is_behind);
        let due = match (is_live, is_behind) {
            (true, true) => due.min(Instant::now() + CATCH_UP),
            (false, _) if self.attempt != 0 => due.min(Instant::now() + POLL),
            _ => due,
        };
        let key = self.key();
        let (parts, target, seen) = (&self.parts, &self.target, &self.seen);
        let [objects, sessions] = &mut self.changes;
        loop {
            let more = async {
                match &mut self.follower {
                    Some(follower) => follower.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = more => return Ok(()),
                // Most changes are other people's.
                _ = objects.changed(), if !is_live => if version(parts, target) != *seen {
                    return Ok(());
                },
                _ = sessions.changed(), if !is_live => if parts.sessions.has_feed(&key) {
                    return Ok(());
                },
                () = sleep_until(due) => return Ok(()),
                () = self.sender.closed() => return Err(Over::Done),
            }
        }
    }

    fn key(&self) -> AttemptKey {
        AttemptKey {
            uid: self.target.uid.clone(),
            attempt: self.attempt,
        }
    }
}
