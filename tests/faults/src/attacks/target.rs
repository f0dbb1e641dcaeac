//! The operator that is attacked: a process of its own, and the certificates of its authority.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use std::{array, fs};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use remoteprocess_api::names;
use remoteprocess_e2e::Traces;
use remoteprocess_ports::free_address;
use remoteprocess_tls::{Authority, Dialer, Identity, Role, TrustDomain, User};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How long the operator may take to become ready.
const BEGIN: Duration = Duration::from_secs(60);
/// Name of the operator's log.
const LOG: &str = "operator.log";
/// How long the certificates of this test live.
const LIFETIME: Duration = Duration::from_secs(3600);
/// Ticks of a second in `/proc` (`proc(5)`, USER_HZ of all common architectures).
const TICKS: f64 = 100.0;

/// A running operator. Dropping it ends it.
pub(super) struct Target {
    pub client: Client,
    pub main: SocketAddr,
    pub enroll: SocketAddr,
    pub admin: SocketAddr,
    /// What the operator has sent.
    pub traces: Arc<Traces>,
    authority: Arc<Authority>,
    program: PathBuf,
    operator: Child,
    folder: TempDir,
    archive: PathBuf,
}

/// What a client of the operator needs.
#[derive(Clone)]
pub(super) struct Site {
    pub client: Client,
    pub main: SocketAddr,
    authority: Arc<Authority>,
}

impl Site {
    /// Presents a new certificate.
    pub(super) fn dialer(&self, role: &Role, user: Option<&User>) -> Dialer {
        Dialer::new(self.identity(role, user))
    }

    /// A new certificate and its key.
    pub(super) fn identity(&self, role: &Role, user: Option<&User>) -> Arc<Identity> {
        let (chain, key) = self.authority.issue(role, user, LIFETIME).expect("a certificate");
        let identity = Identity::new(&chain, &key, self.authority.cert_pem(), self.authority.trust_domain());
        identity.expect("an identity")
    }
}

/// Each connection takes a descriptor here, and one in the operator, which inherits the limit.
pub(super) fn allow_many_files() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

impl Target {
    pub(super) async fn start(client: Client, program: &Path) -> Result<Self> {
        for namespace in [names::DEFAULT_RELEASE_NAMESPACE, "good", "bad"] {
            prepare(&client, namespace).await?;
        }
        let traces = Arc::new(Traces::listen("127.0.0.1").await?);
        Self::start_replica(client, program, "attacked", None, traces).await
    }

    /// Another replica, which does not lead and which no other user needs. What an attack on it costs the users of this one
    /// is the share of the machine, and no fault of the operator. It has the same archive.
    pub(super) async fn start_decoy(&self) -> Result<Self> {
        let archive = Some(self.archive.clone());
        Self::start_replica(
            self.client.clone(),
            &self.program,
            "decoy",
            archive,
            self.traces.clone(),
        )
        .await
    }

