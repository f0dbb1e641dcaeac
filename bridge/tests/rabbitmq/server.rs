//! A RabbitMQ of its own: data, ports and port mapper in a folder that goes away with it.

use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{array, env, fs};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::{Channel, Connection, ConnectionProperties};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use remoteprocess_ports::free_port;
use remoteprocess_ports::rabbitmq::Erlang;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// How long the server may take to start.
const START: Duration = Duration::from_secs(90);

/// A running server.
pub(crate) struct Server {
    program: String,
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
    erlang: Erlang,
    node: Option<Child>,
}

impl Server {
    /// Starts one; `None`, with a sentence, if this machine has none.
    pub(crate) fn start() -> Option<Self> {
        let Ok(program) = env::var("RPROC_RABBITMQ_SERVER") else {
            eprintln!("left out: RPROC_RABBITMQ_SERVER does not name a rabbitmq-server; cargo xtask test sets it");
            return None;
        };
        let [port, tls_port] = array::from_fn(|_| free_port());
        let mut server = Self {
            program,
            folder: tempfile::tempdir().unwrap(),
            port,
            tls_port,
            erlang: Erlang::reserve(),
            node: None,
        };
        server.configure();
        server.begin();
        Some(server)
    }

    fn configure(&self) {
        let folder = self.folder.path();
        certificates(folder);
        let path = |name: &str| folder.join(name).display().to_string();
        let conf = [
            format!("listeners.tcp.1 = 127.0.0.1:{}", self.port),
            format!("listeners.ssl.1 = 127.0.0.1:{}", self.tls_port),
            format!("ssl_options.cacertfile = {}", path("ca/ca.crt")),
            format!("ssl_options.certfile = {}", path("server.crt")),
            format!("ssl_options.keyfile = {}", path("server.key")),
            "ssl_options.verify = verify_peer".to_owned(),
            "ssl_options.fail_if_no_peer_cert = true".to_owned(),
            format!("load_definitions = {}", path("definitions.json")),
            "log.console = true\nlog.file = false\n".to_owned(),
        ];
        fs::write(folder.join("rabbitmq.conf"), conf.join("\n")).unwrap();
        fs::write(folder.join("enabled_plugins"), "[].\n").unwrap();
        fs::write(folder.join("environment"), "").unwrap();
        fs::write(folder.join("definitions.json"), definitions()).unwrap();
    }

    /// Starts the server again, with its data.
    pub(crate) fn begin(&mut self) {
        let folder = self.folder.path();
        let log = fs::File::create(folder.join("log")).unwrap();
        let node = Command::new(&self.program)
            .env_clear()
            .envs(self.erlang.environment(folder))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.program));
        self.node = Some(node);
        let begin = Instant::now();
        while !self.is_up() {
            let has_ended = self.node.as_mut().is_none_or(|node| node.try_wait().unwrap().is_some());
            if has_ended || begin.elapsed() > START {
                panic!("{}", fs::read_to_string(folder.join("log")).unwrap());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_up(&self) -> bool {
        [self.port, self.tls_port]
            .into_iter()
            .all(|port| TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    /// Kills the server.
    pub(crate) fn kill(&mut self) {
        if let Some(mut node) = self.node.take() {
            let group = Pid::from_child(&node);
            kill_process_group(group, Signal::KILL).unwrap();
            node.wait().unwrap();
        }
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A connection of the test itself.
    pub(crate) async fn admin(&self) -> (Connection, Channel) {
        let address = format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port);
        let connection = Connection::connect(&address, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        self.erlang.end_mapper();
    }
}

/// `ca/ca.crt`, `server.crt` for localhost, and `tls/tls.crt` of a client; another authority in `other/ca/ca.crt`.
fn certificates(folder: &Path) {
    for name in ["ca", "tls", "other/ca"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    let authority = || {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of a test");
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (ours, other) = (authority(), authority());
    fs::write(folder.join("ca/ca.crt"), ours.pem()).unwrap();
    fs::write(folder.join("other/ca/ca.crt"), other.pem()).unwrap();
    for (name, certificate, key) in [
        ("localhost", "server.crt", "server.key"),
        ("bridge", "tls/tls.crt", "tls/tls.key"),
    ] {
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let signed = params.signed_by(&pair, &ours).unwrap();
        fs::write(folder.join(certificate), signed.pem()).unwrap();
        fs::write(folder.join(key), pair.serialize_pem()).unwrap();
    }
}

/// The users `guest`, who may do everything, and `limited`, who may do nothing.
fn definitions() -> String {
    let hash = |password: &str| {
        let salt = *b"salt";
        let digest = Sha256::digest([&salt[..], password.as_bytes()].concat());
        STANDARD.encode([&salt[..], &digest[..]].concat())
    };
    let user = |name: &str, tags: &str| json!({"name": name, "password_hash": hash(name), "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": tags});
    let rights =
        |user: &str, all: &str| json!({"user": user, "vhost": "/", "configure": all, "write": all, "read": all});
    json!({
        "users": [user("guest", "administrator"), user("limited", "")],
        "vhosts": [{"name": "/"}, {"name": "closed"}],
        "permissions": [rights("guest", ".*"), rights("limited", "")],
    })
    .to_string()
}
