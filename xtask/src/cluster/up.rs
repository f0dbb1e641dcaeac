//! Brings the cluster up.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{State, Tools, cgroup, config, daemon, dns, down, images, network, packages, pki};
use crate::exec;
use crate::lock::Lock;
use crate::steps::{say, step};

/// Builds what is missing, reuses a healthy cluster of the same definition, and replaces any other. `tests` is the lock
/// of the tests, if the caller holds it: without it, a cluster is not replaced while tests run on it.
pub(super) fn up(state: &State, tests: Option<&Lock>) -> Result<Tools> {
    let lock = Lock::take(&state.lock_file("cluster"), "another cluster command")?;
    packages::ensure()?;
    let tools = Tools::ensure()?;
    if is_reusable(state, &tools) {
        return Ok(tools);
    }
    // Always the lock of the tests first; otherwise two commands could wait for each other.
    drop(lock);
    let _tests = match tests {
        Some(_) => None,
        None => Some(Lock::take(&state.tests_lock(), "the tests of another checkout")?),
    };
    let _lock = Lock::take(&state.lock_file("cluster"), "another cluster command")?;
    if !is_reusable(state, &tools) {
        replace(state, &tools)?;
    }
    Ok(tools)
}

fn is_reusable(state: &State, tools: &Tools) -> bool {
    let Some(revision) = state.revision() else { return false };
    if revision < config::REVISION {
        say(format_args!(
            "    the running cluster is of revision {revision}, {} is needed: it is replaced",
            config::REVISION
        ));
        return false;
    }
    let health = health(state, tools);
    match &health {
        Ok(()) => say(format_args!(
            "    the cluster is up already; KUBECONFIG={}",
            state.kubeconfig().display()
        )),
        Err(reason) => say(format_args!(
            "    the running cluster is sick and is replaced: {reason:#}"
        )),
    }
    health.is_ok()
}

fn replace(state: &State, tools: &Tools) -> Result<()> {
    if !rustix::process::getuid().is_root() {
        bail!("the development cluster needs root; with a cluster of your own use --context");
    }
    step("clear what is left of an earlier cluster", || down::down(state))?;
    step("write certificates and configuration", || write_files(state, tools))?;
    step("start the cluster", || start(state, tools))?;
    // Only a cluster that started completely may be reused.
    fs::write(state.revision_file(), config::REVISION.to_string())?;
    say(format_args!("    export KUBECONFIG={}", state.kubeconfig().display()));
    say(format_args!(
        "    kubectl, helm and ctr are in {}",
        state.root.join("bin").display()
    ));
    Ok(())
}

/// Whether all daemons run, the API server and the node are ready, and names resolve.
pub(super) fn health(state: &State, tools: &Tools) -> Result<()> {
    for name in daemon::NAMES {
        daemon::pid(state, name).with_context(|| format!("{name} does not run"))?;
    }
    exec::output(
        tools
            .kubectl(state)
            .args(["get", "--raw=/readyz", "--request-timeout=5s"]),
    )?;
    let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    let args = ["get", "node", config::NODE, "--request-timeout=5s", "-o", ready];
    if exec::output(tools.kubectl(state).args(args))? != "True" {
        bail!("the node is not ready");
    }
    dns::ask().context("names do not resolve")
}

/// Writes keys, certificates and configuration into the state's folders.
pub(super) fn write_files(state: &State, tools: &Tools) -> Result<()> {
    for folder in ["bin", "config/cni", "config/addons", "logs", "pids", "kubelet", "etcd"] {
        fs::create_dir_all(state.root.join(folder))?;
    }
    fs::create_dir_all(&state.run)?;
    for private in [state.root.as_path(), &state.root.join("etcd")] {
        fs::set_permissions(private, fs::Permissions::from_mode(0o700))?;
    }
    for program in ["kubectl", "helm", "ctr"] {
        symlink(tools.path(program), state.root.join("bin").join(program))?;
    }
    pki::write(&state.root.join("pki"), state.place.address)?;
    for (path, text) in config::files(state) {
        let path = state.root.join(path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn start(state: &State, tools: &Tools) -> Result<()> {
    network::create()?;
    cgroup::create()?;
    let daemons = config::daemons(state);
    let start = |name: &str| -> Result<()> {
        let daemon = daemons
            .iter()
            .find(|daemon| daemon.name == name)
            .expect("each name has a daemon");
        daemon::start(state, tools, daemon)
    };
    start("etcd")?;
    start("containerd")?;
    start("kube-apiserver")?;
    wait(state, "containerd", Duration::from_secs(30), || {
        exec::output(super::ctr(state, tools).arg("version")).map(drop)
    })?;
    images::import(state, tools)?;
    wait(state, "kube-apiserver", Duration::from_secs(60), || {
        exec::output(tools.kubectl(state).args(["get", "--raw=/readyz"])).map(drop)
    })?;
    for name in ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"] {
        start(name)?;
    }
    let addons = state.root.join("config/addons");
    exec::output(tools.kubectl(state).args(["apply", "-f"]).arg(addons))?;
    wait(state, "kubelet", Duration::from_secs(90), || health(state, tools))?;
    let rollout = "rollout status -n local-path-storage deployment/local-path --timeout=60s";
    exec::output(tools.kubectl(state).args(rollout.split(' ')))?;
    wait(state, "kube-controller-manager", Duration::from_secs(30), || {
        exec::output(
            tools
                .kubectl(state)
                .args(["get", "serviceaccount", "default", "-n", "default"]),
        )
        .map(drop)
    })
}

/// Repeats `check` until it succeeds; the error names the log of `daemon` and shows its end.
fn wait(state: &State, daemon: &str, limit: Duration, check: impl Fn() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    loop {
        let Err(error) = check() else { return Ok(()) };
        if begin.elapsed() > limit || daemon::pid(state, daemon).is_none() {
            let log = daemon::log_file(state, daemon);
            let text = fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(15).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            return Err(error.context(format!(
                "{daemon} is not ready, {}:\n{}",
                log.display(),
                tail.join("\n")
            )));
        }
        thread::sleep(Duration::from_millis(100));
    }
}