    async fn start_replica(
        client: Client,
        program: &Path,
        name: &str,
        archive: Option<PathBuf>,
        traces: Arc<Traces>,
    ) -> Result<Self> {
        let [main, enroll, admin] = array::from_fn(|_| free_address());
        let folder = TempDir::with_prefix("rproc-attacks-")?;
        let archive = archive.unwrap_or_else(|| folder.path().join("archive"));
        fs::create_dir_all(&archive)?;
        let operator = Command::new(program)
            .args(["--agent-image=agent", "--listen-address=127.0.0.1"])
            .args([format!("--replica={name}"), format!("--relay-address={main}")])
            .arg(format!("--enroll-address={enroll}"))
            .args([
                format!("--relay-port={}", main.port()),
                format!("--enroll-port={}", enroll.port()),
                format!("--admin-port={}", admin.port()),
                format!("--archive-dir={}", archive.display()),
                format!("--tracing-otlp-endpoint=http://{}", traces.address),
            ])
            // As the chart sets it: what is freed is given back soon.
            .envs([("MIMALLOC_ALLOW_THP", "0"), ("MIMALLOC_PURGE_DELAY", "20")])
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join(LOG))?)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        // Dropped, and so ended, if anything fails from here on.
        let mut target = Starting(Some(operator));
        timeout(BEGIN, ready(admin))
            .await
            .context("the operator is not ready")?;
        let authority = read_authority(&client).await?;
        let operator = target.0.take().context("it was started")?;
        Ok(Self {
            client,
            main,
            enroll,
            admin,
            traces,
            authority: Arc::new(authority),
            program: program.to_owned(),
            operator,
            folder,
            archive,
        })
    }

    /// A dialer of a user of these groups.
    pub(super) fn user(&self, name: &str, groups: &[&str]) -> Dialer {
        let user = User {
            name: name.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..User::default()
        };
        self.dialer(&Role::User, Some(&user))
    }

    /// A dialer of the agent of a pod that does not exist.
    pub(super) fn false_agent(&self) -> Dialer {
        let role = Role::Agent {
            namespace: "bad".to_owned(),
            pod_uid: "00000000-0000-4000-8000-000000000000".to_owned(),
        };
        self.dialer(&role, None)
    }

    /// A certificate with its chain, its key, and the certificate of the CA, all PEM.
    pub(super) fn certificate(&self, role: &Role, user: Option<&User>) -> Result<(String, String, String)> {
        let (chain, key) = self.authority.issue(role, user, LIFETIME)?;
        Ok((chain, key, self.authority.cert_pem().to_owned()))
    }

    fn dialer(&self, role: &Role, user: Option<&User>) -> Dialer {
        self.site().dialer(role, user)
    }

    /// For tasks that outlive a borrow.
    pub(super) fn site(&self) -> Site {
        Site {
            client: self.client.clone(),
            main: self.main,
            authority: self.authority.clone(),
        }
    }

    /// Seconds of a processor that the operator has used.
    pub(super) fn processor_seconds(&self) -> Result<f64> {
        processor_seconds(&self.operator.id().to_string())
    }

    /// Bytes of memory in use.
    pub(super) fn memory(&self) -> Result<u64> {
        self.status_of("VmRSS:")
    }

    /// Begins to look for the peak of its memory anew (proc(5), `clear_refs`).
    pub(super) fn forget_peak_memory(&self) -> Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.operator.id()), "5")?)
    }

    /// Bytes of memory that were in use at the same time at most, since it was last forgotten.
    pub(super) fn peak_memory(&self) -> Result<u64> {
        self.status_of("VmHWM:")
    }

    fn status_of(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.operator.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kibibytes: u64 = line
            .and_then(|line| line.split_whitespace().next())
            .context("no size")?
            .parse()?;
        Ok(kibibytes << 10)
    }

    pub(super) fn whole_log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.path().join(LOG))?)
    }

    pub(super) async fn metrics(&self) -> Result<String> {
        get(self.admin, "/metrics").await
    }

    /// A line of the private key of the CA.
    pub(super) fn key_line(&self) -> String {
        let key = self.authority.key_pem();
        key.lines().nth(1).unwrap_or_default().to_owned()
    }

    /// The last lines of the operator's log.
    pub(super) fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default();
        let lines: Vec<_> = text.lines().filter(|line| !line.contains("\"audit\"")).collect();
        lines[lines.len().saturating_sub(8)..].join("\n    ")
    }

    pub(super) fn check_alive(&mut self) -> Result<()> {
        let ended = self.operator.try_wait()?;
        ensure!(ended.is_none(), "the operator ended: {ended:?}");
        Ok(())
    }
}

/// Seconds of a processor that a process has used, in user and system mode.
pub(super) fn processor_seconds(process: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // Fields 14 and 15. The name, field 2, may contain anything except the last parenthesis.
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    let ticks: Vec<f64> = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / TICKS)
}

/// An operator that is not ready yet.
struct Starting(Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(end);
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        end(&mut self.operator);
    }
}

fn end(operator: &mut Child) {
    // It may have ended.
    let _ = operator.kill();
    let _ = operator.wait();
}

/// Creates a namespace, with the ServiceAccount that a pod needs.
async fn prepare(client: &Client, name: &str) -> Result<()> {
    let params = PostParams::default();
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    Api::all(client.clone()).create(&params, &namespace).await?;
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
    Api::namespaced(client.clone(), name).create(&params, &account).await?;
    Ok(())
}

async fn ready(admin: SocketAddr) {
    while !is_ready(admin).await.unwrap_or(false) {
        sleep(Duration::from_millis(50)).await;
    }
}

async fn is_ready(admin: SocketAddr) -> Result<bool> {
    Ok(get(admin, "/readyz").await?.starts_with("HTTP/1.1 200 "))
}

async fn get(admin: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The CA, as a user who may read its Secret has it.
async fn read_authority(client: &Client) -> Result<Authority> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), names::DEFAULT_RELEASE_NAMESPACE);
    let data = secrets.get(names::CA_SECRET).await?.data.unwrap_or_default();
    let [Some(certificate), Some(key)] = ["tls.crt", "tls.key"].map(|name| data.get(name)) else {
        bail!("the Secret of the CA has no certificate");
    };
    let (certificate, key) = (std::str::from_utf8(&certificate.0)?, std::str::from_utf8(&key.0)?);
    let domain: TrustDomain = names::DEFAULT_TRUST_DOMAIN.parse()?;
    Ok(Authority::from_pem(certificate, key, &domain)?)
}
