//! The cluster's processes: started detached, identified by pid and start time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::State;

/// All daemons, in the order in which they start.
pub(super) const NAMES: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "containerd",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
];

/// A daemon and how it starts.
#[derive(Debug)]
pub(super) struct Daemon {
    /// One of [`NAMES`]; also the name of its program, its log file and its pid file.
    pub name: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
}

/// Starts the daemon in a session of its own, with its output in `logs/<name>.log`.
pub(super) fn start(state: &State, tools: &super::Tools, daemon: &Daemon) -> Result<()> {
    let program = tools.path(daemon.name);
    // containerd finds its shim next to itself.
    let folder = program.parent().expect("a tool lies in a folder");
    let path = format!("{}:{PATH}", folder.display());
    let environment = [("PATH", path), ("HOME", "/root".to_owned())];
    spawn(state, daemon.name, program, &daemon.args, &environment)
}

/// The folders of the distribution's programs.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts a program with exactly this environment, as [`start`] does.
pub(super) fn spawn(
    state: &State,
    name: &str,
    program: &Path,
    args: &[String],
    environment: &[(&str, String)],
) -> Result<()> {
    let log = File::create(log_file(state, name))?;
    // setsid(1) replaces itself by the daemon, so that the pid is the daemon's.
    let child = Command::new("setsid")
        .arg(program)
        .args(args)
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let pid = child.id();
    let since = start_time(pid).with_context(|| format!("{name} ended at once"))?;
    fs::write(pid_file(state, name), format!("{pid} {since}"))?;
    Ok(())
}

/// The pid of a daemon, if it runs. Another process that later got the same pid does not count.
pub(super) fn pid(state: &State, name: &str) -> Option<u32> {
    let text = fs::read_to_string(pid_file(state, name)).ok()?;
    let (pid, since) = text.split_once(' ')?;
    let pid = pid.parse().ok()?;
    (start_time(pid)? == since).then_some(pid)
}

/// Ends a daemon: TERM, and after five seconds KILL. Nothing happens when it does not run.
pub(super) fn stop(state: &State, name: &str) -> Result<()> {
    let signal = |signal| {
        if let Some(pid) = pid(state, name).and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            // It may end between the check and the signal; then there is nothing left to do.
            let _ = kill_process(pid, signal);
        }
    };
    // A stopped process does not act on TERM.
    signal(Signal::CONT);
    signal(Signal::TERM);
    if wait_for_end(state, name, Duration::from_secs(5)).is_err() {
        signal(Signal::KILL);
        wait_for_end(state, name, Duration::from_secs(5))?;
    }
    let _ = fs::remove_file(pid_file(state, name));
    Ok(())
}

/// Where the daemon's output goes.
pub(super) fn log_file(state: &State, name: &str) -> PathBuf {
    state.root.join("logs").join(format!("{name}.log"))
}

fn wait_for_end(state: &State, name: &str, limit: Duration) -> Result<()> {
    let begin = Instant::now();
    while pid(state, name).is_some() {
        if begin.elapsed() > limit {
            bail!("{name} does not end");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn pid_file(state: &State, name: &str) -> PathBuf {
    state.root.join("pids").join(name)
}

/// Field 22 of `/proc/<pid>/stat`; `None` for a process that is gone or waits to be reaped.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let is_alive = !matches!(fields.next()?, "Z" | "X");
    let start = fields.nth(18)?;
    is_alive.then(|| start.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_process_by_its_start_time() {
        let own = start_time(std::process::id()).unwrap();
        assert!(own.parse::<u64>().unwrap() > 0);
        assert_eq!(start_time(u32::MAX), None);
    }
}
