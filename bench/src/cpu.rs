//! CPU time of the processes that carry a stream, from /proc.

use std::collections::HashMap;
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

/// CPU times of the carriers and the clients at one moment.
pub(crate) struct Snapshot(HashMap<u32, f64>);

impl Snapshot {
    /// Takes a snapshot; `clients` are included.
    pub(crate) fn take(clients: &[u32]) -> Self {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let counted = ids.filter(|id| clients.contains(id) || is_carrier(*id));
        Self(counted.filter_map(|id| Some((id, seconds(id)?))).collect())
    }

    /// CPU seconds from `self` to `later`. The usage of a process that ended in between is missing.
    pub(crate) fn until(&self, later: &Self) -> f64 {
        later
            .0
            .iter()
            .map(|(id, seconds)| seconds - self.0.get(id).copied().unwrap_or_default())
            .sum()
    }
}

fn is_carrier(id: u32) -> bool {
    let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    CARRIERS.iter().any(|carrier| carrier.as_bytes() == name)
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
            used = Snapshot::take(&[own]).0[&own] - before.0[&own];
        }
        assert!(used >= 0.02, "{used} s of CPU time");
    }
}
