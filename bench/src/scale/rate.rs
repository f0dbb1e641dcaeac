//! Creates objects at a rate, or as fast as possible, and measures when their pods are there.

use std::collections::HashMap;
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::DEADLINE;
use super::pods::Arrivals;
use super::workers::in_parallel;

/// One run.
pub(super) struct Run {
    /// From the request that creates an object to the event of its pod, in seconds.
    pub latencies: Vec<f64>,
    /// From the first request to the last event.
    pub seconds: f64,
}

/// Creates `count` objects, `rate` in each second. A slow answer delays no later request, as long as there are workers.
pub(super) fn at_rate(
    count: usize,
    rate: u32,
    arrivals: Arrivals,
    create: impl Fn(&str) -> Result<()> + Sync,
) -> Result<Run> {
    let begin = Instant::now();
    run(count, arrivals, |name, number| {
        let due = begin + Duration::from_secs_f64(number as f64 / f64::from(rate));
        sleep(due.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        create(name)?;
        Ok(sent)
    })
}

/// Creates `count` objects as fast as the workers can.
pub(super) fn at_full_speed(
    count: usize,
    arrivals: Arrivals,
    create: impl Fn(&str) -> Result<()> + Sync,
) -> Result<Run> {
    run(count, arrivals, |name, _| {
        let sent = Instant::now();
        create(name)?;
        Ok(sent)
    })
}

fn run(count: usize, arrivals: Arrivals, create: impl Fn(&str, usize) -> Result<Instant> + Sync) -> Result<Run> {
    let sent = Mutex::new(HashMap::new());
    in_parallel(count, |number| {
        let name = format!("round-{number}");
        let at = create(&name, number)?;
        sent.lock().expect("no holder panics").insert(name, at);
        Ok(())
    })?;
    let sent = sent.into_inner().expect("no holder panics");
    let seen = arrivals.wait_for(count, DEADLINE)?;
    let first = sent.values().min().context("no object")?;
    let last = seen.values().max().context("no pod")?;
    let latency = |(name, sent): (&String, &Instant)| {
        let seen = seen.get(name).with_context(|| format!("no pod of {name}"))?;
        Ok(seen.saturating_duration_since(*sent).as_secs_f64())
    };
    Ok(Run {
        latencies: sent.iter().map(latency).collect::<Result<_>>()?,
        seconds: last.saturating_duration_since(*first).as_secs_f64(),
    })
}
