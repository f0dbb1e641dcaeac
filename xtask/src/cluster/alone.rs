//! etcd and an API server alone, for tests of components that use them: on the loopback interface, with a temporary
//! folder, next to the development cluster and with the same programs and arguments.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{array, fs};

use anyhow::{Context, Result, bail};
use remoteprocess_ports::free_port;
use tempfile::TempDir;

use super::config::{self, Place};
use super::daemon::Daemon;
use super::{State, Tools, daemon, up};
use crate::steps::step;
use crate::{exec, paths};

/// How long they may take to start.
const BEGIN: Duration = Duration::from_secs(90);

/// An API server with our CRD. Dropping it ends it.
pub(crate) struct ApiServer {
    state: State,
    daemons: Vec<Child>,
    _folder: TempDir,
}

impl ApiServer {
    /// Starts it on free ports, and installs the CRD.
    pub(crate) fn start() -> Result<Self> {
        let tools = Tools::ensure()?;
        let folder = TempDir::with_prefix("rproc-api-server-")?;
        let [api, etcd, etcd_peer] = array::from_fn(|_| free_port());
        let place = Place {
            address: "127.0.0.1",
            api,
            etcd,
            etcd_peer,
        };
        let state = State {
            root: folder.path().join("cluster"),
            run: folder.path().join("run"),
            place,
        };
        up::write_files(&state, &tools)?;
        let mut server = Self {
            state,
            daemons: Vec::new(),
            _folder: folder,
        };
        step("an API server alone", || server.begin(&tools))?;
        Ok(server)
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.state.kubeconfig()
    }

    fn begin(&mut self, tools: &Tools) -> Result<()> {
        let daemons = config::daemons(&self.state).into_iter();
        let wanted = daemons.filter(|daemon| ["etcd", "kube-apiserver"].contains(&daemon.name));
        for Daemon { name, args } in wanted {
            let log = fs::File::create(daemon::log_file(&self.state, name))?;
            // The children end when this process ends, for any reason.
            let child = Command::new("setpriv")
                .arg("--pdeathsig=KILL")
                .arg(tools.path(name))
                .args(&args)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn();
            self.daemons
                .push(child.with_context(|| format!("cannot start {name}"))?);
        }
        self.wait_for(tools, &["get", "--raw=/readyz"])?;
        let crds = paths::repository().join("crds");
        exec::output(tools.kubectl(&self.state).args(["create", "-f"]).arg(crds))?;
        self.wait_for(tools, &["get", "remoteprocesses"])
    }

    /// Runs a command until it succeeds.
    fn wait_for(&mut self, tools: &Tools, question: &[&str]) -> Result<()> {
        let begin = Instant::now();
        while let Err(error) = exec::output(tools.kubectl(&self.state).args(question)) {
            let has_ended = self
                .daemons
                .iter_mut()
                .any(|child| !matches!(child.try_wait(), Ok(None)));
            if has_ended || begin.elapsed() > BEGIN {
                let log = daemon::log_file(&self.state, "kube-apiserver");
                let log = fs::read_to_string(log).unwrap_or_default();
                bail!("the API server does not begin: {error:#}\n{log}");
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in self.daemons.iter_mut().rev() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
