//! What a seed determines.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use remoteprocess_agent::spool::{Policy, WhenFull};
use remoteprocess_proto::v1::{GapReason, Stream};

use super::{api, store};

/// The agent's host.
pub(super) const AGENT: &str = "agent";
/// The relays' hosts.
pub(super) const RELAYS: [&str; 2] = ["relay-0", "relay-1"];
/// The network is never faster.
pub(super) const LEAST_LATENCY: Duration = Duration::from_millis(1);
/// Faults begin within this time; the program writes for about as long.
const BUSY: Duration = Duration::from_secs(40);

/// The host of a user.
#[must_use]
pub(super) fn user(index: usize) -> String {
    format!("user-{index}")
}

/// Everything that a seed decides.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub seed: u64,
    pub relays: usize,
    pub spool: Policy,
    /// Bytes that the rings of a relay may hold.
    pub rings: usize,
    /// Maximum time that a TCP segment takes on a healthy link.
    pub latency: Duration,
    /// One in this many connections breaks by itself, after few bytes or many.
    pub frailty: u32,
    pub writes: Vec<Write>,
    pub exit_code: i32,
    pub users: Vec<User>,
    pub faults: Vec<Event>,
}

/// One write of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub at: Duration,
    pub stream: Stream,
    pub length: usize,
}

/// A reader.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub begins: Duration,
    /// `Unspecified`: both.
    pub stream: Stream,
    /// Ends after this time, and continues as a new one with the offsets of what it has.
    pub restarts: Option<Duration>,
    /// Bytes per second.
    pub rate: Option<u64>,
}

/// A fault and its time.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub at: Duration,
    pub fault: Fault,
}

/// Faults of hosts, and of links between two of them.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Ends every connection.
    Cut(String, String),
    /// Keeps every segment back.
    Hold(String, String),
    /// Delivers what was kept back.
    Release(String, String),
    /// Drops every segment: open connections are dead, and neither side is told.
    Partition(String, String),
    /// The same, from the first to the second only.
    OneWay(String, String),
    Repair(String, String),
    Latency(String, String, Duration),
    Crash(String),
    Restart(String),
    Api(api::Mode),
    Store(store::Mode),
    /// Everything works from now on.
    Heal,
}

impl Plan {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self {
            seed,
            relays: rng.random_range(1..=2),
            spool: Policy {
                size: 1 << rng.random_range(14..=21),
                when_full: pick(
                    &mut rng,
                    &[WhenFull::Block, WhenFull::Block, WhenFull::DropOldest, WhenFull::Auto],
                ),
                // The agent takes this from the node's clock, which is not simulated.
                patience: Duration::from_millis(10),
            },
            rings: 1 << rng.random_range(14..=23),
            latency: Duration::from_millis(pick(&mut rng, &[2, 20, 100, 400])),
            frailty: pick(&mut rng, &[0, 2, 4, 10]),
            writes: writes(&mut rng),
            exit_code: pick(&mut rng, &[0, 1, 7, 255]),
            users: Vec::new(),
            faults: Vec::new(),
        };
        plan.users = (0..rng.random_range(1..=4)).map(|_| User::new(&mut rng)).collect();
        for _ in 0..rng.random_range(0..=10) {
            let events = plan.fault(&mut rng);
            plan.faults.extend(events);
        }
        let last = plan.faults.iter().map(|event| event.at).max();
        plan.faults.extend(last.map(|at| Event { at, fault: Fault::Heal }));
        plan
    }

    /// Why output may be missing; `None`: it must not.
    pub(super) fn gap_reason(&self) -> Option<GapReason> {
        (self.spool.when_full != WhenFull::Block).then(|| self.spool.when_full.reason())
    }

    fn fault(&self, rng: &mut StdRng) -> Vec<Event> {
        let at = moment(rng, BUSY);
        let most = pick(rng, &[1, 5, 45]);
        let length = moment(rng, Duration::from_secs(most));
        let (a, b) = self.link(rng);
        let relay = RELAYS[rng.random_range(0..self.relays)].to_owned();
        let (begin, end) = match rng.random_range(0..9) {
            0 | 1 => (Fault::Cut(a, b), None),
            2 => (Fault::Hold(a.clone(), b.clone()), Some(Fault::Release(a, b))),
            3 => (Fault::Partition(a.clone(), b.clone()), Some(Fault::Repair(a, b))),
            4 => (Fault::OneWay(a.clone(), b.clone()), Some(Fault::Repair(a, b))),
            5 => (
                Fault::Latency(a, b, moment(rng, Duration::from_secs(2)).max(LEAST_LATENCY)),
                None,
            ),
            6 => {
                let host = if rng.random_bool(0.5) { AGENT.to_owned() } else { relay };
                (Fault::Crash(host.clone()), Some(Fault::Restart(host)))
            }
            7 => (Fault::Api(api::Mode::choose(rng)), Some(Fault::Api(api::Mode::Works))),
            _ => (
                Fault::Store(store::Mode::choose(rng)),
                Some(Fault::Store(store::Mode::Works)),
            ),
        };
        let mut events = vec![Event { at, fault: begin }];
        events.extend(end.map(|fault| Event { at: at + length, fault }));
        events
    }

    /// Two hosts that talk to each other, in either order.
    fn link(&self, rng: &mut StdRng) -> (String, String) {
        let relay = RELAYS[rng.random_range(0..self.relays)].to_owned();
        let other = if rng.random_bool(0.5) {
            AGENT.to_owned()
        } else {
            user(rng.random_range(0..self.users.len()))
        };
        if rng.random_bool(0.5) {
            (relay, other)
        } else {
            (other, relay)
        }
    }
}

impl User {
    fn new(rng: &mut StdRng) -> Self {
        let latest = pick(rng, &[1, 10, 90]);
        Self {
            begins: moment(rng, Duration::from_secs(latest)),
            stream: pick(
                rng,
                &[Stream::Unspecified, Stream::Unspecified, Stream::Stdout, Stream::Stderr],
            ),
            restarts: rng.random_bool(0.3).then(|| moment(rng, Duration::from_secs(30))),
            rate: rng.random_bool(0.3).then(|| rng.random_range(20_000..500_000)),
        }
    }
}

/// A few long writes or many short ones, in bursts with pauses between them.
fn writes(rng: &mut StdRng) -> Vec<Write> {
    let most = pick(rng, &[10, 500, 20_000, 200_000]);
    let at_most = pick(rng, &[1_000, 100_000, 1_000_000]);
    let total = rng.random_range(0..=at_most);
    let pause = pick(rng, &[0, 20, 2_000]);
    let mut at = Duration::ZERO;
    let (mut writes, mut written) = (Vec::new(), 0);
    while written < total && writes.len() < 4_000 {
        let length = rng.random_range(1..=most);
        let stream = if rng.random_bool(0.8) {
            Stream::Stdout
        } else {
            Stream::Stderr
        };
        writes.push(Write { at, stream, length });
        written += length;
        let left = BUSY.saturating_sub(at);
        at += Duration::from_millis(rng.random_range(0..=pause)).min(left);
    }
    writes
}

fn moment(rng: &mut StdRng, before: Duration) -> Duration {
    Duration::from_millis(rng.random_range(0..=u64::try_from(before.as_millis()).unwrap_or(u64::MAX)))
}

fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from.choose(rng).copied().unwrap_or(from[0])
}
