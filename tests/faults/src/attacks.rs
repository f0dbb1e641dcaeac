//! Everything that strangers, users without rights and editors of another namespace can do at once, against a real
//! operator process on a real API server, beside users who do nothing wrong.

mod attackers;
mod bystanders;
mod canaries;
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
use self::target::Target;

/// Memory that the chart gives the operator, in bytes.
const LIMIT: u64 = 512 << 20;
/// How much of it attacks may take in the full size.
const GROWTH: u64 = 128 << 20;
/// Time limits for the calls and the starts of others. Only the full size has them: attackers, operator and API server
/// share the CPUs of this machine, so they say nothing while it does other work.
const CALL: Duration = Duration::from_secs(2);
const START: Duration = Duration::from_secs(5);

/// How much is done.
struct Size {
    undisturbed: Duration,
    attacked: Duration,
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
            attacked: Duration::from_secs(30),
            hostile_objects: 10_000,
            has_limits: true,
        }
    } else {
        Size {
            undisturbed: Duration::from_secs(4),
            attacked: Duration::from_secs(12),
            hostile_objects: 500,
            has_limits: false,
        }
    };
    let operator = env::current_exe()?.with_file_name("operator");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(attack(&size, &operator))
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
    let mut attackers = JoinSet::new();
    for attack in ATTACKS {
        (attack.begin)(target, &mut attackers);
    }
    let attacked = bystanders.live_until(sleep(size.attacked)).await;
    attackers.shutdown().await;
    let beside = bystanders
        .live_until(attackers::hostile_objects(target, size.hostile_objects))
        .await;
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
    target.check_alive()?;
    let peak = target.peak_memory()?;
    let rows = [
        ("before", &undisturbed),
        ("under attack", &attacked),
        ("hostile objects", &beside),
    ];
    report(&rows);
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
    rows.iter().try_for_each(|(when, lived)| check(when, lived, size))
}

/// Whether others could work.
fn check(when: &str, lived: &Experience, size: &Size) -> Result<()> {
    for (what, times, limit) in [("calls", &lived.calls, CALL), ("starts", &lived.starts, START)] {
        if let Some(error) = times.errors.first() {
            bail!("{when}, {} {what} of others failed: {error}", times.errors.len());
        }
        let is_late = size.has_limits && times.p99() > limit;
        ensure!(!is_late, "{when}, {what} of others took {:?}", times.p99());
    }
    Ok(())
}

fn report(rows: &[(&str, &Experience)]) {
    println!("    others             calls    p50 ms    p99 ms   starts    p50 ms    p99 ms");
    for (what, lived) in rows {
        println!(
            "    {what:15} {:>8} {:>9} {:>9} {:>8} {:>9} {:>9}",
            lived.calls.len(),
            lived.calls.p50().as_millis(),
            lived.calls.p99().as_millis(),
            lived.starts.len(),
            lived.starts.p50().as_millis(),
            lived.starts.p99().as_millis()
        );
    }
}
