//! A pod as agent and entrypoint see it: two processes and three directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use remoteprocess_proto::pod::env;
use remoteprocess_proto::timing::to_wire;
use remoteprocess_proto::v1::LaunchSettings;
use remoteprocess_proto::v1::launch_settings::Echo;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::relay::{self, TestRelay};

/// The pod. Its processes end with it.
pub(crate) struct Pod {
    pub directory: TempDir,
    pub agent: Child,
    is_supervised: bool,
    volume: Option<PathBuf>,
    pub entrypoint: Option<Child>,
}

/// Settings of the agent.
#[derive(Clone)]
pub(crate) struct Options {
    pub supervised: bool,
    pub spool_size: u64,
    pub drain_seconds: u32,
    /// What the relay grants.
    pub launch: LaunchSettings,
    pub stall_millis: u64,
    /// `<point>:<n>:<mark>`: the agent aborts there.
    pub crash_at: Option<String>,
    /// Values to be masked.
    pub mask: Vec<&'static str>,
    /// The settings are in a file, and only its path is in the environment.
    pub by_file: bool,
    /// More environment variables of the agent.
    pub env: &'static [(&'static str, &'static str)],
    /// Size of a volume for the spool alone. Needs root.
    pub volume_bytes: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            supervised: false,
            spool_size: 16 << 20,
            drain_seconds: 30,
            launch: LaunchSettings {
                echo: Echo::None.into(),
                stop_signal: 15,
                stop_grace: to_wire(Duration::from_secs(30)),
                agent_lost: to_wire(Duration::from_secs(600)),
                ..LaunchSettings::default()
            },
            stall_millis: 30_000,
            crash_at: None,
            mask: vec![],
            by_file: false,
            env: &[],
            volume_bytes: None,
        }
    }
}

/// The default options, with other launch settings.
pub(crate) fn launch_with(change: impl FnOnce(&mut LaunchSettings)) -> Options {
    let mut options = Options::default();
    change(&mut options.launch);
    options
}

/// The entrypoint's program: next to this one, and built if it is missing or stale.
fn entrypoint() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let agent = Path::new(env!("CARGO_BIN_EXE_agent"));
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "-p",
            "remoteprocess-entrypoint",
            "--bin",
            "entrypoint",
        ]);
        if agent.parent().is_some_and(|profile| profile.ends_with("release")) {
            build.arg("--release");
        }
        let target = agent.parent().and_then(Path::parent).unwrap();
        // With this variable, Cargo compiles build scripts anew, and everything that depends on them.
        build.env_remove("RUSTC_BOOTSTRAP");
        let built = build.arg("--target-dir").arg(target).status().unwrap();
        assert!(built.success(), "cargo build -p remoteprocess-entrypoint");
        agent.with_file_name("entrypoint")
    })
}

/// Whether this test may mount a volume; if not, it prints so.
pub(crate) fn can_mount() -> bool {
    let place = tempfile::tempdir().unwrap();
    let can = mount(place.path(), 1 << 20);
    if can {
        unmount(place.path());
    } else {
        println!("SKIPPED: a small volume cannot be mounted here (needs CAP_SYS_ADMIN)");
    }
    can
}

fn mount(place: &Path, bytes: u64) -> bool {
    let size = format!("size={bytes}");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(place);
    mount.status().is_ok_and(|status| status.success())
}

fn unmount(place: &Path) {
    let _ = Command::new("umount").arg(place).status();
}

