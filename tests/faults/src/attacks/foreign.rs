//! Programs by others against an operator process: h2spec judges HTTP/2 of both listeners, and grpcurl, which is built on
//! grpc-go, calls the relay.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::Api;
use kube::api::PostParams;
use remoteprocess_api::RemoteProcess;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_tls::{Role, User};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncWriteExt, copy, sink};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::target::Target;

/// The name of the operator in its certificate.
const OPERATOR: &str = "operator.remoteprocess.local";
/// How long the operator may take to see a new object.
const SEEN: Duration = Duration::from_secs(20);

/// The programs.
pub struct Programs {
    /// h2spec.
    pub h2spec: PathBuf,
    /// grpcurl.
    pub grpcurl: PathBuf,
    /// The folder with the `.proto` files.
    pub proto: PathBuf,
}

/// Cases of h2spec that fail at the enrollment listener, and why they stay so.
const ACCEPTED: [(&str, &str); 2] = [
    (
        "Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
        "it waits for data, and gRPC answers an unknown method with headers alone",
    ),
    ("Sends a PRIORITY frame on half-closed (remote) stream", "the same"),
];
/// Length of a header of which five exceed the largest frame of a listener: 128 KiB at the main one, 16 KiB at the other.
const LONG_HEADERS: (u32, u32) = (30_000, 4_000);
/// How often h2spec judges. A connection that ends while it still sends can break before it reads why, so a case fails only
/// if it fails each time.
const RUNS: usize = 3;

/// A call: method, message, whether a certificate is shown, the exit code of grpcurl (64 + the code of gRPC), and a text of
/// the output.
type Call = (&'static str, String, bool, i32, &'static str);

pub(super) async fn check(target: &Target, programs: Programs) -> Result<()> {
    let credentials = Credentials::of(target)?;
    let programs = Arc::new(programs);
    judge_http2(
        "main",
        credentials.tunnel(target.main, true).await?,
        LONG_HEADERS.0,
        &[],
        &programs,
    )
    .await?;
    judge_http2(
        "enrollment",
        credentials.tunnel(target.enroll, false).await?,
        LONG_HEADERS.1,
        &ACCEPTED,
        &programs,
    )
    .await?;
    call_all(target, &credentials, &programs).await
}

/// What a user of the operator has, as files.
struct Credentials {
    folder: TempDir,
    chain: String,
    key: String,
    bundle: String,
}

impl Credentials {
    fn of(target: &Target) -> Result<Self> {
        let alice = User {
            name: "alice".to_owned(),
            groups: vec!["system:masters".to_owned()],
            ..User::default()
        };
        let (chain, key, bundle) = target.certificate(&Role::User, Some(&alice))?;
        let folder = TempDir::with_prefix("rproc-foreign-")?;
        for (name, text) in [("chain.pem", &chain), ("key.pem", &key), ("ca.pem", &bundle)] {
            fs::write(folder.path().join(name), text)?;
        }
        Ok(Self {
            folder,
            chain,
            key,
            bundle,
        })
    }

    /// Accepts plain connections and makes each one of TLS out of it: h2spec has no client certificates.
    async fn tunnel(&self, to: SocketAddr, has_certificate: bool) -> Result<Tunnel> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.bundle.as_bytes()) {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut config = if has_certificate {
            let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes()).collect::<Result<_, _>>()?;
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(self.key.as_bytes())?)?
        } else {
            config.with_no_client_auth()
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Each end shows in what h2spec gets.
                tokio::spawn(forward(client, to, connector.clone()));
            }
        });
        Ok(Tunnel(address, accepting.abort_handle()))
    }
}

/// A listening tunnel. Dropping it ends it.
struct Tunnel(SocketAddr, AbortHandle);

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.1.abort();
    }
}

async fn forward(client: TcpStream, to: SocketAddr, connector: TlsConnector) -> io::Result<()> {
    let name = ServerName::try_from(OPERATOR).map_err(io::Error::other)?;
    let server = connector.connect(name, TcpStream::connect(to).await?).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let up = async {
        if copy(&mut from_client, &mut to_server).await.is_err() {
            // The server is gone. What it said last must not be lost because of what the client still sends.
            copy(&mut from_client, &mut sink()).await?;
        }
        to_server.shutdown().await
    };
    let down = async {
        // However it ended, the client gets what there is.
        let _ = copy(&mut from_server, &mut to_client).await;
        to_client.shutdown().await
    };
    tokio::try_join!(up, down).map(drop)
}

async fn judge_http2(
    listener: &str,
    tunnel: Tunnel,
    long_header: u32,
    accepted: &[(&str, &str)],
    programs: &Arc<Programs>,
) -> Result<()> {
    let mut failing: Option<BTreeSet<String>> = None;
    for _ in 0..RUNS {
        let (sum, mut failed) = run_h2spec(&tunnel, long_header, programs).await?;
        failed.retain(|case| !accepted.iter().any(|(accepted, _)| case.contains(accepted)));
        println!("    h2spec at the {listener} listener: {sum}");
        let still = failing.map_or(failed.clone(), |before| &before & &failed);
        if still.is_empty() {
            return Ok(());
        }
        failing = Some(still);
    }
    let failing: Vec<_> = failing.unwrap_or_default().into_iter().collect();
    bail!("h2spec at the {listener} listener: {}", failing.join("\n"))
}

