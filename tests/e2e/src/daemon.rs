//! Daemons of the development cluster: their flags and files; and how to end one and restart it with the same command.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, ffi::OsStr};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};

use crate::node::signal;
use crate::wait::until;

/// The value of the flag `--NAME=` with which a daemon of the development cluster runs.
///
/// # Errors
/// When it does not run, or runs without that flag.
pub fn daemon_flag(daemon: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(pid_file(daemon)?)?;
    let pid = text.split(' ').next().unwrap_or_default();
    let words = words(&PathBuf::from(format!("/proc/{pid}/cmdline")))?;
    let flag = format!("--{name}=");
    let value = words.iter().find_map(|word| word.strip_prefix(&flag));
    Ok(value.with_context(|| format!("the {daemon} has no {flag}"))?.to_owned())
}

/// The tokens that the kubelet of the development cluster has mounted into a pod.
///
/// # Errors
/// When they cannot be read.
pub fn mounted_tokens(pod_uid: &str) -> Result<Vec<String>> {
    let volumes = state()?
        .join("kubelet/pods")
        .join(pod_uid)
        .join("volumes/kubernetes.io~projected");
    let mut tokens = Vec::new();
    for volume in fs::read_dir(&volumes).with_context(|| volumes.display().to_string())? {
        for file in fs::read_dir(volume?.path())? {
            let file = file?.path();
            if file.file_name() == Some(OsStr::new("token")) {
                tokens.push(fs::read_to_string(file)?);
            }
        }
    }
    Ok(tokens)
}

/// A daemon that was killed. Dropping this starts it again.
pub struct EndedDaemon {
    name: &'static str,
    command: Option<Command>,
}

impl EndedDaemon {
    /// Ends a daemon with SIGKILL.
    pub fn end(name: &'static str) -> Result<Self> {
        let text = fs::read_to_string(pid_file(name)?)?;
        let pid: i32 = text.split(' ').next().unwrap_or_default().parse()?;
        let process = PathBuf::from(format!("/proc/{pid}"));
        let program = fs::read_link(process.join("exe"))?;
        ensure!(
            program.ends_with(name),
            "process {pid} is not the {name}: {}",
            program.display()
        );
        let mut command = Command::new("setsid");
        command.arg(program).args(words(&process.join("cmdline"))?.split_off(1));
        command.env_clear().current_dir("/");
        for variable in words(&process.join("environ"))? {
            let (name, value) = variable.split_once('=').context("a variable")?;
            command.env(name, value);
        }
        let log = File::options()
            .append(true)
            .open(state()?.join(format!("logs/{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        signal(Pid::from_raw(pid).context("a pid")?, Signal::KILL)?;
        let ended = Self {
            name,
            command: Some(command),
        };
        // If it is a child of ours, its entry in /proc stays.
        let is_gone = || fs::read_to_string(process.join("stat")).map_or(true, |stat| stat.contains(") Z "));
        until("its end", Duration::from_secs(10), || Ok(is_gone()))?;
        Ok(ended)
    }

    /// Restarts it with the same command, and updates its pid file for `cargo xtask cluster`.
    pub fn start_again(mut self) -> Result<()> {
        self.start()
    }

    fn start(&mut self) -> Result<()> {
        let Some(mut command) = self.command.take() else {
            return Ok(());
        };
        let pid = command.spawn().context("setsid")?.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Field 22, after the name, which may contain anything except the last parenthesis.
        let since = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19));
        fs::write(
            pid_file(self.name)?,
            format!("{pid} {}", since.context("a start time")?),
        )?;
        Ok(())
    }
}

impl Drop for EndedDaemon {
    fn drop(&mut self) {
        if let Err(error) = self.start() {
            println!("the {} does not run: {error:#}", self.name);
        }
    }
}

fn state() -> Result<PathBuf> {
    env::var_os("RPROC_CLUSTER_STATE")
        .map(PathBuf::from)
        .context("RPROC_CLUSTER_STATE is not set")
}

fn pid_file(name: &str) -> Result<PathBuf> {
    Ok(state()?.join("pids").join(name))
}

/// The words that the kernel separates by NUL bytes.
fn words(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    Ok(words
        .map(|word| OsStr::from_bytes(word).to_string_lossy().into_owned())
        .collect())
}
