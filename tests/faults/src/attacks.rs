//! Everything that strangers, users without rights and editors of another namespace can do at once, against a real
//! operator process on a real API server, beside users who do nothing wrong.

mod attackers;
mod bystanders;
mod canaries;
mod foreign;
mod rights;
mod target;

use std::env;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::attackers::ATTACKS;
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

/// How much is done.
struct Size {
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
            undisturbed: Duration::from_secs(10),
            control: Duration::from_secs(30),
            attacked: Duration::from_secs(30),
            by_a_user: Duration::from_secs(30),
            hostile_objects: 10_000,
            has_limits: true,
        }
    } else {
        Size {
            undisturbed: Duration::from_secs(4),
            control: Duration::ZERO,
            attacked: Duration::from_secs(12),
            by_a_user: Duration::ZERO,
            hostile_objects: 500,
            has_limits: false,
        }
    };
    let operator = env::current_exe()?.with_file_name("operator");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(attack(&size, &operator))
}

/// Runs the programs of others against an operator on the API server of `KUBECONFIG`.
///
/// # Errors
/// When the operator answers otherwise than they or the tests expect.
pub fn foreign(programs: Programs) -> Result<()> {
    let operator = env::current_exe()?.with_file_name("operator");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Client::try_default().await.context("no way to an API server")?;
        foreign::check(&Target::start(server, &operator).await?, programs).await
    })
}

async fn attack(size: &Size, operator: &Path) -> Result<()> {
    println!("==> attacks");
    target::allow_many_files()?;
    let server = Client::try_default().await.context("no way to an API server")?;
    let mut target = Target::start(server, operator).await?;
    rights::check(&target).await?;
    canaries::check(&target).await?;
    let attacked = attack_target(size, &mut target).await;
    if attacked.is_err() {
        println!("    the operator's last words:\n    {}", target.log());
    }
    attacked
}

async fn attack_target(size: &Size, target: &mut Target) -> Result<()> {
    let begin = Instant::now();
    let bystanders = Bystanders::arrive(target).await?;
    let undisturbed = bystanders.live_until(sleep(size.undisturbed)).await;
    let before = target.memory()?;
    print_head();
    let mut phases = vec![Phase::new("before", undisturbed, None)];
    if size.has_limits {
        let decoy = target.start_decoy().await?;
        let control = beside(&bystanders, &decoy, size.control, |_| true).await;
        phases.push(Phase::new("attack elsewhere", control, None));
    }
    let attacked = beside(&bystanders, target, size.attacked, |_| true).await;
    phases.push(Phase::new("attack", attacked, Some("attack elsewhere")));
    if size.has_limits {
        let by_a_user = beside(&bystanders, target, size.by_a_user, |attack| attack.by_a_user).await;
        phases.push(Phase::new("attack by one user", by_a_user, Some("attack elsewhere")));
        let unwatched = attackers::unwatched_objects(target, size.hostile_objects);
        phases.push(Phase::new(
            "other objects",
            bystanders.live_until(unwatched).await,
            None,
        ));
    }
    let objects = attackers::hostile_objects(target, size.hostile_objects);
    let hostile = bystanders.live_until(objects).await;
    phases.push(Phase::new("hostile objects", hostile, Some("other objects")));
    report_attacks();
    target.check_alive()?;
    let peak = target.peak_memory()?;
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
    let growth = peak.saturating_sub(before);
    let is_large = size.has_limits && growth > GROWTH;
    ensure!(!is_large, "attacks took {} MiB", growth >> 20);
    ensure!(bystanders.all_follow(), "a follower was cut");
    phases.iter().try_for_each(|phase| phase.check(&phases))
}

/// What users of the first replica notice of attacks on this one.
async fn beside(
    bystanders: &Bystanders,
    target: &Target,
    time: Duration,
    chosen: impl Fn(&attackers::Attack) -> bool,
) -> Experience {
    let mut attackers = JoinSet::new();
    for attack in ATTACKS.iter().filter(|attack| chosen(attack)) {
        (attack.begin)(target, &mut attackers);
    }
    let lived = bystanders.live_until(sleep(time)).await;
    attackers.shutdown().await;
    lived
}

/// What users noticed during one part of the test.
struct Phase {
    name: &'static str,
    lived: Experience,
    /// The phase with the same load elsewhere.
    control: Option<&'static str>,
}

impl Phase {
    /// Prints a row of the table.
    fn new(name: &'static str, lived: Experience, control: Option<&'static str>) -> Self {
        println!(
            "    {name:18} {:>8} {:>9} {:>9} {:>8} {:>9} {:>9} {:>16}",
            lived.calls.len(),
            lived.calls.p50().as_millis(),
            lived.calls.p99().as_millis(),
            lived.starts.len(),
            lived.starts.p50().as_millis(),
            lived.starts.p99().as_millis(),
            lived.creations.p50().as_millis()
        );
        Self { name, lived, control }
    }

    /// Whether others could work: nothing failed, and nothing took too long beside its control, if that was measured.
    fn check(&self, all: &[Self]) -> Result<()> {
        for (what, times) in [("calls", &self.lived.calls), ("starts", &self.lived.starts)] {
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
    println!("    others                calls    p50 ms    p99 ms   starts    p50 ms    p99 ms  created, p50 ms");
}
