//! A user's host: the client library's follower with its ledger.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use remoteprocess_client::{Dial, DialError, Follower, Ledger, Sink, SinkError, Want};
use remoteprocess_proto::v1::{Cursor, Data, Exit, Gap, ProcessKey, Stream};
use remoteprocess_tls::{Dialer, Role};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;

use super::plan::Plan;
use super::program::Program;
use super::{NAME, NAMESPACE, World, identity, network, plan};

/// What a user has at the end.
pub(super) struct Received {
    name: String,
    stream: Stream,
    bytes: [Vec<u8>; 2],
    end: Option<Exit>,
    losses: Vec<Gap>,
    complaint: Option<String>,
}

struct Relays {
    world: Arc<World>,
    dialer: Dialer,
    name: String,
    rate: Option<u64>,
}

/// What has arrived, standard output first.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<[Vec<u8>; 2]>>);

impl Memory {
    fn bytes(&self) -> [Vec<u8>; 2] {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Sink for Memory {
    async fn attempt(&mut self, _: u32) -> Result<(), SinkError> {
        Ok(())
    }

    async fn data(&mut self, data: Data) -> Result<(), SinkError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held[usize::from(data.stream() == Stream::Stderr)].extend_from_slice(&data.bytes);
        Ok(())
    }

    async fn gap(&mut self, _: Gap) -> Result<(), SinkError> {
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

impl Dial for Relays {
    async fn dial(&mut self) -> Result<Channel, DialError> {
        let to = self.world.any_relay();
        network::dial(&self.world, &self.dialer, (&self.name, &to), &Role::Operator, self.rate)
            .await
            .map_err(|error| DialError::Unreachable(error.to_string()))
    }

    fn discredit(&mut self) {}
}

/// Reads from the beginning to the end, over as many connections, and as many restarts, as it takes.
pub(super) async fn run(world: Arc<World>, index: usize) -> turmoil::Result {
    let user = world.plan.users[index].clone();
    sleep(user.begins).await;
    let memory = Memory::default();
    let dial = Relays {
        world: world.clone(),
        dialer: Dialer::new(identity(&Role::User)),
        name: plan::user(index),
        rate: user.rate,
    };
    let mut want = want(user.stream);
    let mut losses = Vec::new();
    let mut life = user.restarts.unwrap_or(Duration::MAX);
    let mut dial = Some(dial);
    loop {
        let mut follower = Follower {
            dial: dial.take().ok_or("no way to dial")?,
            ledger: Ledger::new(want.clone()),
            sink: memory.clone(),
            progress: (),
            unknown_until: Instant::now() + Duration::from_secs(600),
        };
        let Ok(end) = timeout(life, follower.run()).await else {
            life = Duration::MAX;
            losses.extend_from_slice(follower.ledger.losses());
            let received = memory.bytes().map(|bytes| bytes.len() as u64);
            want.cursor = Some(Cursor {
                stdout: received[0] + lost(&losses, Stream::Stdout),
                stderr: received[1] + lost(&losses, Stream::Stderr),
            });
            dial = Some(follower.dial);
            continue;
        };
        let end = end?;
        losses.extend_from_slice(follower.ledger.losses());
        let received = Received {
            name: plan::user(index),
            stream: user.stream,
            bytes: memory.bytes(),
            complaint: end.as_ref().and_then(|exit| follower.ledger.audit(exit)),
            losses,
            end,
        };
        world
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(received);
        return Ok(());
    }
}

fn want(stream: Stream) -> Want {
    Want {
        process: ProcessKey {
            namespace: NAMESPACE.to_owned(),
            name: NAME.to_owned(),
            ..ProcessKey::default()
        },
        stream,
        follow: true,
        ..Want::default()
    }
}

fn lost(losses: &[Gap], stream: Stream) -> u64 {
    let lost = losses.iter().filter(|gap| gap.stream() == stream);
    lost.map(|gap| gap.to.unwrap_or(gap.from) - gap.from).sum()
}

impl Received {
    /// Checks that it is what the program wrote, except for gaps that the plan allows.
    pub(super) fn check(&self, program: &Program, plan: &Plan) -> Result<()> {
        let name = &self.name;
        for gap in &self.losses {
            let is_allowed = gap.to.is_some() && plan.gap_reason() == Some(gap.reason());
            ensure!(is_allowed, "{name} was told of a loss: {gap:?}");
        }
        for (stream, bytes) in [Stream::Stdout, Stream::Stderr].into_iter().zip(&self.bytes) {
            let is_wanted = self.stream == Stream::Unspecified || self.stream == stream;
            let written = if is_wanted {
                self.without_gaps(program, stream)
            } else {
                Vec::new()
            };
            let differs = bytes.iter().zip(&written).position(|(got, wrote)| got != wrote);
            ensure!(
                *bytes == written,
                "{name} got {} bytes of {stream:?}, {} were written, the first other one is {differs:?}; losses {:?}",
                bytes.len(),
                written.len(),
                self.losses,
            );
        }
        ensure!(self.complaint.is_none(), "{name}: {:?}", self.complaint);
        let end = self.end.as_ref();
        let is_right = end.is_some_and(|exit| {
            // What one home was told is lost, another may have received earlier and archived.
            let may_be_sealed = self.losses.is_empty() || plan.relays > 1;
            let must_be_sealed = plan.gap_reason().is_none();
            exit.value == plan.exit_code && (may_be_sealed || !exit.sealed) && (exit.sealed || !must_be_sealed)
        });
        ensure!(is_right, "{name} was told of a wrong end: {end:?}");
        Ok(())
    }

    fn without_gaps(&self, program: &Program, stream: Stream) -> Vec<u8> {
        let is_missing = |at: u64| {
            let mut gaps = self.losses.iter().filter(|gap| gap.stream() == stream);
            gaps.any(|gap| (gap.from..gap.to.unwrap_or(u64::MAX)).contains(&at))
        };
        let history = program.history(stream);
        (0..)
            .zip(history)
            .filter(|(at, _)| !is_missing(*at))
            .map(|(_, byte)| *byte)
            .collect()
    }
}
