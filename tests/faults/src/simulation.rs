//! The stream protocol on a simulated network and clock: the agent's spool and service, the relay's sessions, archive and
//! service, the follower of `rproc`, with mutual TLS between them.
//!
//! A seed fixes the program, the network and the faults. It does not fix the order in tokio's `select!`, the order of
//! hash maps, and how long the two real threads (the spool's hashing, the follower's writing) take while the simulated
//! clock advances. So a rare failure may need several runs of its seed to reappear.

mod agent;
mod api;
mod network;
mod plan;
mod program;
mod relay;
mod store;
mod user;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use remoteprocess_tls::{Authority, Identity, Role, TrustDomain, User};

use api::Api;
use network::Network;
use plan::{Event, Fault, LEAST_LATENCY, Plan};
use program::Program;
use store::Store;
use user::Received;

/// Step of the simulated time.
const TICK: Duration = Duration::from_millis(10);
/// Simulated time for everything to recover after the last fault.
const PATIENCE: Duration = Duration::from_secs(400);
const NAMESPACE: &str = "default";
const NAME: &str = "job";
const UID: &str = "0c1d";
const POD_UID: &str = "pod-1";

/// The figures of one seed.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Bytes that the program wrote.
    pub bytes: u64,
    /// Faults of the plan.
    pub faults: usize,
    /// Connections that the network ended or froze.
    pub cuts: u64,
    /// Simulated time until all readers had everything.
    pub took: Duration,
}

/// What all hosts of a simulation share: what survives their crashes, and the state of the network.
struct World {
    plan: Plan,
    api: Api,
    store: Arc<Store>,
    network: Network,
    program: Mutex<Program>,
    spool: tempfile::TempDir,
    /// Which relays run: a Service sends no client to the others.
    up: Vec<AtomicBool>,
    /// The agent was told that everything is archived.
    has_left: AtomicBool,
    received: Mutex<Vec<Received>>,
}

/// Runs one seed.
///
/// # Errors
/// A guarantee that did not hold.
pub fn run(seed: u64) -> Result<Summary> {
    let plan = Plan::new(seed);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(LEAST_LATENCY)
        .max_message_latency(plan.latency)
        .tcp_capacity(256)
        .build();
    let world = Arc::new(World::new(plan)?);
    add_hosts(&mut sim, &world);
    let mut faults = world.plan.faults.clone();
    // The next one is at the end; of two at the same time the one that was planned first.
    faults.reverse();
    faults.sort_by_key(|event| std::cmp::Reverse(event.at));
    let limit = faults.first().map_or(Duration::ZERO, |event| event.at) + PATIENCE;
    let mut is_over = false;
    while !is_over || !world.is_settled() {
        ensure!(
            sim.elapsed() < limit,
            "not over after {limit:?} of simulated time: {}",
            world.describe()
        );
        while let Some(event) = faults.pop_if(|event| event.at <= sim.elapsed()) {
            tracing::info!(at = ?sim.elapsed(), fault = ?event.fault, "fault");
            world.inflict(&mut sim, &event);
        }
        world.program().pump(sim.elapsed())?;
        is_over = sim.step().map_err(|error| anyhow!("{error}"))?;
    }
    world.check()?;
    Ok(Summary {
        bytes: world.program().written(),
        faults: world.plan.faults.len(),
        cuts: world.network.cuts(),
        took: sim.elapsed(),
    })
}

fn add_hosts(sim: &mut turmoil::Sim<'_>, world: &Arc<World>) {
    let shared = world.clone();
    sim.host(plan::AGENT, move || agent::run(shared.clone()));
    for (index, name) in plan::RELAYS.into_iter().enumerate().take(world.plan.relays) {
        let shared = world.clone();
        sim.host(name, move || relay::run(shared.clone(), index));
    }
    for index in 0..world.plan.users.len() {
        sim.client(plan::user(index), user::run(world.clone(), index));
    }
}

