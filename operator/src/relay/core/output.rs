//! One user's stream of one process: before, during and after the life of its pod.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use remoteprocess_api::RemoteProcessStatus;
use remoteprocess_proto::timing::HEARTBEAT;
use remoteprocess_proto::v1::{Cursor, Exit, State, Stream as WireStream, WatchOutputRequest};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::access::{Access, Answers, Sender, line};
use super::authorize::{Authorized, Caller};
use super::ended::Ended;
use super::state::wire_state;
use super::streams::Open;
use super::{Core, unreadable};
use crate::relay::archive::Error as ArchiveError;
use crate::relay::attempt::{AttemptKey, Target};
use crate::relay::error::Error;
use crate::relay::live::{Follower, Next};
use crate::relay::metrics::metrics;
use crate::relay::piece::{Framed, Placed, Wanted};

/// Number of bytes sent to a reader at a time, if its user has few streams; two batches wait for a slow reader.
const BATCH: usize = 64 * 1024;
/// How often the archive is read while an attempt has no home that can be reached.
const POLL: Duration = Duration::from_secs(1);
/// How often it is read for a reader that is slower than the mirror of another home.
const CATCH_UP: Duration = Duration::from_millis(200);

/// What a reader of output gets.
#[derive(Debug)]
pub(crate) enum OutputEvent {
    /// The next output; never empty.
    Output(Vec<Framed>),
    /// Position of the reader, for a later resume; also proof that a silent stream is alive.
    Position {
        /// Offsets of both streams, once reading has begun.
        offsets: Option<Cursor>,
        /// The attempt that is read; 0 while another may replace it.
        attempt: u32,
    },
    /// Why there is no output yet.
    State(State),
    /// The end; nothing follows.
    Exit(Box<Exit>),
}

/// Events in order; an error is the last.
pub(crate) type Events = Answers<OutputEvent>;

/// The output of a process that a caller may read.
pub(crate) struct Output {
    /// UID of the object.
    pub(crate) uid: String,
    /// The attempt, if it is known from the beginning.
    pub(crate) attempt: Option<u32>,
    /// The output itself.
    pub(crate) events: Events,
}

/// Why a stream ends.
enum Over {
    /// The last event was sent, or the reader is gone.
    Done,
    /// The reader gets this error.
    Failed(Error),
}

struct Pump {
    core: Arc<Core>,
    caller: Caller,
    target: Target,
    wanted: Wanted,
    tail_lines: Option<u64>,
    since: Option<i64>,
    follow: bool,
    attempt: u32,
    /// The reader knows the attempt, which does not change anymore.
    is_settled: bool,
    follower: Option<Follower>,
    told: Option<State>,
    /// The object's resourceVersion when it was last read.
    seen: Option<String>,
    heartbeat: Instant,
    changes: [watch::Receiver<u64>; 2],
    sender: Sender<OutputEvent>,
}

impl Core {
    /// Begins to read the output of a process.
    pub(crate) async fn output(self: &Arc<Self>, access: Access, request: WatchOutputRequest) -> Result<Output, Error> {
        let target = match &access.caller {
            Caller::User(caller) => {
                let target = self
                    .allow::<WatchOutputRequest>(&caller.user, request.process.clone())
                    .await?;
                self.check_attempt(&target, request.attempt).await?;
                target
            }
            Caller::Replica(forwarded) => self.at_home(forwarded, request.process.clone())?.subject().target(),
        };
        let attempt = match request.attempt {
            0 => self.settled(&target),
            named => Some(named),
        };
        let (uid, open) = (target.uid.clone(), self.streams.open(&access.caller)?);
        let events = watch(self.clone(), access, open, target, attempt, &request);
        Ok(Output { uid, attempt, events })
    }
}

