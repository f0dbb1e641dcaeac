//! The processes under the entrypoint: signals, reaping, resource usage.

use std::collections::{HashMap, HashSet};
use std::{fs, io};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use remoteprocess_entrypoint::message::{Outcome, Usage};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};

/// Unit of the kernel's counts of blocks (getrusage(2): of 512 bytes).
const BLOCK: u64 = 512;

/// Which processes "all" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those of the PID namespace in which this is process 1.
    Namespace,
    /// Own descendants only.
    Descendants,
}

impl Scope {
    /// Sends a signal to every process except this one.
    ///
    /// # Errors
    /// From `kill(2)`; `ESRCH` if there is none.
    pub(crate) fn signal_all(self, number: i32) -> io::Result<()> {
        match self {
            Self::Namespace => kill(-1, number),
            Self::Descendants => signal_under(std::process::id(), number),
        }
    }
}

/// Sends a signal to everything below a process. Repeats until there is no new process: a process with a pending signal
/// does not fork anymore, so in the end none was missed.
///
/// # Errors
/// From `kill(2)`.
pub(crate) fn signal_under(root: u32, number: i32) -> io::Result<()> {
    let mut signalled = HashSet::new();
    loop {
        let before = signalled.len();
        for (pid, _) in under(root, &[]) {
            if signalled.insert(pid)
                && let Err(error) = kill(pid, number)
                && error.raw_os_error() != Some(libc::ESRCH)
            {
                return Err(error);
            }
        }
        if signalled.len() == before {
            return Ok(());
        }
    }
}

/// Sends SIGHUP to what is below a process now, and resumes it. Only once: a process that its handlers start has work
/// to do.
pub(crate) fn hang_up_under(root: u32) {
    for (pid, _) in under(root, &[]) {
        let _ = kill(pid, libc::SIGHUP);
        let _ = kill(pid, libc::SIGCONT);
    }
}

/// Sends a signal to the descendants that are not in `signalled`, and adds them.
///
/// A signal to all can miss one: a shell that blocks signals while it forks does not pass on a pending one, and the
/// process that it has just started is alive when the signal has ended the shell.
pub(crate) fn signal_newcomers(signalled: &mut HashSet<i32>, number: i32) {
    for (pid, _) in descendants() {
        if signalled.insert(pid) {
            let _ = kill(pid, number);
            let _ = kill(pid, libc::SIGCONT);
        }
    }
}

/// Sends SIGSTOP to the descendants that run, except those below `shims`, and returns them. Processes in `signalled`
/// were sent it before.
///
/// It does not signal all processes: one that was brought into the container from outside (`kubectl exec`) is no
/// descendant and keeps running. Call it until it returns none: a process with the pending signal does not fork
/// anymore.
pub(crate) fn stop_running(signalled: &mut HashSet<i32>, shims: &[u32]) -> Vec<i32> {
    let mut running = Vec::new();
    for (pid, state) in descendants_but(shims)
        .into_iter()
        .filter(|(_, state)| !is_still(*state))
    {
        let is_new = signalled.insert(pid);
        let _ = kill(pid, libc::SIGSTOP);
        // A process that waits in the kernel with the signal pending runs no more code of its own: for example, a
        // parent after vfork(2) whose child was stopped does not wake before the child does.
        if is_new || state != 'D' {
            running.push(pid);
        }
    }
    running
}

/// Resumes the descendants, except those below `shims`.
pub(crate) fn resume(shims: &[u32]) {
    for (pid, _) in descendants_but(shims) {
        let _ = kill(pid, libc::SIGCONT);
    }
}

/// Stopped by a signal or a debugger, or ended (proc_pid_stat(5)).
fn is_still(state: char) -> bool {
    matches!(state, 'T' | 't' | 'Z' | 'X' | 'x')
}

/// Sends a signal to one process.
///
/// # Errors
/// From `kill(2)`.
pub(crate) fn signal_process(pid: u32, number: i32) -> io::Result<()> {
    kill(positive(pid)?, number)
}