impl Pod {
    /// Starts the agent's container.
    pub(crate) fn start(relay: &TestRelay, options: &Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["handover", "spool"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let spool = directory.path().join("spool");
        if let Some(bytes) = options.volume_bytes {
            assert!(mount(&spool, bytes), "mount a small volume");
        }
        fs::write(directory.path().join("token"), relay::token()).unwrap();
        *relay.settings.lock().unwrap() = Some(options.launch);
        let agent = spawn_agent(directory.path(), relay, options);
        Self {
            directory,
            agent,
            volume: options.volume_bytes.map(|_| spool),
            is_supervised: options.supervised,
            entrypoint: None,
        }
    }

    /// Starts the user's container with this command.
    pub(crate) fn launch(&mut self, command: &[&str]) {
        let mut entrypoint = Command::new(entrypoint());
        entrypoint
            .arg("--subreaper")
            .arg("--socket")
            .arg(self.path("handover/socket"))
            .arg("--stdin-file")
            .arg(self.path("stdin"))
            .arg("--")
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.entrypoint = Some(entrypoint.spawn().unwrap());
    }

    pub(crate) fn shell(&mut self, script: &str) {
        self.launch(&["sh", "-c", script]);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts another agent where one has ended.
    pub(crate) fn restart_agent(&mut self, relay: &TestRelay, options: &Options) {
        self.agent = spawn_agent(self.directory.path(), relay, options);
    }

    /// The process of the agent: our child, or the supervisor's child, which may be missing for a moment.
    pub(crate) fn agent_pid(&self) -> Option<Pid> {
        let supervisor = self.agent.id();
        if !self.is_supervised {
            return Pid::from_raw(i32::try_from(supervisor).unwrap());
        }
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap_or_default();
        let child = children.split_whitespace().next()?;
        Pid::from_raw(child.parse().ok()?)
    }

    pub(crate) fn signal_agent(&self, signal: Signal) {
        if let Some(pid) = self.agent_pid() {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }

    pub(crate) async fn agent_ends(&mut self) -> ExitStatus {
        ends("the agent's end", &mut self.agent).await
    }

    pub(crate) async fn entrypoint_ends(&mut self) -> ExitStatus {
        ends("the entrypoint's end", self.entrypoint.as_mut().unwrap()).await
    }
}

async fn ends(what: &str, child: &mut Child) -> ExitStatus {
    let mut status = None;
    super::until(what, || {
        status = child.try_wait().unwrap();
        status.is_some()
    })
    .await;
    status.unwrap()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

/// All descendants of `pid`.
fn descendants(pid: u32) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|child| child.parse::<u32>().ok());
    children
        .flat_map(|child| {
            let own = i32::try_from(child).ok().and_then(Pid::from_raw);
            own.into_iter().chain(descendants(child))
        })
        .collect()
}

fn spawn_agent(directory: &Path, relay: &TestRelay, options: &Options) -> Child {
    let mut agent = Command::new(env!("CARGO_BIN_EXE_agent"));
    if !options.mask.is_empty() {
        let place = directory.join("mask");
        fs::create_dir_all(place.join("..data")).unwrap();
        for (name, value) in options.mask.iter().enumerate() {
            fs::write(place.join(name.to_string()), value).unwrap();
        }
        agent.env("RPROC_MASK_DIR", place);
    }
    if !options.supervised {
        agent.arg("run");
    }
    let settings = settings(directory, relay, options);
    if options.by_file {
        let lines = settings.map(|(variable, value)| format!("{}: {value:?}\n", key(variable)));
        let file = directory.join("agent.yaml");
        fs::write(&file, lines.concat()).unwrap();
        agent.env("RPROC_CONFIG", file);
    } else {
        agent.envs(settings);
    }
    agent
        .env("RPROC_STALL_MILLIS", options.stall_millis.to_string())
        .envs(options.crash_at.as_ref().map(|point| ("RPROC_CRASH_AT", point)))
        .envs(options.env.iter().copied())
        .stdin(Stdio::null())
        .stderr(if options.mask.contains(&"\n") {
            Stdio::piped()
        } else {
            Stdio::inherit()
        })
        .spawn()
        .unwrap()
}

/// What the operator sets in the environment of the agent.
fn settings(directory: &Path, relay: &TestRelay, options: &Options) -> [(&'static str, String); 16] {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    [
        (env::RELAY_ENROLL, relay.enroll.to_string()),
        (env::RELAY, relay.main.to_string()),
        (env::CA_BUNDLE, relay.authority.cert_pem().to_string()),
        (env::TRUST_DOMAIN, relay::trust_domain().as_str().to_owned()),
        (env::PROCESS_NAMESPACE, relay::NAMESPACE.to_owned()),
        (env::PROCESS_NAME, "hello".to_owned()),
        (env::PROCESS_UID, "u-1".to_owned()),
        (env::ATTEMPT, "1".to_owned()),
        (env::POD_UID, relay::POD_UID.to_owned()),
        (env::POD_IP, "127.0.0.1".to_owned()),
        (env::LISTEN_PORT, "0".to_owned()),
        (env::SPOOL_SIZE, options.spool_size.to_string()),
        (env::DRAIN_SECONDS, options.drain_seconds.to_string()),
        (env::TOKEN_FILE, path("token")),
        (env::HANDOVER, path("handover")),
        (env::SPOOL, path("spool")),
    ]
}

/// `RPROC_SPOOL_SIZE` is `spoolSize` in a file.
fn key(variable: &str) -> String {
    let mut words = variable
        .trim_start_matches("RPROC_")
        .split('_')
        .map(str::to_ascii_lowercase);
    let first = words.next().unwrap();
    words.fold(first, |key, word| key + &word[..1].to_ascii_uppercase() + &word[1..])
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.signal_agent(Signal::KILL);
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        if let Some(entrypoint) = &mut self.entrypoint {
            // Stopped first, so that it starts nothing while its descendants are listed; it inherits their orphans.
            let _ = kill_process(pid_of(entrypoint), Signal::STOP);
            for descendant in descendants(entrypoint.id()) {
                let _ = kill_process(descendant, Signal::KILL);
            }
            let _ = entrypoint.kill();
            let _ = entrypoint.wait();
        }
        if let Some(volume) = &self.volume {
            unmount(volume);
        }
    }
}
