//! CPU time of the processes that carry a stream, from /proc.

use std::collections::{BTreeMap, HashMap};
use std::fs;

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
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let counted = ids.map(|id| (id, program(id)));
        let counted = counted.filter(|(id, name)| clients.contains(id) || CARRIERS.contains(&name.as_str()));
        Self(
            counted
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

/// User and system time (proc(5), fields 14 and 15 of `stat`).
fn seconds(id: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may contain blanks.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
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
    }
}
