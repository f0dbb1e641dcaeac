//! The brokers for work on triggers, as plain processes of this machine: NATS with JetStream, built from the pinned module, and
//! RabbitMQ of the Linux distribution, and the emulator of Google Pub/Sub if the machine has it. They listen where pods of the
//! development cluster reach them.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use rustix::process::{Pid, Signal, kill_process};

use super::config::{BRIDGE, NODE_IP, Place};
use super::{State, daemon, packages, tools};
use crate::lock::Lock;
use crate::steps::{say, step};
use crate::{exec, paths};

const NATS: &str = "nats-server";
const NATS_PORT: u16 = 4222;
const RABBITMQ: &str = "rabbitmq";
const RABBITMQ_PORT: u16 = 5672;
/// Ports of Erlang's own: the nodes of a machine find each other by the first, and talk at the second.
const EPMD_PORT: u16 = 15369;
const DISTRIBUTION_PORT: u16 = 15670;
const PUBSUB: &str = "pubsub";
const PUBSUB_PORT: u16 = 8085;
const FORWARD: &str = "pubsub-forward";
const SOCAT: &str = "/usr/bin/socat";
const LOOPBACK: &str = "127.0.0.1";
/// Where the package `google-cloud-cli-pubsub-emulator` of Google's Cloud SDK has the emulator. Another one can be named.
const PUBSUB_EMULATOR: &str = "/usr/lib/google-cloud-sdk/platform/pubsub-emulator/bin/cloud-pubsub-emulator";
const PUBSUB_VARIABLE: &str = "RPROC_PUBSUB_EMULATOR";
/// The script itself: the one in `PATH` becomes another user, and needs that user's folders.
const RABBITMQ_SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// How long a broker may take to start.
const BEGIN: Duration = Duration::from_secs(90);
/// Tells invoke-rc.d(8) not to start what was installed.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// What may be done with the brokers.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Starts the brokers that do not run, and prints their addresses.
    Up,
    /// Ends the brokers and deletes their data.
    Down,
}

/// Runs one of the commands.
pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Up => up().map(drop),
        Command::Down => {
            let (state, _lock) = claim()?;
            down(&state)
        }
    }
}

/// Where pods of the development cluster, and this machine, reach the brokers.
pub(crate) struct Addresses {
    /// `nats://host:port`, with JetStream and without login.
    pub nats: String,
    /// `amqp://user:password@host:port`.
    pub rabbitmq: String,
    /// `http://host:port` of the emulator; `None` if this machine has none.
    pub pubsub: Option<String>,
}

/// The state of the brokers, for this process alone.
fn claim() -> Result<(State, Lock)> {
    let state = State {
        root: paths::cache()?.join("brokers"),
        run: PathBuf::from("/run/remoteprocess-brokers"),
        place: Place::DEVELOPMENT,
    };
    let lock = Lock::take(&state.lock_file("brokers"), "another command for the brokers")?;
    Ok((state, lock))
}

/// The path of nats-server, which is built if it is not there yet.
pub(crate) fn nats() -> Result<PathBuf> {
    tools::ensure_nats()
}

/// The path of rabbitmq-server, which is installed if it is not there yet and this user may install packages.
pub(crate) fn rabbitmq() -> Result<PathBuf> {
    if !Path::new(RABBITMQ_SERVER).exists() {
        let _policy = Policy::forbid()?;
        packages::install(&[("rabbitmq-server", RABBITMQ_SERVER)])?;
    }
    Ok(RABBITMQ_SERVER.into())
}

/// While it lives, packages that are installed start no service. The owner's own policy stays.
struct Policy {
    is_ours: bool,
}

