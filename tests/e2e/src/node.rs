//! Processes of the node, seen from the machine that the development cluster runs on.

use std::fs;

use anyhow::{Context, Result};
pub use rustix::process::Pid;
use rustix::process::{Signal, kill_process};

/// The `agent run` processes of a pod.
pub fn agents_of(pod_uid: &str) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw)
        else {
            continue;
        };
        // Processes may end while we look.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let group = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if command.starts_with(b"/agent\0run\0") && group.contains(pod_uid) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Sends a signal to a process of the node.
pub fn signal(pid: Pid, signal: Signal) -> Result<()> {
    kill_process(pid, signal).with_context(|| format!("cannot signal process {}", pid.as_raw_nonzero()))
}
