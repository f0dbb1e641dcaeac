//! Ends everything that `up` started, and nothing else. Each part may be missing: `up` may have been killed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{State, Tools, cgroup, daemon, network};
use crate::exec;

/// Ends the daemons and the pods, and removes the state. The caller holds the lock.
pub fn down(state: &State) -> Result<()> {
    // The kubelet first: it would start again what is being ended.
    for name in daemon::NAMES.iter().rev() {
        daemon::stop(state, name)?;
    }
    end_shims(state)?;
    cgroup::remove()?;
    unmount_below(&[&state.root, &state.run])?;
    if let Ok(tools) = Tools::built()
        && state.root.exists()
    {
        // It complains when there is nothing to clean up.
        exec::succeeds(Command::new(tools.path("kube-proxy")).arg("--cleanup"));
    }
    network::remove()?;
    for folder in [&state.root, &state.run] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
    }
    Ok(())
}

/// The shims live outside the pods' control group; their command line names our socket.
fn end_shims(state: &State) -> Result<()> {
    let socket = state.run.join("containerd.sock").display().to_string();
    for process in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(line) = fs::read_to_string(process.path().join("cmdline")) else {
            continue;
        };
        let words: Vec<&str> = line.split('\0').collect();
        if words[0].ends_with("containerd-shim-runc-v2")
            && words.contains(&socket.as_str())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    Ok(())
}

fn unmount_below(folders: &[&Path]) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // The fifth field; blanks in it are written as \040, and none of our paths has any.
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let points: Vec<&str> = points
        .filter(|point| folders.iter().any(|f| Path::new(point).starts_with(f)))
        .collect();
    // The latest mount first: it may lie inside an earlier one.
    for point in points.into_iter().rev() {
        exec::output(Command::new("umount").arg("--lazy").arg(point))?;
    }
    Ok(())
}
