//! Steps, each shown with its duration: on a terminal with one line that counts seconds, elsewhere with plain lines.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Erases the counting line.
const ERASE: &str = "\r\x1b[K";

/// Running steps, the innermost last.
static RUNNING: Mutex<Running> = Mutex::new(Running {
    steps: Vec::new(),
    others: 0,
});

struct Running {
    steps: Vec<Step>,
    /// Number of programs that write to our terminal themselves.
    others: usize,
}

struct Step {
    name: String,
    begin: Instant,
    /// Whether its name already has a line of its own.
    is_shown: bool,
}

/// Runs one step and prints how long it took, whether it succeeded or not.
pub(crate) fn step<T>(name: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut running = lock();
    running.interrupt();
    running.steps.push(Step {
        name: name.to_owned(),
        begin: Instant::now(),
        is_shown: false,
    });
    if is_terminal() {
        running.count();
        count_seconds();
    } else {
        running.interrupt();
    }
    drop(running);
    let result = body();
    let mut running = lock();
    if let Some(step) = running.steps.pop() {
        let text = ending(&step, result.is_ok(), step.begin.elapsed());
        let erase = if is_terminal() { ERASE } else { "" };
        println!("{erase}{text}");
    }
    result
}

/// Prints a line, above the counting line.
pub(crate) fn say(text: impl Display) {
    lock().interrupt();
    println!("{text}");
}

/// Runs a program that writes to our terminal itself: counting stops in the meantime.
pub(crate) fn undisturbed<T>(body: impl FnOnce() -> T) -> T {
    let mut running = lock();
    running.interrupt();
    running.others += 1;
    drop(running);
    let answer = body();
    lock().others -= 1;
    answer
}

/// `12.3 s`
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// The line of a step that has ended.
fn ending(step: &Step, is_good: bool, took: Duration) -> String {
    let result = if is_good { "done" } else { "FAILED" };
    let took = seconds(took);
    if step.is_shown {
        format!("    {result} in {took} ({})", step.name)
    } else {
        format!("==> {}: {result} in {took}", step.name)
    }
}

impl Running {
    /// Gives the innermost step's name a line of its own, because something else is printed next.
    fn interrupt(&mut self) {
        if let Some(step) = self.steps.last_mut() {
            if is_terminal() {
                print!("{ERASE}");
            }
            if !step.is_shown {
                println!("==> {}", step.name);
                step.is_shown = true;
            }
        }
    }

    /// Shows how long the innermost step has taken.
    fn count(&self) {
        if let (Some(step), 0) = (self.steps.last(), self.others) {
            print!("{ERASE}==> {}  {} s", step.name, step.begin.elapsed().as_secs());
            // A terminal that is gone is no reason to stop.
            let _ = io::stdout().flush();
        }
    }
}

fn lock() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Counts as long as this process lives.
fn count_seconds() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(Duration::from_secs(1));
                lock().count();
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_printed_something_says_its_name_again_at_its_end() {
        let mut step = Step {
            name: "build".to_owned(),
            begin: Instant::now(),
            is_shown: false,
        };
        let took = Duration::from_millis(1234);
        assert_eq!(ending(&step, true, took), "==> build: done in 1.2 s");
        step.is_shown = true;
        assert_eq!(ending(&step, false, took), "    FAILED in 1.2 s (build)");
    }
}