/// Starts a stream of `attempt`; if that is `None`, of the latest, which the reader is told as soon as it is settled.
pub(super) fn watch(
    core: Arc<Core>,
    access: Access,
    open: Open,
    target: Target,
    attempt: Option<u32>,
    request: &WatchOutputRequest,
) -> Events {
    let caller = access.caller.clone();
    let (line, events) = line(access, open);
    let only = match request.stream() {
        WireStream::Unspecified => None,
        only => Some(only),
    };
    let begins = request.cursor.is_none();
    let pump = Pump {
        changes: [core.directory.changes(), core.live.changes()],
        core,
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
        sender: line.answers(),
    };
    tokio::spawn(async move {
        metrics().followers.inc();
        let (core, target) = (pump.core.clone(), pump.target.clone());
        line.serve(&core, WatchOutputRequest::ACTION, &target, pump.run()).await;
        metrics().followers.dec();
    });
    events
}

fn failed(error: ArchiveError) -> Over {
    Over::Failed(unreadable(&error))
}

fn version(core: &Core, target: &Target) -> Option<String> {
    core.object(target)?.resource_version()
}

/// Reads from the archive, where other readers may have to be waited for. Meanwhile heartbeats say that the stream lives.
async fn alive<T>(sender: &Sender<OutputEvent>, attempt: u32, read: impl Future<Output = T>) -> Result<T, Over> {
    let mut read = pin!(read);
    loop {
        tokio::select! {
            found = &mut read => return Ok(found),
            () = sleep(HEARTBEAT) => {
                let position = OutputEvent::Position { offsets: None, attempt };
                sender.offer(position);
            }
            () = sender.closed() => return Err(Over::Done),
        }
    }
}

impl Pump {
    async fn run(mut self) -> Result<(), Error> {
        match self.serve().await {
            Err(Over::Failed(error)) => Err(error),
            Ok(()) | Err(Over::Done) => Ok(()),
        }
    }

    async fn serve(&mut self) -> Result<(), Over> {
        loop {
            self.seen = version(&self.core, &self.target);
            self.send_heartbeat().await?;
            self.choose_attempt().await?;
            self.attach().await?;
            // What is known before the archive is read to its end decides whether that end is final.
            let end = self.known_end().await?;
            match self.next().await? {
                Next::Pieces(frames) => self.send_output(frames).await?,
                Next::Limit => return Err(Over::Done),
                Next::End(exit) => return self.finish(*exit).await,
                Next::Closed => self.detach(),
                Next::Behind => self.wait(Some(CATCH_UP)).await?,
                Next::Wait if self.is_live() => self.wait(None).await?,
                Next::Wait => match end {
                    Some(end) => return self.finish_archived(end).await,
                    None if self.follow => {
                        self.tell_state().await?;
                        self.wait(None).await?;
                    }
                    None => return Err(Over::Done),
                },
            }
        }
    }

    /// Follows the latest attempt until one was granted, or some of its output was sent.
    async fn choose_attempt(&mut self) -> Result<(), Over> {
        if self.is_settled {
            return Ok(());
        }
        let latest = match self.core.object(&self.target) {
            Some(process) => process
                .status
                .as_ref()
                .and_then(RemoteProcessStatus::current_attempt)
                .unwrap_or_default(),
            None if self.attempt != 0 => self.attempt,
            None => {
                let attempts = self.core.archive.attempts(&self.target.uid).await;
                attempts.map_err(failed)?.last().copied().unwrap_or_default()
            }
        };
        if latest != self.attempt {
            self.attempt = latest;
            self.follower = None;
        }
        if self.core.settled(&self.target) == Some(latest) {
            self.settle().await?;
        }
        Ok(())
    }

    /// From here on the stream belongs to this attempt, and its reader knows that.
    async fn settle(&mut self) -> Result<(), Over> {
        if std::mem::replace(&mut self.is_settled, true) {
            return Ok(());
        }
        self.send_position().await
    }

    /// Sends the reader what it must know to resume.
    async fn send_position(&mut self) -> Result<(), Over> {
        let position = OutputEvent::Position {
            offsets: self.follower.as_ref().map(Follower::position),
            attempt: self.told_attempt(),
        };
        self.send(position).await
    }

