//! Everything that strangers, users without rights and editors of another namespace can do at once, against a real
//! operator process on a real API server, beside users who do nothing wrong.

mod agent;
mod attackers;
mod bystanders;
mod canaries;
mod foreign;
mod rights;
mod target;

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::attackers::{ATTACKS, Users};
use self::bystanders::{Bystanders, Experience};
pub use self::foreign::Programs;
use self::target::Target;

/// Memory that the chart gives the operator, in bytes.
const LIMIT: u64 = 512 << 20;
/// How much of it attacks may take in the full size.
const GROWTH: u64 = 128 << 20;
/// How many times longer calls (the slowest in a hundred) and starts (the median) of others may take than under the same
/// load elsewhere on this machine, and what is short in any case. Only the full size has these limits: attackers, operator
/// and API server share the processors, and short runs measure too little.
const CALLS: (u32, Duration) = (3, Duration::from_millis(50));
const STARTS: (u32, Duration) = (2, Duration::from_millis(100));

/// Bytes of the output that is read from the archive, in the full size.
const ARCHIVED: u64 = 115 << 20;
/// How long an attack is alone.
const ALONE: Duration = Duration::from_secs(8);

/// How much is done.
struct Size {
    /// Bytes of the output that is read from the archive.
    archived: u64,
    undisturbed: Duration,
    /// The same attacks on another replica, for comparison.
    control: Duration,
    attacked: Duration,
    /// Only the attacks of one user with a valid certificate.
    by_a_user: Duration,
    hostile_objects: usize,
    has_limits: bool,
}

/// Attacks an operator on the API server of `KUBECONFIG`, which must have no other user, and prints a table. The program
/// of the operator is beside this one.
///
/// # Errors
/// When the operator ends or takes too much memory, or others notice too much of the attack.
pub fn run(long: bool) -> Result<()> {
    let size = if long {
        Size {
            archived: ARCHIVED,
            undisturbed: Duration::from_secs(10),
            control: Duration::from_secs(30),
            attacked: Duration::from_secs(30),
            by_a_user: Duration::from_secs(30),
            hostile_objects: 10_000,
            has_limits: true,
        }
    } else {
        Size {
            archived: 16 << 20,
            undisturbed: Duration::from_secs(4),
            control: Duration::ZERO,
            attacked: Duration::from_secs(12),
            by_a_user: Duration::ZERO,
            hostile_objects: 500,
            has_limits: false,
        }
    };
    runtime()?.block_on(attack(&size))
}

/// Attacks an operator as [`run`] does, by one attack after the other, and prints a table with what each one costs. The
/// memory of an attack includes what the operator keeps of earlier ones.
///
/// # Errors
/// When the operator ends.
pub fn each() -> Result<()> {
    runtime()?.block_on(async {
        println!("==> each attack alone");
        let mut target = start_with_output(ARCHIVED).await?;
        let mut stage = Stage::new(Bystanders::arrive(&target).await?);
        print_head();
        stage.play(&target, "before", None, sleep(ALONE)).await?;
        for attack in &ATTACKS {
            println!("    {}, by two users and by one", attack.name);
            for users in [Users::TWO, Users::ONE] {
                let strike = strike(&target, users, ALONE, |other| other.name == attack.name);
                stage.play(&target, "", None, strike).await?;
                stage.play(&target, "after it", None, sleep(ALONE / 4)).await?;
            }
        }
        report_attacks();
        target.check_alive()
    })
}

