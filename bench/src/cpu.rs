//! CPU time of the processes that carry a stream, from /proc.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use remoteprocess_e2e::Pid;

/// Programs on the node that process a stream on its way, ours and the cluster's.
const CARRIERS: [&str; 8] = [
    "kube-apiserver",
    "etcd",
    "kubelet",
    "containerd",
    "containerd-shim-runc-v2",
    "operator",
    "agent",
    "entrypoint",
];

/// CPU times of the carriers and the clients at one moment, by process, with its program.
pub(crate) struct Snapshot(HashMap<u32, (String, f64)>);

impl Snapshot {
    /// Takes a snapshot; `clients` are included.
    pub(crate) fn take(clients: &[u32]) -> Self {
        let counted = processes().map(|id| (id, program(id)));
        let counted = counted.filter(|(id, name)| clients.contains(id) || CARRIERS.contains(&name.as_str()));
        Self::of_processes(counted)
    }

    /// The same of all processes of these programs.
    pub(crate) fn of(programs: &[&str]) -> Self {
        let counted = processes().map(|id| (id, program(id)));
        let counted = counted.filter(|(_, name)| programs.contains(&name.as_str()));
        Self::of_processes(counted)
    }

    fn of_processes(processes: impl Iterator<Item = (u32, String)>) -> Self {
        Self(
            processes
                .filter_map(|(id, name)| Some((id, (name, seconds(id)?))))
                .collect(),
        )
    }

    /// CPU seconds from `self` to `later`. The usage of a process that ended in between is missing.
    pub(crate) fn until(&self, later: &Self) -> f64 {
        self.until_by_name(later).values().sum()
    }

    /// The same for each program.
    pub(crate) fn until_by_name(&self, later: &Self) -> BTreeMap<String, f64> {
        let mut used = BTreeMap::new();
        for (id, (name, seconds)) in &later.0 {
            let before = self.0.get(id).map_or(0.0, |(_, seconds)| *seconds);
            *used.entry(name.clone()).or_default() += seconds - before;
        }
        used
    }
}

/// The name of the program of a process.
fn program(id: u32) -> String {
    let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// All processes.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// User and system time (proc(5), fields 14 and 15 of `stat`).
fn seconds(id: u32) -> Option<f64> {
    let [user, system] = ticks(id, [14, 15])?;
    Some(user + system)
}

/// For how many seconds a process has existed (proc(5), field 22 of `stat`).
pub(crate) fn age(id: Pid) -> Option<f64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let [start] = ticks(u32::try_from(id.as_raw_nonzero().get()).ok()?, [22])?;
    Some(uptime - start)
}

/// Fields of `stat` that count clock ticks, in seconds.
fn ticks<const N: usize>(id: u32, fields: [usize; N]) -> Option<[f64; N]> {
    // Fields before the third: the id, and the name in parentheses, which may contain blanks.
    const BEFORE: usize = 3;
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let values: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let mut found = [0.0; N];
    for (field, found) in fields.into_iter().zip(&mut found) {
        let ticks: u64 = values.get(field - BEFORE)?.parse().ok()?;
        *found = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_up() {
        let own = std::process::id();
        let before = Snapshot::take(&[own]);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let mut number = 1_u64;
        let mut used = 0.0;
        while used < 0.02 && std::time::Instant::now() < deadline {
            number = (0..1_000_000).fold(number, |number, step| {
                std::hint::black_box(number.wrapping_mul(31) ^ step)
            });
            used = before.until(&Snapshot::take(&[own]));
        }
        assert!(used >= 0.02, "{used} s of CPU time");
        let id = Pid::from_raw(i32::try_from(own).unwrap()).unwrap();
        let age = age(id).unwrap();
        assert!((0.0..3600.0).contains(&age), "{age} s old");
    }
}
