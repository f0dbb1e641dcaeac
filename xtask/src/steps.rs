//! Steps shown with their seconds.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Runs one step and prints how long it took, whether it succeeded or not.
pub fn step<T>(name: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {name}");
    let begin = Instant::now();
    let result = body();
    let verdict = if result.is_ok() { "done" } else { "FAILED" };
    println!("    {verdict} in {} ({name})", seconds(begin.elapsed()));
    result
}

/// `12.3 s`
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
