//! Many simulations, on all processors.

use std::iter::repeat_n;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::simulation::{self, Summary};

/// Seeds that have failed once: they run in every size.
const HARD: [u64; 3] = [1730, 2571, 4242];

/// Which seeds to run.
#[derive(Clone, Debug)]
pub struct Seeds {
    /// The seeds.
    pub seeds: Vec<u64>,
    /// How often to run each.
    pub repeat: usize,
    /// No further one is started after this time; absent: all are run.
    pub limit: Option<Duration>,
}

impl Seeds {
    /// 150 and those that have failed once, or 10,000.
    #[must_use]
    pub fn of_size(long: bool) -> Self {
        Self {
            seeds: match long {
                true => (1..=10_000).collect(),
                false => (1..=150).chain(HARD).collect(),
            },
            repeat: 1,
            limit: None,
        }
    }
}

#[derive(Default)]
struct Total {
    seeds: u64,
    bytes: u64,
    faults: usize,
    cuts: u64,
    simulated: Duration,
    failed: Vec<(u64, String)>,
}

/// Runs them, prints failures at once and a summary at the end.
///
/// # Errors
/// When one failed.
pub fn run(seeds: &Seeds) -> Result<()> {
    let begin = Instant::now();
    let total = Mutex::new(Total::default());
    let next = Mutex::new(seeds.seeds.iter().flat_map(|seed| repeat_n(*seed, seeds.repeat)));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let is_late = seeds.limit.is_some_and(|limit| begin.elapsed() > limit);
                    let seed = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(seed) = seed.filter(|_| !is_late) else { return };
                    let outcome = catch(seed);
                    total.lock().unwrap_or_else(PoisonError::into_inner).add(seed, outcome);
                }
            });
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{} simulations in {:.0} s: {} bytes, {} faults, {} connections ended, {:.0} s of simulated time; {} failed",
        total.seeds,
        begin.elapsed().as_secs_f64(),
        total.bytes,
        total.faults,
        total.cuts,
        total.simulated.as_secs_f64(),
        total.failed.len()
    );
    if total.failed.is_empty() {
        return Ok(());
    }
    let mut again: Vec<u64> = total.failed.iter().map(|(seed, _)| *seed).collect();
    again.sort_unstable();
    again.dedup();
    for seed in &again {
        println!("again: cargo xtask faults simulation --seed {seed} --repeat 20");
    }
    bail!(
        "{} of {} simulations failed: {again:?}",
        total.failed.len(),
        total.seeds
    )
}

/// A panic of any part is a failure of its seed.
fn catch(seed: u64) -> Result<Summary> {
    catch_unwind(AssertUnwindSafe(|| simulation::run(seed))).unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(anyhow!("a panic: {}", said.unwrap_or("without a word")))
    })
}

impl Total {
    fn add(&mut self, seed: u64, outcome: Result<Summary>) {
        self.seeds += 1;
        match outcome {
            Ok(summary) => {
                self.bytes += summary.bytes;
                self.faults += summary.faults;
                self.cuts += summary.cuts;
                self.simulated += summary.took;
            }
            Err(error) => {
                println!("FAILED: seed {seed}: {error:#}");
                self.failed.push((seed, error.to_string()));
            }
        }
    }
}
