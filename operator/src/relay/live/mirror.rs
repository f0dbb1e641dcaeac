//! The output of an attempt whose home is another replica: one stream from there, for all who read it here.
//!
//! What was in the archive when it began is read from there; everything after comes into a ring like the home's. A home
//! that goes away is looked for again; what follows goes on where this ring ends, so nothing is lost or repeated.

use std::sync::Arc;
use std::time::Duration;

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{Exit, OutputFrame, WatchOutputRequest};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;
use tracing::debug;

use super::ring::Ring;
use super::{Feed, Sessions};
use crate::relay::attempt::AttemptKey;
use crate::relay::grpc::peers::{Home, forward, process};
use crate::relay::metrics::metrics;
use crate::relay::piece::{Piece, distance};

/// A home sends a heartbeat every 10 s.
const SILENCE: Duration = Duration::from_secs(30);
/// Time for the home's answer.
const OPEN: Duration = Duration::from_secs(5);
/// An agent that has lost its home has another within a few seconds; then readers turn to the archive.
const SEARCH: Duration = Duration::from_secs(8);
/// Pauses while the home is looked for.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How often it is seen whether anybody still reads.
const LINGER: Duration = Duration::from_secs(5);

/// One attempt as another replica has it.
pub struct Mirror {
    key: AttemptKey,
    ring: Arc<Ring>,
    progress: watch::Sender<Progress>,
}

/// How far a mirror has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The home is being looked for, or what it has is on its way.
    Looking,
    /// It has what the home had when it was found.
    Ready,
    /// There is no home among the replicas, or nobody reads.
    Gone,
}

impl Mirror {
    pub(super) fn new(sessions: &Sessions, key: AttemptKey) -> Self {
        Self {
            key,
            ring: Arc::new(Ring::new(sessions.context.memory.clone())),
            progress: watch::Sender::new(Progress::Looking),
        }
    }

    /// What can be read of it, once it is ready.
    #[must_use]
    pub fn feed(&self) -> Option<Feed> {
        (*self.progress.borrow() == Progress::Ready).then(|| Feed {
            ring: self.ring.clone(),
            is_home: false,
        })
    }

    /// Waits until it is ready or there is nothing to wait for.
    pub async fn settled(&self) {
        let mut progress = self.progress.subscribe();
        // An error says that it is gone.
        let _ = progress.wait_for(|progress| *progress != Progress::Looking).await;
    }

    /// Copies the home's stream until its end, until nobody reads, or until this replica is the home.
    pub(super) async fn run(&self, sessions: &Sessions) {
        metrics().mirrors.inc();
        tokio::select! {
            () = self.copy(sessions) => {}
            () = self.unread() => {}
            () = at_home(sessions, &self.key) => {}
            () = sessions.context.shutdown.cancelled() => {}
        }
        self.ring.close();
        self.progress.send_replace(Progress::Gone);
        metrics().mirrors.dec();
    }

    async fn copy(&self, sessions: &Sessions) {
        let Ok(begin) = sessions.context.archive.reader(&self.key).last_start().await else {
            return;
        };
        self.ring.begin(begin);
        let mut seen = Instant::now();
        let mut backoff = BACKOFF.0;
        while seen.elapsed() < SEARCH {
            let received = self.ring.end();
            let end = match sessions.context.peers.home_of(&self.key).await {
                Some(home) => self.read(sessions, &home).await,
                None => Err("no replica is the home".into()),
            };
            match end {
                Ok(exit) => return self.ring.finish(exit, self.ring.end()),
                Err(reason) => debug!(uid = self.key.uid, reason, "no stream from the home"),
            }
            if received != self.ring.end() {
                (seen, backoff) = (Instant::now(), BACKOFF.0);
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    async fn read(&self, sessions: &Sessions, home: &Home) -> Result<Exit, ReadError> {
        let mut frames = self.open(sessions, home).await?;
        let goal = home.state.output.as_ref().map(distance).unwrap_or_default();
        self.reached(sessions, goal);
        loop {
            let frame = timeout(SILENCE, frames.message()).await??;
            let frame = frame.ok_or("ended without an exit")?;
            if let Some(Frame::Exit(exit)) = frame.frame {
                self.reached(sessions, 0);
                return Ok(exit);
            }
            if let Some(piece) = Piece::from_frame(frame) {
                self.ring.push(piece);
                self.ring.keep_all();
                self.reached(sessions, goal);
            }
        }
    }

    async fn open(&self, sessions: &Sessions, home: &Home) -> Result<Streaming<OutputFrame>, ReadError> {
        let mut client = timeout(OPEN, sessions.context.peers.connect(home)).await??;
        let request = WatchOutputRequest {
            protocol: PROTOCOL,
            process: Some(process(&self.key)),
            attempt: self.key.attempt,
            cursor: Some(self.ring.end()),
            follow: true,
            ..WatchOutputRequest::default()
        };
        let request = forward(&self.key, "", request);
        Ok(timeout(OPEN, client.watch_output(request)).await??.into_inner())
    }

    /// Ready as soon as it has what the home had at first: a reader of what is there now must not get less.
    fn reached(&self, sessions: &Sessions, goal: u64) {
        if *self.progress.borrow() == Progress::Looking && distance(&self.ring.end()) >= goal {
            self.progress.send_replace(Progress::Ready);
            sessions.changed.send_modify(|version| *version += 1);
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

async fn at_home(sessions: &Sessions, key: &AttemptKey) {
    let mut changes = sessions.changes();
    while sessions.get(key).is_none() {
        if changes.changed().await.is_err() {
            return;
        }
    }
}
