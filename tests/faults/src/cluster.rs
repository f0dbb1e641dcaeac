//! Scenarios on the development cluster: its parts end or hang while processes write, and the output shows nothing of
//! that.

mod cuts;
mod kills;
mod links;
mod outage;
mod steady;
mod store;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs, thread};

use anyhow::{Context, Result, anyhow};
use remoteprocess_e2e::{Namespace, Pid, RELAY_SERVICE, RELEASE_NAMESPACE, kubectl, signal, with_temp_ns};
use rustix::process::Signal;

pub use cuts::cuts;
pub use kills::kills;
pub use links::links;
pub use outage::api_server;
pub use store::store;

/// Runs a scenario in a namespace of its own. It returns its result as a sentence.
fn scenario(name: &str, body: impl FnOnce(&Namespace) -> Result<String>) -> Result<()> {
    let mut said = String::new();
    println!("==> {name}");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        with_temp_ns(name, |namespace| {
            said = body(namespace)?;
            Ok(())
        });
    }));
    outcome.map_err(|_| anyhow!("{name} failed"))?;
    println!("    {name}: {said}");
    Ok(())
}

/// The relay's Service: a direct way, without the API server.
fn relay() -> Result<SocketAddr> {
    let service = kubectl([
        "get",
        "service",
        RELAY_SERVICE,
        "--output=jsonpath={.spec.clusterIP}:{.spec.ports[0].port}",
    ]);
    let address = service.args(["--namespace", RELEASE_NAMESPACE]).succeed()?;
    address.parse().with_context(|| format!("an address: {address}"))
}

/// The folder of the development cluster's state.
fn state() -> Result<PathBuf> {
    env::var_os("RPROC_CLUSTER_STATE").map(PathBuf::from).context(
        "RPROC_CLUSTER_STATE is not set: this scenario is for the development cluster, by `cargo xtask faults`",
    )
}

/// A part of the cluster that is stopped (SIGSTOP) until this is dropped.
struct Stopped(Pid);

impl Stopped {
    /// Stops a daemon of the development cluster.
    fn daemon(name: &str) -> Result<Self> {
        let path = state()?.join("pids").join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let pid = text.split_whitespace().next().and_then(|pid| pid.parse().ok());
        let pid = pid.and_then(Pid::from_raw).context("a pid")?;
        signal(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // A process that is gone needs no CONT.
        let _ = signal(self.0, Signal::CONT);
    }
}

/// Lets time pass while something runs: faults have a duration, and this waits for no condition.
fn let_pass(time: Duration) {
    thread::sleep(time);
}
