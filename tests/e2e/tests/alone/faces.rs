//! A face of the relay without the other one, for tests that install the release so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Finished, Namespace, Program, RELAY_SERVICE, RELEASE_NAMESPACE, kubectl, until};
use tempfile::TempDir;

/// How curl ends if the handshake of TLS fails.
const NO_TLS: i32 = 35;

/// `curl` to the relay with the certificate of the editor.
struct Curl {
    certificates: TempDir,
    to: String,
    url: String,
}

impl Curl {
    fn of(namespace: &Namespace) -> Result<Self> {
        let certificates = TempDir::new()?;
        let folder = certificates.path().to_string_lossy().into_owned();
        let told = namespace.editor.rproc(&["login", "--output-dir", &folder]).succeed()?;
        let name = told.rsplit(' ').next().context("a name")?.trim().to_owned();
        let address = "--output=jsonpath={.spec.clusterIP}:{.spec.ports[0].port}";
        let get = [
            "get",
            "service",
            RELAY_SERVICE,
            address,
            "--namespace",
            RELEASE_NAMESPACE,
        ];
        Ok(Self {
            certificates,
            to: format!("{name}:443:{}", kubectl(get).succeed()?),
            url: format!("https://{name}/v1/namespaces/{}/processes", namespace.name),
        })
    }

    /// Asks for this path below the processes. The last line is the version of HTTP, and the media type.
    fn get(&self, path: &str, arguments: &[&str]) -> Result<Finished> {
        let file = |name| self.certificates.path().join(name).to_string_lossy().into_owned();
        let report = "\n%{http_version} %{content_type}";
        // The node may send a connection to a pod that has just gone, which answers nothing.
        let again = ["--connect-timeout", "3", "--retry", "5", "--retry-delay", "1"];
        let curl = Program::new("curl", ["-sS", "--max-time", "60", "--write-out", report]).args(again);
        let curl = curl.args(["--cert", &file("tls.crt"), "--key", &file("tls.key")]);
        let curl = curl.args(["--cacert", &file("ca.crt"), "--connect-to", &self.to]);
        curl.args(arguments).arg(format!("{}{path}", self.url)).finish()
    }
}

/// Without gRPC, HTTP serves the output of a process that runs, and rproc says how to switch gRPC on.
pub(crate) fn without_grpc_http_works(namespace: &Namespace, process: &str, output: &str) -> Result<()> {
    let curl = Curl::of(namespace)?;
    let path = format!("/{process}/output?stream=stdout");
    let wanted = format!("{output}\n1.1 application/octet-stream");
    until("the output over HTTP/1.1", Duration::from_secs(30), || {
        let got = curl.get(&path, &["--http1.1", "--fail"])?;
        Ok(got.expect_code(0)?.out() == wanted)
    })?;
    let logs = namespace.editor.rproc(&["logs", process]);
    let logs = logs.within(Duration::from_secs(20)).finish()?;
    logs.expect_code(125)?
        .expect_stderr(&["faces.grpc: false", "Set faces.grpc to true"])?;
    Ok(())
}

/// Without HTTP, a client that speaks only HTTP/1.1 gets no connection, and over HTTP/2 there is nothing but gRPC.
pub(crate) fn without_http_there_is_only_grpc(namespace: &Namespace) -> Result<()> {
    let curl = Curl::of(namespace)?;
    curl.get("", &["--http1.1"])?
        .expect_code(NO_TLS)?
        .expect_stderr(&["no application protocol"])?;
    let asked = curl.get("", &["--http2"])?;
    let said = asked.expect_code(0)?.out();
    ensure!(said == "\n2 application/grpc", "{asked}");
    Ok(())
}