/// Sends a signal to a process group.
///
/// # Errors
/// From `kill(2)`.
pub(crate) fn signal_group(group: u32, number: i32) -> io::Result<()> {
    kill(-positive(group)?, number)
}

fn positive(pid: u32) -> io::Result<i32> {
    i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or(io::ErrorKind::InvalidInput.into())
}

/// `kill(2)` with any number: safe wrappers know neither real-time signals nor -1.
#[allow(unsafe_code, reason = "`kill` takes ids that no safe form takes, for example -1")]
fn kill(pid: i32, number: i32) -> io::Result<()> {
    // SAFETY: passes two integers and no memory.
    match unsafe { libc::kill(pid, number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The result of `reap`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// This child has ended.
    Child(u32, Outcome),
    /// There are children, but none has ended.
    NoneEnded,
    /// There are no children.
    NoChildren,
}

/// Takes one ended child, own or orphaned, without waiting.
pub(crate) fn reap() -> Reaped {
    reap_by(WaitOptions::NOHANG)
}

/// Takes one ended child, and waits for it.
pub(crate) fn reap_when_one_ends() -> Reaped {
    reap_by(WaitOptions::empty())
}

fn reap_by(options: WaitOptions) -> Reaped {
    match wait(options) {
        Ok(Some((pid, status))) => {
            let outcome = match status.terminating_signal() {
                Some(number) => Outcome::Signal(number),
                None => Outcome::Code(status.exit_status().unwrap_or_default()),
            };
            Reaped::Child(pid.as_raw_nonzero().get().unsigned_abs(), outcome)
        }
        Err(Errno::CHILD) => Reaped::NoChildren,
        Ok(None) | Err(_) => Reaped::NoneEnded,
    }
}

/// What all reaped processes have used together, and the largest resident set of one.
pub(crate) fn usage() -> Usage {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else {
        return Usage::default();
    };
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    Usage {
        user_micros: unsigned(usage.user_time().num_microseconds()),
        system_micros: unsigned(usage.system_time().num_microseconds()),
        max_rss_bytes: unsigned(usage.max_rss()) * 1024,
        peak_memory_bytes: None,
        read_bytes: unsigned(usage.block_reads()) * BLOCK,
        written_bytes: unsigned(usage.block_writes()) * BLOCK,
    }
}

/// Every process under this one and its state, according to `/proc`.
pub(crate) fn descendants() -> Vec<(i32, char)> {
    descendants_but(&[])
}

/// The same without these processes and what is below them.
pub(crate) fn descendants_but(left_out: &[u32]) -> Vec<(i32, char)> {
    under(std::process::id(), left_out)
}

fn under(root: u32, left_out: &[u32]) -> Vec<(i32, char)> {
    let mut children: HashMap<i32, Vec<(i32, char)>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid: Option<u32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let state = fs::read_to_string(entry.path().join("stat"))
            .ok()
            .and_then(|stat| state_and_parent(&stat));
        if let (Some(pid), Some((state, parent))) = (pid.filter(|pid| !left_out.contains(pid)), state) {
            children.entry(parent).or_default().push((pid.cast_signed(), state));
        }
    }
    let mut found = children.remove(&root.cast_signed()).unwrap_or_default();
    let mut next = 0;
    while let Some((pid, _)) = found.get(next) {
        let more = children.remove(pid).unwrap_or_default();
        found.extend(more);
        next += 1;
    }
    found
}

/// State and parent in a line of `/proc/PID/stat`; the name before them may contain anything.
fn state_and_parent(stat: &str) -> Option<(char, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_parent_are_found_behind_any_name() {
        assert_eq!(state_and_parent("12 (a) b) S 7 12 12 0"), Some(('S', 7)));
        assert_eq!(state_and_parent("garbage"), None);
    }

    #[test]
    fn process_numbers_that_mean_others_are_refused() {
        assert!(signal_process(0, 0).is_err());
        assert!(signal_group(0, 0).is_err());
        assert!(signal_process(u32::MAX, 0).is_err());
    }
}
