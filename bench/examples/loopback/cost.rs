//! CPU time and memory of processes.

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

/// Resident memory of a process and its peak so far, in MiB (proc(5), `status`).
pub(crate) fn memory(id: u32) -> (usize, usize) {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib.div_ceil(1024)
    };
    (field("VmRSS"), field("VmHWM"))
}
