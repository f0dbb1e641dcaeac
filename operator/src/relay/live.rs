//! One upstream for each live attempt, many followers.
//!
//! A live attempt reads the agent's output once, keeps the newest part in a ring, and archives it. Followers read the
//! ring, or the archive if they are too slow for the ring; no follower holds the upstream back. Only a ring full of
//! bytes that are not durable yet does: then the agent's spool takes the output.

mod archiver;
mod bounds;
mod budget;
mod conditions;
mod desired;
mod follower;
mod mirror;
mod ring;
mod upstream;

#[cfg(test)]
pub(crate) mod fake_agent;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{Cursor, Exit, State};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use budget::Budget;
pub use conditions::OutputCondition;
pub use desired::{Desired, Fact, ProgramSpec, ProgramStatus, StopOrder};
pub use follower::Follower;
pub use mirror::Mirror;
pub use ring::Next;
use ring::{Place, Ring};

use super::archive::{Archive, Manifest, Unavailable};
use super::attempt::{Agent, AttemptKey, Subject};
use super::grpc::agent::{AgentClient, Connect};
use super::grpc::peers::Peers;
use super::metrics::metrics;
use super::piece::{Framed, Piece};

/// Writes what a live attempt learns into the object's status. Each write is retried until it succeeds or the object is
/// gone: an unavailable API server must not end a live attempt.
pub trait Record: Send + Sync + 'static {
    /// Records a fact about a running program.
    fn learned<'a>(&'a self, subject: &'a Subject, fact: Fact) -> BoxFuture<'a, ()>;
    /// Records that something holds the output up, or no longer does.
    fn noted<'a>(&'a self, subject: &'a Subject, notice: &'a OutputCondition) -> BoxFuture<'a, ()>;
    /// The attempt ended and its output is archived; `tail` has the last bytes of both streams in the observed order, at
    /// most [`TAIL_BYTES`].
    fn ended<'a>(&'a self, subject: &'a Subject, manifest: &'a Manifest, tail: &'a [u8]) -> BoxFuture<'a, ()>;
}

/// Number of raw bytes of output from which the tail in the status is made.
pub const TAIL_BYTES: usize = 4096;

/// What a reader gets of what an agent sends after `begin`, if it reads about `part` bytes at a time. For `fuzz/`: without
/// agent, archive and tasks.
///
/// # Errors
/// The frame that [`bounds`] refuses; the relay ends such a stream.
pub(crate) fn carry(sent: Vec<(Frame, Bytes)>, begin: Cursor, part: usize) -> Result<Vec<Framed>, &'static str> {
    let ring = Ring::new(Arc::new(Budget::new(usize::MAX)));
    ring.begin(begin);
    ring.join();
    let (mut place, mut got) = (Place::new(begin), Vec::new());
    for (frame, wire) in sent {
        match bounds::bound(frame)? {
            Frame::Data(data) => ring.push_message(Piece::Data(data), wire),
            Frame::Gap(gap) => ring.push(Piece::Gap(gap)),
            Frame::State(_) | Frame::Heartbeat(_) | Frame::Exit(_) | Frame::Spool(_) => continue,
        }
        if let Next::Pieces(pieces) = ring.read(&mut place, part) {
            got.extend(pieces);
        }
    }
    while let Next::Pieces(pieces) = ring.read(&mut place, part) {
        got.extend(pieces);
    }
    Ok(got)
}

/// What all live attempts of a relay share.
pub struct Context {
    /// Where output is archived.
    pub archive: Archive,
    /// How agents are reached.
    pub connect: Arc<dyn Connect>,
    /// The other replicas.
    pub peers: Peers,
    /// Where facts are recorded.
    pub record: Box<dyn Record>,
    /// The memory limit of all rings together.
    pub memory: Arc<Budget>,
    /// Ends every live attempt; received output is flushed first.
    pub shutdown: CancellationToken,
}

/// One live attempt.
pub struct LiveAttempt {
    subject: Subject,
    context: Arc<Context>,
    ring: Arc<Ring>,
    agent: watch::Sender<Agent>,
    client: AgentClient,
    desired: watch::Sender<Desired>,
    observed: watch::Sender<Observed>,
    /// Why the archive takes nothing now.
    unavailable: watch::Sender<Option<Unavailable>>,
    /// Held during a write about this attempt: two at the same time would conflict, and a start that is being written when
    /// the end comes is written first instead of cut off.
    recording: tokio::sync::Mutex<()>,
}

/// What the agent's stream has shown of a live attempt.
#[derive(Clone, Debug, Default)]
struct Observed {
    /// The program has started.
    is_started: bool,
    /// The last state that the agent reported.
    state: Option<State>,
    /// The size of the spool in bytes, while it is full and holds the program back.
    blocked: Option<u64>,
    /// What the agent sent that cannot be taken.
    refused: Option<&'static str>,
    /// The stream is open now, as far as this side knows.
    is_connected: bool,
}

/// What a follower reads in addition to the archive: the ring of a live attempt, or of a mirror.
#[derive(Clone)]
pub struct Feed {
    ring: Arc<Ring>,
    /// If true, what the ring has dropped is in the archive; another home may still be archiving it.
    is_home: bool,
}

/// The live attempts of a relay, and the mirrors of other replicas' live attempts.
#[derive(Clone)]
pub struct LiveAttempts {
    context: Arc<Context>,
    live: Arc<Mutex<HashMap<AttemptKey, Arc<LiveAttempt>>>>,
    mirrors: Arc<Mutex<HashMap<AttemptKey, Arc<Mirror>>>>,
    changed: watch::Sender<u64>,
    tasks: TaskTracker,
}

