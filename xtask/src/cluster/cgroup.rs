//! The control group below which the kubelet puts all pods, so that `down` finds all their processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::config::CGROUP;

const MOUNT: &str = "/sys/fs/cgroup";

/// Creates the group in the unified hierarchy, or in that of each controller of version 1.
pub(super) fn create() -> Result<()> {
    for root in roots()? {
        let group = root.join(CGROUP);
        fs::create_dir_all(&group).with_context(|| format!("cannot make {}", group.display()))?;
        // In version 1 a new group has no processors and no memory until they are assigned.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(root.join(file)) {
                fs::write(group.join(file), value)?;
            }
        }
    }
    Ok(())
}

/// Kills every process below the group and removes it.
pub(super) fn remove() -> Result<()> {
    let begin = Instant::now();
    loop {
        let groups = all_groups()?;
        let pids: Vec<Pid> = groups.iter().flat_map(|group| processes(group)).collect();
        for pid in &pids {
            // It may already be gone.
            let _ = kill_process(*pid, Signal::KILL);
        }
        // Children come after their parents in the list.
        let left = groups
            .iter()
            .rev()
            .filter(|group| fs::remove_dir(group).is_err())
            .count();
        if left == 0 {
            return Ok(());
        }
        if begin.elapsed() > Duration::from_secs(20) {
            bail!(
                "{left} control groups with {} processes of the cluster do not go away",
                pids.len()
            );
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn all_groups() -> Result<Vec<PathBuf>> {
    let mut groups: Vec<PathBuf> = roots()?
        .iter()
        .map(|root| root.join(CGROUP))
        .filter(|g| g.exists())
        .collect();
    let mut next = 0;
    while let Some(group) = groups.get(next) {
        let children = fs::read_dir(group).into_iter().flatten().flatten();
        let children: Vec<PathBuf> = children
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| e.path())
            .collect();
        groups.extend(children);
        next += 1;
    }
    Ok(groups)
}

fn processes(group: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| Pid::from_raw(line.parse().ok()?))
        .collect()
}

/// The mount point of version 2, or one folder for each controller of version 1.
fn roots() -> Result<Vec<PathBuf>> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return Ok(vec![mount.to_path_buf()]);
    }
    let entries = fs::read_dir(mount).with_context(|| format!("no control groups at {MOUNT}"))?;
    // Links such as `cpu` for `cpu,cpuacct` name a hierarchy that is in the list anyway.
    let folders = entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path());
    Ok(folders.filter(|folder| folder.join("cgroup.procs").exists()).collect())
}
