//! The output of an attempt whose home is another replica: one stream from there, for all who read it here.
//!
//! Output that was in the archive when the mirror began is read from there; everything after that comes into a ring
//! like the home's. If the home goes away, the mirror searches for the next one and continues where this ring ends, so
//! nothing is lost or repeated.

use std::sync::Arc;
use std::time::Duration;

use remoteprocess_proto::timing::SILENCE;
use remoteprocess_proto::v1::Exit;
use remoteprocess_proto::v1::output_frame::Frame;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::ring::Ring;
use super::{Feed, LiveAttempts};
use crate::backoff::Backoff;
use crate::relay::attempt::AttemptKey;
use crate::relay::grpc::peers::Home;
use crate::relay::metrics::metrics;
use crate::relay::piece::{Piece, distance};

/// An agent that has lost its home has another within a few seconds; after that, readers use the archive.
const SEARCH: Duration = Duration::from_secs(8);
/// Pauses while searching for the home.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
/// How often to check whether there is still a reader.
const LINGER: Duration = Duration::from_secs(5);

/// One attempt, copied from another replica.
pub struct Mirror {
    key: AttemptKey,
    ring: Arc<Ring>,
    progress: watch::Sender<Progress>,
}

/// State of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The home is being searched for, or its output is on its way.
    Looking,
    /// It has all output that the home had when it was found.
    Ready,
    /// There is no home among the replicas, or there is no reader.
    Gone,
}

impl Mirror {
    pub(super) fn new(attempts: &LiveAttempts, key: AttemptKey) -> Self {
        Self {
            key,
            ring: Arc::new(Ring::new(attempts.context.memory.clone())),
            progress: watch::Sender::new(Progress::Looking),
        }
    }

    /// What can be read of it, once it is ready.
    pub fn feed(&self) -> Option<Feed> {
        (*self.progress.borrow() == Progress::Ready).then(|| Feed {
            ring: self.ring.clone(),
            is_home: false,
        })
    }

    /// Waits until it is ready or gone.
    pub async fn settled(&self) {
        let mut progress = self.progress.subscribe();
        // An error means that it is gone.
        let _ = progress.wait_for(|progress| *progress != Progress::Looking).await;
    }

    /// Copies the home's stream until its end, until there is no reader, or until this replica is the home.
    pub(super) async fn run(&self, attempts: &LiveAttempts) {
        metrics().mirrors.inc();
        tokio::select! {
            () = self.copy(attempts) => {}
            () = self.unread() => {}
            () = at_home(attempts, &self.key) => {}
            () = attempts.context.shutdown.cancelled() => {}
        }
        self.ring.close();
        self.progress.send_replace(Progress::Gone);
        metrics().mirrors.dec();
    }

    async fn copy(&self, attempts: &LiveAttempts) {
        let Ok(begin) = attempts.context.archive.reader(&self.key).last_start().await else {
            return;
        };
        self.ring.begin(begin);
        let mut seen = Instant::now();
        let mut backoff = BACKOFF;
        while seen.elapsed() < SEARCH {
            let received = self.ring.end();
            let end = match attempts.context.peers.home_of(&self.key).await {
                Some(home) => self.read(attempts, &home).await,
                None => Err("no replica is the home".into()),
            };
            match end {
                Ok(exit) => return self.ring.finish(exit, self.ring.end()),
                Err(reason) => debug!(uid = self.key.uid, reason, "no stream from the home"),
            }
            if received != self.ring.end() {
                (seen, backoff) = (Instant::now(), BACKOFF);
            }
            sleep(backoff.pause()).await;
        }
    }

    async fn read(&self, attempts: &LiveAttempts, home: &Home) -> Result<Exit, ReadError> {
        let mut frames = attempts.context.peers.watch_output(home, self.ring.end()).await?;
        let goal = home.state.output.as_ref().map(distance).unwrap_or_default();
        self.reached(attempts, goal);
        loop {
            let next = timeout(SILENCE, frames.next()).await??;
            let (frame, wire) = next.ok_or("ended without an exit")?;
            match frame {
                Frame::Data(data) => self.ring.push_message(Piece::Data(data), wire),
                Frame::Gap(gap) => self.ring.push(Piece::Gap(gap)),
                Frame::Exit(exit) => {
                    self.reached(attempts, 0);
                    return Ok(exit);
                }
                Frame::State(_) | Frame::Heartbeat(_) | Frame::Spool(_) => continue,
            }
            self.ring.keep_all();
            self.reached(attempts, goal);
        }
    }

    /// Becomes ready as soon as it has all output that the home had at first: a reader of what is there now must not
    /// get less.
    fn reached(&self, attempts: &LiveAttempts, goal: u64) {
        if *self.progress.borrow() == Progress::Looking && distance(&self.ring.end()) >= goal {
            self.progress.send_replace(Progress::Ready);
            attempts.changed.send_modify(|version| *version += 1);
        }
    }

    async fn unread(&self) {
        loop {
            sleep(LINGER).await;
            if !self.ring.is_read() {
                return;
            }
        }
    }
}

type ReadError = Box<dyn std::error::Error + Send + Sync>;

async fn at_home(attempts: &LiveAttempts, key: &AttemptKey) {
    let mut changes = attempts.changes();
    while attempts.get(key).is_none() {
        if changes.changed().await.is_err() {
            return;
        }
    }
}
