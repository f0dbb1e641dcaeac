//! Steps, their results, and the summary at the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::suite::Tally;
use crate::steps::seconds;

/// Number of the slowest tests that the summary names.
const SLOWEST: usize = 15;

/// The steps so far.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<Row>,
    failed: Vec<String>,
    times: Vec<(Duration, String)>,
}

struct Row {
    name: &'static str,
    took: Duration,
    passed: usize,
    failed: usize,
    skipped: Option<&'static str>,
}

impl Report {
    /// Runs a step that counts as one test; its error is printed at once.
    pub(super) fn step<T>(&mut self, name: &'static str, body: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("\n==> {name}");
        let begin = Instant::now();
        let result = body();
        if let Err(error) = &result {
            println!("FAILED: {name}: {error:#}");
            self.failed.push(name.to_owned());
        }
        let failed = usize::from(result.is_err());
        self.row(name, begin.elapsed(), 1 - failed, failed);
        result.ok()
    }

    /// Runs a step that counts its own tests.
    pub(super) fn suite(&mut self, name: &'static str, body: impl FnOnce() -> Result<Tally>) {
        println!("\n==> {name}");
        let begin = Instant::now();
        let tally = body().unwrap_or_else(|error| {
            println!("FAILED: {name}: {error:#}");
            Tally {
                failed: vec![name.to_owned()],
                ..Tally::default()
            }
        });
        self.row(name, begin.elapsed(), tally.passed, tally.failed.len());
        self.failed.extend(tally.failed);
        self.times.extend(tally.times);
    }

    fn row(&mut self, name: &'static str, took: Duration, passed: usize, failed: usize) {
        self.rows.push(Row {
            name,
            took,
            passed,
            failed,
            skipped: None,
        });
    }

    /// Notes that a step is left out.
    pub(super) fn skip(&mut self, name: &'static str, reason: &'static str) {
        println!("\n!!! SKIPPED: {name} ({reason})");
        self.rows.push(Row {
            name,
            took: Duration::ZERO,
            passed: 0,
            failed: 0,
            skipped: Some(reason),
        });
    }

    /// Prints the summary; the error says how many failed.
    pub(super) fn finish(mut self) -> Result<()> {
        self.times.sort_by(|a, b| b.cmp(a));
        if !self.times.is_empty() {
            println!("\nslowest tests");
        }
        for (took, name) in self.times.iter().take(SLOWEST) {
            println!("{:>9}  {name}", seconds(*took));
        }
        println!("\n{:28} {:>9} {:>7} {:>7}", "step", "time", "passed", "failed");
        for row in &self.rows {
            let time = seconds(row.took);
            match row.skipped {
                Some(reason) => println!("{:28} {:>9} SKIPPED: {reason}", row.name, "-"),
                None => println!("{:28} {time:>9} {:>7} {:>7}", row.name, row.passed, row.failed),
            }
        }
        let passed: usize = self.rows.iter().map(|row| row.passed).sum();
        let failed: usize = self.rows.iter().map(|row| row.failed).sum();
        let took = self.rows.iter().map(|row| row.took).sum();
        for row in self.rows.iter().filter(|row| row.skipped.is_some()) {
            println!("!!! NOT TESTED: {}", row.name);
        }
        for name in &self.failed {
            println!("FAILED: {name}");
        }
        println!("took {}", seconds(took));
        println!("{passed} passed, {failed} failed");
        if failed > 0 {
            bail!("{failed} failed");
        }
        Ok(())
    }
}
