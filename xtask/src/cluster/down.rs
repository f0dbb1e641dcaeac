//! Ends everything that `up` started, and nothing else. Each part may be missing, because `up` may have been killed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::{State, Tools, cgroup, daemon, network};
use crate::{exec, paths};

/// Ends the daemons and the pods, and removes the state. The caller holds the lock.
pub(super) fn down(state: &State) -> Result<()> {
    // The kubelet first: it would restart what is being ended.
    for name in daemon::NAMES.iter().rev() {
        daemon::stop(state, name)?;
    }
    end_strays(state)?;
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

/// Ends shims, which have no pid file, and daemons whose `up` was killed before it wrote theirs. They are our programs
/// with our state in their command line.
fn end_strays(state: &State) -> Result<()> {
    let tools = paths::cache()?.join("tools");
    let ours = [state.root.display().to_string(), state.run.display().to_string()];
    for process in fs::read_dir("/proc")?.flatten() {
        let pid = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw);
        let (Some(pid), Ok(program)) = (pid, fs::read_link(process.path().join("exe"))) else {
            continue;
        };
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let is_daemon = name == "containerd-shim-runc-v2" || daemon::NAMES.contains(&name.as_ref());
        let line = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        if program.starts_with(&tools) && is_daemon && ours.iter().any(|path| line.contains(path)) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
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
    // The latest mount first: it may be inside an earlier one.
    for point in points.into_iter().rev() {
        exec::output(Command::new("umount").arg("--lazy").arg(point))?;
    }
    Ok(())
}