    /// The attempt, once its reader knows it.
    fn told_attempt(&self) -> u32 {
        if self.is_settled { self.attempt } else { 0 }
    }

    /// Creates a follower, and attaches a live attempt if there is one.
    async fn attach(&mut self) -> Result<(), Over> {
        if self.attempt == 0 {
            return Ok(());
        }
        let key = self.key();
        if self.is_live() {
            return Ok(());
        }
        let (is_new, attempt) = (self.follower.is_none(), self.told_attempt());
        let wanted = self.wanted;
        let archive = self.core.archive.for_user(self.caller.user());
        let follower = self
            .follower
            .get_or_insert_with(|| Follower::new(archive, key.clone(), wanted));
        let feed = self
            .core
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
        let begin = async {
            if let Some(since) = self.since {
                follower.begin_since(since).await?;
            }
            match self.tail_lines {
                Some(lines) => follower.begin_at_tail(lines).await,
                None => Ok(()),
            }
        };
        alive(&self.sender, attempt, begin).await?.map_err(failed)?;
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
        let (attempt, batch) = (self.told_attempt(), self.sender.batch(BATCH));
        match &mut self.follower {
            Some(follower) => alive(&self.sender, attempt, follower.next(batch))
                .await?
                .map_err(failed),
            None => Ok(Next::Wait),
        }
    }

    async fn known_end(&self) -> Result<Option<Ended>, Over> {
        if self.is_live() {
            return Ok(None);
        }
        let ended = self.core.ended(&self.target, self.attempt, self.is_settled).await;
        ended.map_err(failed)
    }

    /// The archive was read to its end: sends the gaps, then the end.
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
        self.send(OutputEvent::Exit(Box::new(exit))).await?;
        Err(Over::Done)
    }

    async fn tell_state(&mut self) -> Result<(), Over> {
        let state = self.core.object(&self.target).map(|process| wire_state(&process));
        match state {
            Some(state) if self.told.as_ref() != Some(&state) => {
                self.told = Some(state.clone());
                self.send(OutputEvent::State(state)).await
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
        self.send(OutputEvent::Output(frames)).await
    }

    async fn send(&mut self, event: OutputEvent) -> Result<(), Over> {
        let follower = &mut self.follower;
        // What is held for a reader that takes nothing is released.
        let park = || follower.iter_mut().for_each(Follower::park);
        self.sender.send(event, park).await.map_err(|_| Over::Done)?;
        if let Some(follower) = self.follower.as_mut().filter(|follower| follower.is_due()) {
            follower.park();
        }
        Ok(())
    }

    async fn send_heartbeat(&mut self) -> Result<(), Over> {
        if Instant::now() >= self.heartbeat {
            self.heartbeat = Instant::now() + HEARTBEAT;
            self.send_position().await?;
        }
        Ok(())
    }

    /// Waits until there may be more, for at most `limit`.
    async fn wait(&mut self, limit: Option<Duration>) -> Result<(), Over> {
        let is_live = self.is_live();
        let due = self.heartbeat;
        let limit = match limit {
            None if !is_live && self.attempt != 0 => Some(POLL),
            limit => limit,
        };
        let due = limit.map_or(due, |limit| due.min(Instant::now() + limit));
        let key = self.key();
        let (core, target, seen) = (&self.core, &self.target, &self.seen);
        let [objects, attempts] = &mut self.changes;
        loop {
            let more = async {
                match &mut self.follower {
                    Some(follower) => follower.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = more => return Ok(()),
                // Most changes concern other processes.
                _ = objects.changed(), if !is_live => if version(core, target) != *seen {
                    return Ok(());
                },
                _ = attempts.changed(), if !is_live => if core.live.has_feed(&key) {
                    return Ok(());
                },
                () = sleep_until(due) => return Ok(()),
                () = self.sender.closed() => return Err(Over::Done),
            }
        }
    }

    fn key(&self) -> AttemptKey {
        self.target.attempt(self.attempt)
    }
}
