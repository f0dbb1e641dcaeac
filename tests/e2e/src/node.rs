//! Processes of the node, as seen from the machine on which the development cluster runs.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
pub use rustix::process::Pid;
use rustix::process::{Signal, kill_process};

use crate::environment::RELEASE_NAMESPACE;
use crate::program::kubectl;
use crate::release::OPERATORS;
use crate::wait::until_some;

/// The address of the node. On the development cluster, it is this machine, and pods reach what listens there.
pub fn node_address() -> Result<String> {
    let path = "--output=jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}";
    Ok(kubectl(["get", "nodes", path]).succeed()?.trim().to_owned())
}

/// The `agent run` processes of a pod.
pub fn agents_of(pod_uid: &str) -> Result<Vec<Pid>> {
    processes_of(b"/agent\0run\0", pod_uid)
}

/// The `agent run` process of a pod, as soon as there is another one than `but`.
pub fn agent_of(pod_uid: &str, but: Option<Pid>) -> Result<Pid> {
    until_some("the agent's process", Duration::from_secs(30), || {
        Ok(agents_of(pod_uid)?.into_iter().find(|pid| Some(*pid) != but))
    })
}

/// All processes of the agent's container of a pod, its supervisor included.
pub fn agent_container_of(pod_uid: &str) -> Result<Vec<Pid>> {
    processes_of(b"/agent\0", pod_uid)
}

/// All processes of a pod.
pub fn processes_of_pod(pod_uid: &str) -> Result<Vec<Pid>> {
    processes_of(b"", pod_uid)
}

/// The bridge's process of a pod.
pub fn bridges_of(pod_uid: &str) -> Result<Vec<Pid>> {
    processes_of(b"/bridge\0", pod_uid)
}

/// The operator's processes, of all replicas.
pub fn operators() -> Result<Vec<Pid>> {
    let uids = kubectl([
        "get",
        "pods",
        OPERATORS,
        "--output=jsonpath={.items[*].metadata.uid}",
        "--namespace",
    ])
    .arg(RELEASE_NAMESPACE)
    .succeed()?;
    let found = uids.split_whitespace().map(|uid| processes_of(b"/operator\0", uid));
    Ok(found.collect::<Result<Vec<_>>>()?.concat())
}

/// Anonymous memory of a process in bytes: what it has allocated, without its program and without files.
pub fn anonymous_memory(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = fs::read_to_string(&path).context(path)?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn processes_of(command_line: &[u8], pod_uid: &str) -> Result<Vec<Pid>> {
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
        // Processes may end during the scan.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let group = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if command.starts_with(command_line) && group.contains(pod_uid) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Sends a signal to a process of the node.
pub fn signal(pid: Pid, signal: Signal) -> Result<()> {
    kill_process(pid, signal).with_context(|| format!("cannot signal process {}", pid.as_raw_nonzero()))
}