impl World {
    fn new(plan: Plan) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let spool = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        Ok(Self {
            api: Api::new(&plan),
            store: Arc::default(),
            network: Network::new(&plan),
            program: Mutex::new(Program::new(&plan)?),
            spool: spool.context("a directory for the spool")?,
            up: (0..plan.relays).map(|_| AtomicBool::new(true)).collect(),
            has_left: AtomicBool::new(false),
            received: Mutex::default(),
            plan,
        })
    }

    fn program(&self) -> std::sync::MutexGuard<'_, Program> {
        // A simulation that panicked is over.
        self.program.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inflict(&self, sim: &mut turmoil::Sim<'_>, event: &Event) {
        match &event.fault {
            Fault::Cut(a, b) => self.network.cut(a, b),
            Fault::Hold(a, b) => sim.hold(a.as_str(), b.as_str()),
            Fault::Release(a, b) => sim.release(a.as_str(), b.as_str()),
            Fault::Partition(a, b) => sim.partition(a.as_str(), b.as_str()),
            Fault::OneWay(a, b) => sim.partition_oneway(a.as_str(), b.as_str()),
            Fault::Repair(a, b) => sim.repair(a.as_str(), b.as_str()),
            Fault::Latency(a, b, most) => sim.set_link_max_message_latency(a.as_str(), b.as_str(), *most),
            Fault::Crash(host) => {
                self.set_up(host, false);
                sim.crash(host.as_str());
            }
            Fault::Restart(host) => {
                sim.bounce(host.as_str());
                self.set_up(host, true);
            }
            Fault::Api(mode) => self.api.set(*mode),
            Fault::Store(mode) => self.store.set(*mode),
            Fault::Heal => self.heal(sim),
        }
    }

    /// Faults overlap, and so do their ends: at the end everything works.
    fn heal(&self, sim: &mut turmoil::Sim<'_>) {
        self.api.set(api::Mode::Works);
        self.store.set(store::Mode::Works);
        let relays = &plan::RELAYS[..self.plan.relays];
        for host in relays.iter().chain([&plan::AGENT]) {
            if !sim.is_host_running(*host) {
                sim.bounce(*host);
                self.set_up(host, true);
            }
        }
        let users: Vec<String> = (0..self.plan.users.len()).map(plan::user).collect();
        for other in users.iter().map(String::as_str).chain([plan::AGENT]) {
            for relay in relays {
                sim.repair(*relay, other);
                sim.release(*relay, other);
                sim.set_link_max_message_latency(*relay, other, self.plan.latency);
            }
        }
    }

    fn set_up(&self, host: &str, is_up: bool) {
        if let Some(index) = plan::RELAYS.iter().position(|relay| *relay == host) {
            self.up[index].store(is_up, Ordering::Relaxed);
        }
    }

    /// A running relay, as a Service would choose one.
    fn any_relay(&self) -> String {
        let up: Vec<_> = (0..self.up.len())
            .filter(|index| self.up[*index].load(Ordering::Relaxed))
            .collect();
        let index = self.network.choose(&up).unwrap_or_default();
        plan::RELAYS[index].to_owned()
    }

    fn is_settled(&self) -> bool {
        self.has_left.load(Ordering::Relaxed) && self.api.has_output()
    }

    fn describe(&self) -> String {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner).len();
        format!(
            "{received} of {} users have the end, {}, the agent {}, status {}",
            self.plan.users.len(),
            self.program().describe(),
            if self.has_left.load(Ordering::Relaxed) {
                "has left"
            } else {
                "is there"
            },
            self.api.status(),
        )
    }

    fn check(&self) -> Result<()> {
        let program = self.program();
        for received in &*self.received.lock().unwrap_or_else(PoisonError::into_inner) {
            received.check(&program, &self.plan)?;
        }
        let may_lose = self.plan.gap_reason().is_some();
        program.check_status(&self.api.status(), may_lose).context("the status")
    }
}

/// The certificate of a role, issued by the one authority of this program.
fn identity(role: &Role) -> Arc<Identity> {
    static AUTHORITY: LazyLock<(Authority, TrustDomain)> = LazyLock::new(|| {
        remoteprocess_tls::install_crypto_provider();
        let domain: TrustDomain = "simulation.local".parse().expect("a trust domain");
        (Authority::generate(&domain).expect("an authority"), domain)
    });
    let (authority, domain) = &*AUTHORITY;
    let user = User {
        name: "alice".to_owned(),
        ..User::default()
    };
    let user = matches!(role, Role::User).then_some(&user);
    let day = Duration::from_secs(24 * 3600);
    let (chain, key) = authority.issue(role, user, day).expect("a certificate");
    Identity::new(&chain, &key, authority.cert_pem(), domain).expect("an identity")
}

fn agent_role() -> Role {
    Role::Agent {
        namespace: NAMESPACE.to_owned(),
        pod_uid: POD_UID.to_owned(),
    }
}
