//! CPU time of processes.

use std::fs;

/// Nanoseconds that the threads of a process have run (proc(5), `schedstat`), with their names.
pub(crate) fn threads(id: u32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let used = tasks.filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((
            name.trim().to_owned(),
            schedstat.split_whitespace().next()?.parse().ok()?,
        ))
    });
    used.collect()
}

/// The sum of them.
pub(crate) fn process(id: u32) -> u64 {
    threads(id).into_iter().map(|(_, nanos)| nanos).sum()
}