impl Policy {
    fn forbid() -> Result<Self> {
        let is_ours = rustix::process::getuid().is_root() && !Path::new(POLICY).exists();
        if is_ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n")?;
            exec::output(std::process::Command::new("chmod").args(["755", POLICY]))?;
        }
        Ok(Self { is_ours })
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.is_ours {
            // If this fails, the next package that is installed starts no service either.
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// The emulator of Google Pub/Sub, if this machine has one. It cannot be installed from the registries of this repository, and
/// Go's `pstest` does not speak the REST API, which the bridge uses.
fn pubsub() -> Option<PathBuf> {
    let named = env::var_os(PUBSUB_VARIABLE).unwrap_or_else(|| PUBSUB_EMULATOR.into());
    Some(PathBuf::from(named)).filter(|path| path.exists())
}

/// Starts the brokers that do not run, and prints their addresses.
pub(crate) fn up() -> Result<Addresses> {
    let (state, _lock) = claim()?;
    let (nats, rabbitmq, pubsub) = (nats()?, rabbitmq()?, pubsub());
    for folder in ["logs", "pids", "nats", "rabbitmq/mnesia"] {
        fs::create_dir_all(state.root.join(folder))?;
    }
    // The address of the node exists while the development cluster does.
    let host = match Path::new("/sys/class/net").join(BRIDGE).exists() {
        true => NODE_IP,
        false => LOOPBACK,
    };
    ensure(&state, (NATS, "NATS"), (host, NATS_PORT), || {
        start_nats(&state, &nats, host)
    })?;
    ensure(&state, (RABBITMQ, "RabbitMQ"), (host, RABBITMQ_PORT), || {
        start_rabbitmq(&state, &rabbitmq, host)
    })?;
    if let Some(program) = &pubsub {
        ensure(
            &state,
            (PUBSUB, "the Pub/Sub emulator"),
            (LOOPBACK, PUBSUB_PORT),
            || start_pubsub(&state, program),
        )?;
        if host != LOOPBACK {
            packages::install(&[("socat", SOCAT)])?;
            let begin = || forward_to_pubsub(&state, host);
            ensure(&state, (FORWARD, "its address for pods"), (host, PUBSUB_PORT), begin)?;
        }
    }
    let addresses = Addresses {
        nats: format!("nats://{host}:{NATS_PORT}"),
        rabbitmq: format!("amqp://guest:guest@{host}:{RABBITMQ_PORT}"),
        pubsub: pubsub.map(|_| format!("http://{host}:{PUBSUB_PORT}")),
    };
    let emulator = match &addresses.pubsub {
        Some(address) => format!("{address}, the emulator"),
        None => format!("left out: there is no emulator at {PUBSUB_EMULATOR}; {PUBSUB_VARIABLE} can name one"),
    };
    say(format_args!("NATS      {}, with JetStream", addresses.nats));
    say(format_args!("RabbitMQ  {}", addresses.rabbitmq));
    say(format_args!("Pub/Sub   {emulator}"));
    Ok(addresses)
}

/// Starts a broker, with its name for files and its name for people, if it does not run; waits until it listens.
fn ensure(
    state: &State,
    (name, title): (&str, &str),
    (host, port): (&str, u16),
    start: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if daemon::pid(state, name).is_none() {
        return step(&format!("start {title}"), || {
            start()?;
            wait_for(state, name, host, port)
        });
    }
    let is_there = TcpStream::connect((host, port)).is_ok();
    anyhow::ensure!(
        is_there,
        "{name} runs, and does not listen at {host}:{port}: it was started before the development cluster, or after its end. \
         `cargo xtask brokers down` ends it"
    );
    Ok(())
}

fn start_nats(state: &State, program: &Path, host: &str) -> Result<()> {
    let data = state.root.join("nats").display().to_string();
    let arguments = [
        "--jetstream".to_owned(),
        format!("--store_dir={data}"),
        format!("--addr={host}"),
        format!("--port={NATS_PORT}"),
    ];
    daemon::spawn(state, NATS, program, &arguments, &[("PATH", daemon::PATH.to_owned())])
}

/// Its data are in its memory. It listens on loopback, because its REST API calls its gRPC API there, whatever its host is.
fn start_pubsub(state: &State, program: &Path) -> Result<()> {
    let arguments = [format!("--host={LOOPBACK}"), format!("--port={PUBSUB_PORT}")];
    let environment = [
        ("PATH", daemon::PATH.to_owned()),
        ("JAVA_OPTS", "-Xmx256m -XX:TieredStopAtLevel=1".to_owned()),
    ];
    daemon::spawn(state, PUBSUB, program, &arguments, &environment)
}

/// Passes connections from pods on to the emulator.
fn forward_to_pubsub(state: &State, host: &str) -> Result<()> {
    let arguments = [
        format!("TCP-LISTEN:{PUBSUB_PORT},bind={host},reuseaddr,fork,nodelay"),
        format!("TCP:{LOOPBACK}:{PUBSUB_PORT},nodelay"),
    ];
    let environment = [("PATH", daemon::PATH.to_owned())];
    daemon::spawn(state, FORWARD, Path::new(SOCAT), &arguments, &environment)
}

/// A node with a name, a data folder and ports of its own, also for Erlang's port mapper.
fn start_rabbitmq(state: &State, program: &Path, host: &str) -> Result<()> {
    let folder = state.root.join("rabbitmq");
    let path = |name: &str| folder.join(name).display().to_string();
    fs::write(folder.join("rabbitmq.conf"), rabbitmq_conf(host))?;
    fs::write(folder.join("enabled_plugins"), "[].\n")?;
    fs::write(folder.join("environment"), "")?;
    let environment = [
        ("PATH", daemon::PATH.to_owned()),
        ("HOME", path("")),
        ("LANG", "C.UTF-8".to_owned()),
        ("RABBITMQ_NODENAME", "remoteprocess-dev@localhost".to_owned()),
        ("RABBITMQ_MNESIA_BASE", path("mnesia")),
        ("RABBITMQ_LOG_BASE", path("log")),
        ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
        ("RABBITMQ_CONF_ENV_FILE", path("environment")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
        ("RABBITMQ_PID_FILE", path("pid")),
        ("RABBITMQ_DIST_PORT", DISTRIBUTION_PORT.to_string()),
        ("ERL_EPMD_PORT", EPMD_PORT.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        (
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "-kernel inet_dist_use_interface {127,0,0,1}".to_owned(),
        ),
    ];
    daemon::spawn(state, RABBITMQ, program, &[], &environment)
}

fn rabbitmq_conf(host: &str) -> String {
    let mut addresses = vec!["127.0.0.1", host];
    addresses.dedup();
    let listeners = (1..).zip(addresses);
    let listeners = listeners.map(|(number, host)| format!("listeners.tcp.{number} = {host}:{RABBITMQ_PORT}\n"));
    // `guest` may log in from pods as well.
    format!(
        "{}loopback_users = none\nlog.console = true\nlog.file = false\n",
        listeners.collect::<String>()
    )
}

fn wait_for(state: &State, name: &str, host: &str, port: u16) -> Result<()> {
    let address: SocketAddr = format!("{host}:{port}").parse()?;
    let begin = Instant::now();
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        if daemon::pid(state, name).is_none() || begin.elapsed() > BEGIN {
            let log = daemon::log_file(state, name);
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!(
                "{name} does not listen on {address}; its log, {}:\n{said}",
                log.display()
            );
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn down(state: &State) -> Result<()> {
    for name in [NATS, RABBITMQ, FORWARD, PUBSUB] {
        daemon::stop(state, name)?;
    }
    end_orphan(state);
    end_epmd();
    match fs::remove_dir_all(&state.root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", state.root.display()))
        }
        _ => Ok(()),
    }
}

/// The node itself, if its script had to be killed. It is ours if its command line has our folder.
fn end_orphan(state: &State) {
    let folder = state.root.join("rabbitmq");
    let pid = fs::read_to_string(folder.join("pid")).unwrap_or_default();
    let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) else {
        return;
    };
    let line = fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    if line.contains(&folder.display().to_string()) {
        // It may end by itself in this moment.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Erlang's port mapper outlives the node. Only ours listens on this port; it ends once no node is registered.
fn end_epmd() {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut epmd = std::process::Command::new("epmd");
    epmd.args(["-kill"])
        .env("PATH", path)
        .env("ERL_EPMD_PORT", EPMD_PORT.to_string());
    // It may have ended, or never have begun.
    exec::succeeds(&mut epmd);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rabbitmq_listens_on_loopback_and_for_pods() {
        assert_eq!(rabbitmq_conf("127.0.0.1").matches("listeners.tcp").count(), 1);
        let conf = rabbitmq_conf(NODE_IP);
        assert!(conf.contains("listeners.tcp.2 = 10.244.0.1:5672\n"), "{conf}");
    }
}