impl LiveAttempts {
    /// Without live attempts.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            live: Arc::default(),
            mirrors: Arc::default(),
            changed: watch::Sender::new(0),
            tasks: TaskTracker::new(),
        }
    }

    /// The live attempt of an attempt.
    #[must_use]
    pub fn get(&self, key: &AttemptKey) -> Option<Arc<LiveAttempt>> {
        self.lock().get(key).cloned()
    }

    /// Every live attempt.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<LiveAttempt>> {
        self.lock().values().cloned().collect()
    }

    /// The mirror of an attempt whose home is another replica; created if there is none.
    pub fn mirror(&self, key: &AttemptKey) -> Arc<Mirror> {
        let mut mirrors = self.mirrors();
        if let Some(mirror) = mirrors.get(key) {
            return mirror.clone();
        }
        let mirror = Arc::new(Mirror::new(self, key.clone()));
        mirrors.insert(key.clone(), mirror.clone());
        let (attempts, running, key) = (self.clone(), mirror.clone(), key.clone());
        self.tasks.spawn(async move {
            running.run(&attempts).await;
            attempts.mirrors().remove(&key);
        });
        mirror
    }

    /// Whether an attempt can be read live here.
    #[must_use]
    pub fn has_feed(&self, key: &AttemptKey) -> bool {
        self.get(key).is_some() || self.mirrors().get(key).is_some_and(|mirror| mirror.feed().is_some())
    }

    /// The other replicas.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.context.peers
    }

    /// Fires when a live attempt begins or ends, or a mirror becomes ready.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Opens the live attempt of an attempt, or tells an open one where its agent is now.
    pub fn open(&self, subject: Subject, agent: Agent) -> Arc<LiveAttempt> {
        let mut live = self.lock();
        if let Some(attempt) = live.get(&subject.key) {
            attempt.agent.send_replace(agent);
            return attempt.clone();
        }
        let attempt = Arc::new(LiveAttempt::new(self.context.clone(), subject, agent));
        live.insert(attempt.subject.key.clone(), attempt.clone());
        drop(live);
        self.changed.send_modify(|version| *version += 1);
        let (attempts, running) = (self.clone(), attempt.clone());
        metrics().attempts.inc();
        self.tasks.spawn(async move {
            archiver::run(&running).await;
            running.ring.close();
            metrics().attempts.dec();
            attempts.lock().remove(&running.subject.key);
            attempts.changed.send_modify(|version| *version += 1);
        });
        attempt
    }

    /// Waits until every live attempt has ended; call it after the shutdown token fired.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn mirrors(&self) -> MutexGuard<'_, HashMap<AttemptKey, Arc<Mirror>>> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AttemptKey, Arc<LiveAttempt>>> {
        // The map is consistent after each statement, so a panic elsewhere leaves nothing half done.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveAttempt {
    fn new(context: Arc<Context>, subject: Subject, agent: Agent) -> Self {
        let agent = watch::Sender::new(agent);
        Self {
            subject,
            ring: Arc::new(Ring::new(context.memory.clone())),
            client: AgentClient::new(context.connect.clone(), agent.subscribe()),
            context,
            agent,
            desired: watch::Sender::default(),
            observed: watch::Sender::default(),
            unavailable: watch::Sender::new(None),
            recording: tokio::sync::Mutex::default(),
        }
    }

    /// Whether a follower reads here.
    #[cfg(test)]
    pub(crate) fn is_read(&self) -> bool {
        self.ring.is_read()
    }

    /// What followers read.
    #[must_use]
    pub fn feed(&self) -> Feed {
        Feed {
            ring: self.ring.clone(),
            is_home: true,
        }
    }

    /// The attempt and its object.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The client of the agent.
    #[must_use]
    pub fn agent(&self) -> &AgentClient {
        &self.client
    }

    /// False at first, until the archive has reported where its output ends.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.ring.front().is_some()
    }

    /// Whether the agent's stream is open now, as far as this side knows.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.observed.borrow().is_connected
    }

    /// Offsets received so far.
    #[must_use]
    pub fn received(&self) -> Cursor {
        self.ring.end()
    }

    /// The last state that the agent reported.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        self.observed.borrow().state.clone()
    }

    /// Why the archive takes nothing of this attempt now, and each change of that; `None` while it takes output.
    #[must_use]
    pub fn archive_unavailable(&self) -> watch::Receiver<Option<Unavailable>> {
        self.unavailable.subscribe()
    }

    /// The last frame, once the attempt has ended and is archived.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.ring.exit()
    }

    async fn learn(&self, fact: Fact) {
        let _one = self.recording.lock().await;
        self.context.record.learned(&self.subject, fact).await;
    }

    async fn note(&self, notice: &OutputCondition) {
        let _one = self.recording.lock().await;
        self.context.record.noted(&self.subject, notice).await;
    }

    async fn end(&self, manifest: &Manifest, tail: &[u8]) {
        let _one = self.recording.lock().await;
        self.context.record.ended(&self.subject, manifest, tail).await;
    }

    /// Updates the desired state. The attempt's own tasks apply it.
    pub fn update_desired(&self, said: Desired) {
        self.desired.send_if_modified(|desired| desired.update(said));
    }
}