/// The last line of h2spec, and the cases that failed.
async fn run_h2spec(tunnel: &Tunnel, long_header: u32, programs: &Arc<Programs>) -> Result<(String, BTreeSet<String>)> {
    let mut h2spec = Command::new(&programs.h2spec);
    h2spec.args(["--strict", "--timeout", "5", "--host", "127.0.0.1", "--port"]);
    h2spec.arg(tunnel.0.port().to_string());
    h2spec.arg("--max-header-length").arg(long_header.to_string());
    let output = output(h2spec).await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let sum = text.lines().rfind(|line| line.contains(" passed"));
    let sum = sum
        .with_context(|| format!("h2spec said nothing:\n{text}"))?
        .trim()
        .to_owned();
    let failed = text
        .lines()
        .filter_map(|line| Some(line.split_once('×')?.1.trim().to_owned()));
    Ok((sum, failed.collect()))
}

async fn call_all(target: &Target, credentials: &Credentials, programs: &Arc<Programs>) -> Result<()> {
    let object: RemoteProcess = serde_json::from_value(json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {"name": "foreign"}, "spec": {"image": "busybox", "command": ["true"]},
    }))?;
    let processes: Api<RemoteProcess> = Api::namespaced(target.client.clone(), "good");
    processes.create(&PostParams::default(), &object).await?;
    let is_seen = async {
        while call(target, credentials, programs, &state("foreign", PROTOCOL, 0, "foreign"))
            .await
            .is_err()
        {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(SEEN, is_seen)
        .await
        .context("grpcurl does not get the state of a process")?;
    let in_good = |name: &str| format!(r#""protocol":{PROTOCOL},"process":{{"namespace":"good","name":"{name}"}}"#);
    let calls: [Call; 9] = [
        (
            "List",
            format!(r#"{{"protocol":{PROTOCOL},"namespace":"good"}}"#),
            true,
            0,
            "foreign",
        ),
        state("absent", PROTOCOL, 69, "absent"),
        state("foreign", PROTOCOL + 2, 73, "version"),
        ("WatchOutput", format!("{{{}}}", in_good("absent")), true, 69, "absent"),
        (
            "Signal",
            format!(r#"{{{},"requestId":"1","number":15}}"#, in_good("absent")),
            true,
            69,
            "absent",
        ),
        ("Stop", format!("{{{}}}", in_good("absent")), true, 69, "absent"),
        (
            "Attach",
            format!(r#"{{"open":{{{},"session":"w"}}}}"#, in_good("absent")),
            true,
            69,
            "absent",
        ),
        (
            "Start",
            format!(r#"{{"protocol":{PROTOCOL}}}"#),
            true,
            71,
            "PermissionDenied",
        ),
        ("List", "{}".to_owned(), false, 1, "certificate"),
    ];
    for asked in &calls {
        call(target, credentials, programs, asked).await?;
    }
    println!("    grpcurl: {} calls are answered as expected", calls.len());
    Ok(())
}

fn state(name: &str, protocol: u32, code: i32, text: &'static str) -> Call {
    let message = format!(r#"{{"protocol":{protocol},"process":{{"namespace":"good","name":"{name}"}}}}"#);
    ("GetState", message, true, code, text)
}

async fn call(target: &Target, credentials: &Credentials, programs: &Arc<Programs>, call: &Call) -> Result<()> {
    let (method, message, has_certificate, code, text) = call;
    let file = |name: &str| credentials.folder.path().join(name);
    let mut grpcurl = Command::new(&programs.grpcurl);
    grpcurl.args(["-max-time", "10", "-connect-timeout", "5", "-authority", OPERATOR]);
    grpcurl
        .arg("-import-path")
        .arg(&programs.proto)
        .args(["-proto", "remoteprocess/v1/relay.proto"]);
    grpcurl.arg("-cacert").arg(file("ca.pem"));
    if *has_certificate {
        grpcurl
            .arg("-cert")
            .arg(file("chain.pem"))
            .arg("-key")
            .arg(file("key.pem"));
    }
    grpcurl
        .args(["-d", message])
        .arg(target.main.to_string())
        .arg(format!("remoteprocess.v1.Relay/{method}"));
    let output = output(grpcurl).await?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.code() != Some(*code) || !said.contains(text) {
        bail!(
            "{method} {message}: {:?} instead of {code} with {text:?}: {said}",
            output.status.code()
        );
    }
    Ok(())
}

async fn output(mut command: Command) -> Result<Output> {
    let program = Path::new(command.get_program()).display().to_string();
    spawn_blocking(move || command.output())
        .await?
        .with_context(|| format!("cannot start {program}"))
}
