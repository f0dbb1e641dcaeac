//! The development cluster: etcd, the Kubernetes control plane, containerd, kubelet, kube-proxy and CoreDNS as
//! plain processes of this machine, built from the pinned modules in `dev/cluster/`.
//!
//! There is one for each user, shared by all checkouts: a healthy one is reused, a broken one is replaced.

use std::fs;
use std::path::PathBuf;
use std::process::Command as Process;

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::lock::Lock;
use crate::{exec, paths};

mod alone;
pub(crate) mod brokers;
mod cert_manager;
mod cgroup;
mod config;
mod daemon;
mod dns;
mod down;
mod images;
mod network;
mod packages;
mod pki;
mod render;
mod tools;
mod up;

pub(crate) use alone::ApiServer;
pub(crate) use config::NODE;
pub(crate) use packages::install as install_packages;
pub(crate) use tools::Tools;

/// What may be done with the cluster.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Starts the cluster if it does not run; a broken one is replaced.
    Up {
        /// Also builds and installs cert-manager, for the end-to-end test of CAs from it.
        #[arg(long)]
        cert_manager: bool,
    },
    /// Ends the cluster's processes and deletes its objects; the built programs stay.
    Down,
    /// Prints whether the cluster is healthy; the exit code is 1 if it is not.
    Status,
    /// Prints the path of the cluster's kubeconfig.
    Kubeconfig,
    /// Imports an image archive (docker-archive or OCI layout) into the cluster.
    Load {
        /// The archive.
        archive: PathBuf,
    },
}

/// Runs one of the cluster's commands.
pub(crate) fn run(command: Command) -> Result<()> {
    let state = State::of_this_user()?;
    match command {
        Command::Up { cert_manager } => {
            let tools = up::up(&state, None)?;
            match cert_manager {
                true => cert_manager::install(&state, &tools),
                false => Ok(()),
            }
        }
        Command::Down => {
            let _lock = Lock::take(&state.lock_file("cluster"), "another cluster command")?;
            down::down(&state)
        }
        Command::Status => status(&state),
        Command::Kubeconfig => {
            println!("{}", state.kubeconfig().display());
            Ok(())
        }
        Command::Load { archive } => {
            let tools = Tools::built()?;
            load(&state, &tools, &archive)
        }
    }
}

/// Where the cluster of one user keeps its files.
pub(crate) struct State {
    /// Certificates, logs, etcd, containers: below the cache folder. Gone after `down`.
    pub root: PathBuf,
    /// Sockets and mounts: a short path, because the path of a socket has at most 108 bytes.
    pub run: PathBuf,
    /// Where it listens.
    pub place: config::Place,
}

impl State {
    /// The state of this user's cluster, whether it exists or not.
    pub(crate) fn of_this_user() -> Result<Self> {
        Ok(Self {
            root: paths::cache()?.join("cluster"),
            run: PathBuf::from("/run/remoteprocess-dev"),
            place: config::Place::DEVELOPMENT,
        })
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// A lock file; it is next to the state, because `down` removes the state.
    pub(crate) fn lock_file(&self, name: &str) -> PathBuf {
        self.root.with_file_name(format!("{name}.lock"))
    }

    /// Held while tests run: two installations in one cluster would answer for each other's objects.
    pub(crate) fn tests_lock(&self) -> PathBuf {
        self.lock_file("tests")
    }

    /// The revision of the cluster that came up here last; see [`config::REVISION`].
    fn revision(&self) -> Option<u32> {
        fs::read_to_string(self.revision_file()).ok()?.parse().ok()
    }

    fn revision_file(&self) -> PathBuf {
        self.root.join("revision")
    }
}

/// Brings the cluster up and returns its tools; `tests` is the lock of the tests, if the caller holds it.
pub(crate) fn ensure_up(state: &State, tests: Option<&Lock>) -> Result<Tools> {
    up::up(state, tests)
}

/// Imports an image archive; a name that exists already points to the new image afterwards.
pub(crate) fn load(state: &State, tools: &Tools, archive: &std::path::Path) -> Result<()> {
    if !state.run.join("containerd.sock").exists() {
        bail!("the development cluster is not running; `cargo xtask cluster up` starts it");
    }
    let mut ctr = ctr(state, tools);
    ctr.args(["-n", "k8s.io", "images", "import", "--local"]).arg(archive);
    exec::output(&mut ctr).with_context(|| format!("cannot load {}", archive.display()))?;
    Ok(())
}

/// Names of all images in the cluster.
pub(crate) fn image_names() -> Result<Vec<String>> {
    let state = State::of_this_user()?;
    let mut ctr = ctr(&state, &Tools::built()?);
    Ok(exec::output(ctr.args(["-n", "k8s.io", "images", "ls", "-q"]))?
        .lines()
        .map(str::to_owned)
        .collect())
}

/// The parts that are not built yet, and the minutes that each takes on two processors.
pub(crate) fn missing() -> Result<Vec<(&'static str, u32)>> {
    tools::missing()
}

/// Installs the packages that are missing, and builds the programs of the cluster that are not built yet.
pub(crate) fn build() -> Result<()> {
    let state = State::of_this_user()?;
    let _lock = Lock::take(&state.lock_file("cluster"), "another cluster command")?;
    packages::ensure()?;
    Tools::ensure().map(|_| ())
}

/// The path of Helm: the cluster's, built if it is not there yet.
pub(crate) fn helm() -> Result<PathBuf> {
    tools::ensure_helm()
}

/// The path of a Go program that only `external` needs. It is built if it is not there yet.
pub(crate) fn external_tool(name: &str) -> Result<PathBuf> {
    tools::ensure_external(name)
}

fn ctr(state: &State, tools: &Tools) -> Process {
    let mut ctr = Process::new(tools.path("ctr"));
    // The path must be absolute.
    ctr.arg("-a").arg(state.run.join("containerd.sock"));
    ctr
}

fn status(state: &State) -> Result<()> {
    let tools = Tools::built()?;
    for name in daemon::NAMES {
        let state_of = daemon::pid(state, name).map_or("not running".to_owned(), |pid| format!("running, pid {pid}"));
        println!("{name:24} {state_of}");
    }
    match up::health(state, &tools) {
        Ok(()) => println!("healthy; KUBECONFIG={}", state.kubeconfig().display()),
        Err(reason) => bail!("not healthy: {reason:#}"),
    }
    if state.revision().is_none_or(|revision| revision < config::REVISION) {
        println!("it was made by an earlier version of this repository; `cluster up` replaces it");
    }
    Ok(())
}
