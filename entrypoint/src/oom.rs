//! The container's count of processes killed for want of memory.

use std::fs;

/// cgroup v2, then v1, as container runtimes mount them.
const COUNTERS: [&str; 2] = [
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
];

/// OOM kills since the container began; 0 where no counter can be read.
pub fn kills() -> u64 {
    COUNTERS
        .iter()
        .find_map(|path| parse(&fs::read_to_string(path).ok()?))
        .unwrap_or(0)
}

fn parse(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        let v2 = "low 0\nhigh 0\nmax 8\noom 2\noom_kill 2\noom_group_kill 0\n";
        assert_eq!((parse(v1), parse(v2), parse("")), (Some(3), Some(2), None));
    }
}