/// Runs the programs of others against an operator on the API server of `KUBECONFIG`.
///
/// # Errors
/// When the operator answers otherwise than they or the tests expect.
pub fn foreign(programs: Programs) -> Result<()> {
    runtime()?.block_on(async { foreign::check(&start().await?, programs).await })
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// An operator on the API server of `KUBECONFIG`. Its program is beside this one.
async fn start() -> Result<Target> {
    let operator = env::current_exe()?.with_file_name("operator");
    let server = Client::try_default().await.context("no way to an API server")?;
    Target::start(server, &operator).await
}

/// Starts the operator that is attacked. The users have their permissions, and the archive holds `archived` bytes of output.
async fn start_with_output(archived: u64) -> Result<Target> {
    target::allow_many_files()?;
    let target = start().await?;
    rights::check(&target).await?;
    bystanders::archive(&target, archived).await?;
    Ok(target)
}

async fn attack(size: &Size) -> Result<()> {
    println!("==> attacks");
    let mut target = start_with_output(size.archived).await?;
    canaries::check(&target).await?;
    let attacked = attack_target(size, &mut target).await;
    if attacked.is_err() {
        println!("    the operator's last words:\n    {}", target.log());
    }
    attacked
}

async fn attack_target(size: &Size, target: &mut Target) -> Result<()> {
    let begin = Instant::now();
    let (operator, mut stage) = (&*target, Stage::new(Bystanders::arrive(target).await?));
    print_head();
    stage.play(operator, "before", None, sleep(size.undisturbed)).await?;
    let before = operator.memory()?;
    if size.has_limits {
        let decoy = operator.start_decoy().await?;
        let attack = strike(&decoy, Users::TWO, size.control, |_| true);
        stage.play(operator, ELSEWHERE, None, attack).await?;
    }
    let attack = strike(operator, Users::TWO, size.attacked, |_| true);
    stage.play(operator, "attack", Some(ELSEWHERE), attack).await?;
    if size.has_limits {
        // As much as the attackers took, without what these users take themselves.
        let busy = stage.processors("attack") - stage.processors("before");
        stage
            .play(operator, "their processors", None, burn(busy, size.control))
            .await?;
        let attack = strike(operator, Users::ONE, size.by_a_user, |attack| attack.by_a_user);
        stage
            .play(operator, "attack by one user", Some(ELSEWHERE), attack)
            .await?;
        let objects = attackers::unwatched_objects(operator, size.hostile_objects);
        stage.play(operator, "other objects", None, objects).await?;
    }
    let objects = attackers::hostile_objects(operator, size.hostile_objects);
    stage
        .play(operator, "hostile objects", Some("other objects"), objects)
        .await?;
    let Stage { bystanders, phases } = stage;
    report_attacks();
    target.check_alive()?;
    let peak = phases.iter().map(|phase| phase.memory).max().unwrap_or_default();
    println!(
        "    memory {} MiB before, {} MiB at most; {:.0} s",
        before >> 20,
        peak >> 20,
        begin.elapsed().as_secs_f64()
    );
    for attack in ATTACKS {
        ensure!(attack.count() > 0, "{} was not tried", attack.name);
    }
    ensure!(peak <= LIMIT, "the operator took {} MiB", peak >> 20);
    // Objects that the API server took are memory that the operator needs.
    let attacks = phases.iter().filter(|phase| phase.control == Some(ELSEWHERE));
    let growth = attacks.map(|phase| phase.memory.saturating_sub(before)).max();
    let growth = growth.unwrap_or_default();
    let is_large = size.has_limits && growth > GROWTH;
    ensure!(!is_large, "attacks took {} MiB", growth >> 20);
    ensure!(bystanders.all_follow(), "a follower was cut");
    phases.iter().try_for_each(|phase| phase.check(&phases))
}

/// The control of the attacks: the same attacks on another replica.
const ELSEWHERE: &str = "attack elsewhere";

/// Attacks a replica for a while.
async fn strike(target: &Target, users: Users, time: Duration, chosen: impl Fn(&attackers::Attack) -> bool) {
    let mut attackers = JoinSet::new();
    for attack in ATTACKS.iter().filter(|attack| chosen(attack)) {
        (attack.begin)(target, users, &mut attackers);
    }
    sleep(time).await;
    attackers.shutdown().await;
}

/// Keeps this number of processors busy, and does nothing else.
async fn burn(processors: f64, time: Duration) {
    const SLICE: Duration = Duration::from_millis(10);
    let over = Instant::now() + time;
    let threads = processors.max(0.0).ceil();
    let busy = SLICE.mul_f64(processors.max(0.0) / threads.max(1.0));
    let spin = move || {
        while Instant::now() < over {
            let begin = Instant::now();
            while begin.elapsed() < busy {
                std::hint::spin_loop();
            }
            thread::sleep(SLICE.saturating_sub(busy));
        }
    };
    (0..threads as u32).for_each(|_| drop(thread::spawn(spin)));
    sleep(time).await;
}

/// Who takes part, and what has been noticed.
struct Stage {
    bystanders: Bystanders,
    phases: Vec<Phase>,
}

impl Stage {
    fn new(bystanders: Bystanders) -> Self {
        let phases = Vec::new();
        Self { bystanders, phases }
    }

    /// Lives through an event, and prints a row of the table.
    async fn play(
        &mut self,
        operator: &Target,
        name: &'static str,
        control: Option<&'static str>,
        event: impl Future<Output = ()>,
    ) -> Result<()> {
        let used = || anyhow::Ok([target::processor_seconds("self")?, operator.processor_seconds()?]);
        operator.forget_peak_memory()?;
        let (begin, before) = (Instant::now(), used()?);
        let lived = self.bystanders.live_until(event).await;
        let (time, after) = (begin.elapsed().as_secs_f64(), used()?);
        let phase = Phase {
            name,
            lived,
            control,
            processors: [0, 1].map(|at| (after[at] - before[at]) / time),
            memory: operator.peak_memory()?,
        };
        phase.print();
        self.phases.push(phase);
        Ok(())
    }

    /// Processors that this program kept busy during a phase.
    fn processors(&self, name: &str) -> f64 {
        let phase = self.phases.iter().find(|phase| phase.name == name);
        phase.map_or(0.0, |phase| phase.processors[0])
    }
}

/// What users noticed during one part of the test.
struct Phase {
    name: &'static str,
    lived: Experience,
    /// The phase with the same load elsewhere.
    control: Option<&'static str>,
    /// How many processors were busy: with this program, which has attackers and others, and with the attacked replica.
    processors: [f64; 2],
    /// Bytes of memory of the attacked replica, at most.
    memory: u64,
}

impl Phase {
    /// Prints a row of the table.
    fn print(&self) {
        let Experience {
            calls,
            reads,
            starts,
            creations,
        } = &self.lived;
        println!(
            "    {:18} {:>6} {:>7} {:>7} {:>6} {:>7} {:>7} {:>6} {:>7} {:>7} {:>8} {:>9.2} {:>8.2} {:>6}",
            self.name,
            calls.len(),
            calls.p50().as_millis(),
            calls.p99().as_millis(),
            reads.len(),
            reads.p50().as_millis(),
            reads.p99().as_millis(),
            starts.len(),
            starts.p50().as_millis(),
            starts.p99().as_millis(),
            creations.p50().as_millis(),
            self.processors[0],
            self.processors[1],
            self.memory >> 20,
        );
    }

    /// Whether others could work: nothing failed, and nothing took too long beside its control, if that was measured.
    fn check(&self, all: &[Self]) -> Result<()> {
        let Experience {
            calls, reads, starts, ..
        } = &self.lived;
        for (what, times) in [("calls", calls), ("reads", reads), ("starts", starts)] {
            if let Some(error) = times.errors.first() {
                bail!("{}: {} {what} of others failed: {error}", self.name, times.errors.len());
            }
        }
        let Some(control) = all.iter().find(|phase| Some(phase.name) == self.control) else {
            return Ok(());
        };
        let limit = |control: Duration, (times, short): (u32, Duration)| (control * times).max(short);
        let (calls, starts) = (self.lived.calls.p99(), self.lived.starts.p50());
        let most = limit(control.lived.calls.p99(), CALLS);
        ensure!(
            calls <= most,
            "{}: calls of others took {calls:?}, more than {most:?}",
            self.name
        );
        let most = limit(control.lived.starts.p50(), STARTS);
        ensure!(
            starts <= most,
            "{}: starts of others took {starts:?}, more than {most:?}",
            self.name
        );
        Ok(())
    }
}

fn report_attacks() {
    println!("    {:44} {:>12}", "attack", "times");
    for attack in ATTACKS {
        println!("    {:44} {:>12}", attack.name, attack.count());
    }
    let (made, refused) = (attackers::MADE.count(), attackers::REFUSED.count());
    println!(
        "    {:44} {:>12}",
        "hostile objects, made (refused)",
        format!("{made} ({refused})")
    );
}

fn print_head() {
    println!(
        "    others              calls  p50 ms     p99  reads  p50 ms     p99 starts  p50 ms     p99  created \
         here busy operator    MiB"
    );
}
