//! `agent supervise`: process 1 of the agent's container. The kubelet waits up to minutes before it restarts a
//! container that ended; this restarts the agent at once.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::signal::unix::{SignalKind, signal};

/// An agent that lives for less than this is started again with a delay.
const TOO_SHORT: Duration = Duration::from_secs(1);
/// The agent's exit code when its arguments are unusable: a restart would not help.
pub const UNUSABLE: u8 = 2;
/// The longest such delay.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Runs `agent run` with this file and `arguments` until it exits with code 0, or until it ends after SIGTERM was passed
/// on, other than by a signal.
pub async fn supervise(config: Option<&Path>, arguments: &[String]) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut children = signal(SignalKind::child())?;
    let mut is_draining = false;
    let mut delay = Duration::ZERO;
    loop {
        let begun = Instant::now();
        let agent = start(config, arguments, is_draining)?;
        let status = loop {
            if let Some(status) = reap(&agent) {
                break status;
            }
            tokio::select! {
                _ = children.recv() => {}
                _ = terminate.recv() => is_draining |= pass_on(&agent),
                _ = interrupt.recv() => is_draining |= pass_on(&agent),
            }
        };
        if status.success() {
            return Ok(());
        }
        if status.code() == Some(UNUSABLE.into()) {
            return Err(io::Error::other("the agent cannot run as it was told; it has said why"));
        }
        tracing::error!(%status, "the agent died; starting it again");
        delay = if begun.elapsed() < TOO_SHORT {
            (delay * 2).clamp(Duration::from_millis(50), LONGEST_DELAY)
        } else {
            Duration::ZERO
        };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = terminate.recv() => is_draining = true,
        }
    }
}

fn start(config: Option<&Path>, arguments: &[String], is_draining: bool) -> io::Result<Child> {
    let config = config.map(|path| {
        let mut flag = OsString::from("--config=");
        flag.push(path);
        flag
    });
    Command::new(std::env::current_exe()?)
        .args(config)
        .arg("run")
        .args(arguments)
        .args(is_draining.then_some("--draining"))
        .spawn()
}

fn pass_on(agent: &Child) -> bool {
    let terminated = pid(agent).map(|pid| kill_process(pid, Signal::TERM));
    tracing::info!(?terminated, "SIGTERM passed on");
    true
}

/// Reaps all ended children (process 1 inherits orphans); returns the status if the agent is among them.
fn reap(agent: &Child) -> Option<ExitStatus> {
    let mut ended = None;
    while let Ok(Some((who, status))) = waitpid(None, WaitOptions::NOHANG) {
        if Some(who) == pid(agent) {
            ended = Some(ExitStatus::from_raw(status.as_raw()));
        }
    }
    ended
}

fn pid(agent: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(agent.id()).ok()?)
}
