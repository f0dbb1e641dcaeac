//! The archive contains what was written, whatever happens to its writers: on the volume, and in S3 with two replicas.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{
    Installation, Namespace, OPERATORS, Program, RELEASE_NAMESPACE, Running, Traces, counting, delete_operator_pods,
    glibc, is_development_cluster, kubectl, node_address, sha256, until, until_some, wait_for_operator, with_temp_ns,
};
use rustix::process::Signal;
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

use super::faces::without_http_there_is_only_grpc;
use super::traces::a_run_is_one_tree;

const BYTES: usize = 30_000_000;
const CREDENTIALS: &str = "e2e-archive-credentials";

#[test]
fn the_writer_of_the_volume_is_killed_in_mid_upload() {
    with_temp_ns("volume", killed_in_mid_upload);
}

#[test]
fn two_replicas_share_a_bucket() {
    if !is_development_cluster("an S3 server on this machine") {
        return;
    }
    with_temp_ns("bucket", |namespace| {
        let mut server = S3::start()?;
        let before = Installation::current()?;
        let runtime = Runtime::new()?;
        let traces = runtime.block_on(Traces::listen(&node_address()?))?;
        let receiver = format!("--set=tracing.otlp.endpoint=http://{}", traces.address);
        // An upgrade takes seconds, so that of this test also shows the relay with one face, and a trace.
        let outcome = server
            .install(&before, &["--set=faces.http=false", &receiver])
            .and_then(|()| {
                replicas()?;
                without_http_there_is_only_grpc(namespace)?;
                a_run_is_one_tree(namespace, &traces)?;
                killed_in_mid_upload(namespace)?;
                the_store_is_killed(namespace, &mut server)?;
                signal_and_stop_anywhere(namespace)?;
                the_home_dies(namespace)?;
                server.install(&before, &["--set=archive.retention.maxSize=1Ki"])?;
                what_is_removed_is_said_to_be(namespace)
            });
        // In any case: the other tests need the original installation.
        before.install(&[])?;
        kubectl(["delete", "secret", CREDENTIALS, "--namespace"])
            .arg(RELEASE_NAMESPACE)
            .succeed()?;
        outcome
    });
}

/// An S3 server, with the bucket `archive`.
struct S3 {
    endpoint: String,
    journal: NamedTempFile,
    server: Option<Running>,
}

impl S3 {
    /// Starts it where pods reach it: at the address of the node, which is this machine.
    fn start() -> Result<Self> {
        let address = node_address()?;
        let journal = NamedTempFile::new()?;
        let (endpoint, server) = Self::serve(&journal, &address, "0")?;
        let keys = [
            "--from-literal=AWS_ACCESS_KEY_ID=e2e",
            "--from-literal=AWS_SECRET_ACCESS_KEY=e2e",
        ];
        let create = [
            "create",
            "secret",
            "generic",
            CREDENTIALS,
            "--namespace",
            RELEASE_NAMESPACE,
        ];
        kubectl(create).args(keys).succeed()?;
        Ok(Self {
            endpoint,
            journal,
            server: Some(server),
        })
    }

    /// A server process, and the address at which it listens.
    fn serve(journal: &NamedTempFile, host: &str, port: &str) -> Result<(String, Running)> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dev/s3/serve.py");
        let server = Program::new("python3", [script, "--host", host, "--port", port, "--journal"])
            .arg(journal.path())
            .within(Duration::from_secs(600))
            .start()?;
        let endpoint = until_some("the S3 server", Duration::from_secs(120), || {
            let said = server.said();
            let line = said.lines().find_map(|line| line.strip_prefix("listening on "));
            Ok(line.map(|url| url.trim().to_owned()))
        })?;
        Ok((endpoint, server))
    }

    /// Kills it, and restarts it at the same address with all objects that it had confirmed.
    fn kill(&mut self) -> Result<()> {
        let killed = self.server.take().context("it runs")?;
        killed.signal(Signal::KILL)?;
        drop(killed);
        let (host, port) = self
            .endpoint
            .strip_prefix("http://")
            .and_then(|authority| authority.split_once(':'))
            .context("an authority")?;
        self.server = Some(Self::serve(&self.journal, host, port)?.1);
        Ok(())
    }

    /// Installs two replicas that archive there.
    fn install(&self, installation: &Installation, flags: &[&str]) -> Result<()> {
        let endpoint = format!("--set=archive.s3.endpoint={}", self.endpoint);
        let credentials = format!("--set=archive.s3.credentialsSecret={CREDENTIALS}");
        let own = [
            "--set=replicas=2",
            "--set=archive.store=S3",
            "--set=archive.s3.bucket=archive",
            "--set=archive.s3.pathStyle=true",
            &endpoint,
            &credentials,
        ];
        installation.install(&[&own, flags].concat())
    }
}

/// A process called `name` whose output exceeds the space in the pod, and a reader of it.
fn pushed_back(namespace: &Namespace, name: &str) -> Result<Running> {
    let script = format!("seq 1 100000000 2>/dev/null | head -c {BYTES}; exit 9");
    let spec = json!({
        "image": glibc(), "imagePullPolicy": "IfNotPresent", "command": ["bash", "-c", script],
        "output": {"spoolSize": "4Mi", "whenFull": "Block"},
    });
    namespace.apply(name, spec).succeed()?;
    let reader = namespace.editor.rproc(&["logs", "-f", name]);
    reader.within(Duration::from_secs(300)).start()
}

/// Kills the operator twice while it archives; the sealed object equals the output.
fn killed_in_mid_upload(namespace: &Namespace) -> Result<()> {
    let mut reader = pushed_back(namespace, "upload")?;
    for part in [1, 2] {
        reader.wait_for_bytes(part * BYTES / 4)?;
        delete_operator_pods()?;
        wait_for_operator()?;
    }
    expect_whole(namespace, "upload", [reader])
}

/// Kills the store three times while it is written to; the sealed object equals the output.
fn the_store_is_killed(namespace: &Namespace, server: &mut S3) -> Result<()> {
    let mut reader = pushed_back(namespace, "kept")?;
    for part in [1, 2, 3] {
        reader.wait_for_bytes(part * BYTES / 5)?;
        server.kill()?;
    }
    expect_whole(namespace, "kept", [reader])
}

/// Every reader has received everything, and so has the archive.
fn expect_whole(namespace: &Namespace, name: &str, readers: impl IntoIterator<Item = Running>) -> Result<()> {
    let expected = sha256(&counting(BYTES));
    for (number, reader) in readers.into_iter().enumerate() {
        let read = reader.finish()?;
        read.expect_code(9)?;
        ensure!(
            read.stdout.len() == BYTES,
            "reader {number}: {} bytes: {}",
            read.stdout.len(),
            read.err()
        );
        ensure!(sha256(&read.stdout) == expected, "reader {number}: other bytes");
    }
    let status = namespace.wait_finished(name)?["status"].clone();
    let output = &status["attempts"][0]["output"];
    ensure!(
        output["sealed"] == true && output["stdout"]["sha256"] == expected,
        "{status:#}"
    );
    let verified = namespace.editor.rproc(&["logs", name, "--verify"]).finish()?;
    verified
        .expect_code(0)?
        .expect_stderr(&["verified by the seal and the status"])?;
    Ok(())
}

/// Names and addresses of the two replicas, once no third one is about to end.
fn replicas() -> Result<Vec<(String, String)>> {
    let path = r#"--output=jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{"\n"}{end}"#;
    until_some("two replicas with addresses", Duration::from_secs(60), || {
        let listed = kubectl(["get", "pods", OPERATORS, path, "--namespace"])
            .arg(RELEASE_NAMESPACE)
            .succeed()?;
        let replicas: Vec<_> = listed
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, address)| !address.is_empty())
            .map(|(pod, address)| (pod.to_owned(), address.to_owned()))
            .collect();
        Ok((replicas.len() == 2 && listed.lines().count() == 2).then_some(replicas))
    })
}

/// A running process; its home, and the address of a replica that is not its home.
fn homed(namespace: &Namespace, name: &str, script: &str) -> Result<(String, String)> {
    let spec = json!({"image": glibc(), "imagePullPolicy": "IfNotPresent", "command": ["bash", "-c", script]});
    namespace.apply(name, spec).succeed()?;
    let object = namespace.wait_running(name)?;
    let home = object["status"]["attempts"][0]["relay"]
        .as_str()
        .context("a relay")?
        .to_owned();
    let other = replicas()?.into_iter().find(|(pod, _)| *pod != home);
    Ok((home, other.context("another replica")?.1))
}

fn at(namespace: &Namespace, address: &str, arguments: &[&str]) -> Program {
    let server = format!("--server={address}:8443");
    namespace.editor.rproc(arguments).arg(server)
}

fn signal_and_stop_anywhere(namespace: &Namespace) -> Result<()> {
    let script = "trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let (_, other) = homed(namespace, "anywhere", script)?;
    let mut readers = Vec::new();
    for (_, address) in replicas()? {
        let mut reader = at(namespace, &address, &["logs", "-f", "anywhere"]).start()?;
        reader.wait_for_bytes("ready\n".len())?;
        readers.push(reader);
    }
    at(namespace, &other, &["signal", "anywhere", "USR1"]).succeed()?;
    for reader in &mut readers {
        reader.wait_for_bytes("ready\nusr1\n".len())?;
    }
    at(namespace, &other, &["stop", "anywhere"]).succeed()?;
    for reader in readers {
        let finished = reader.finish()?;
        ensure!(finished.expect_code(9)?.out() == "ready\nusr1\nterm\n", "{finished}");
    }
    Ok(())
}

fn the_home_dies(namespace: &Namespace) -> Result<()> {
    // About 10 s: parts with a pause between them.
    let script = format!(
        "seq 1 10000000 2>/dev/null | head -c {BYTES} > /tmp/all; for i in $(seq 0 99); do \
         tail -c +$((i * 300000 + 1)) /tmp/all | head -c 300000; sleep 0.1; done; exit 9"
    );
    let (home, other) = homed(namespace, "moves", &script)?;
    let mut readers = vec![
        at(namespace, &other, &["logs", "-f", "moves"]).start()?,
        namespace.editor.rproc(&["logs", "-f", "moves"]).start()?,
    ];
    for reader in &mut readers {
        reader.wait_for_bytes(1_000_000)?;
    }
    kubectl(["delete", "pod", &home, "--grace-period=0", "--force", "--namespace"])
        .arg(RELEASE_NAMESPACE)
        .succeed()?;
    expect_whole(namespace, "moves", readers)
}

fn what_is_removed_is_said_to_be(namespace: &Namespace) -> Result<()> {
    until("the removal of the output", Duration::from_secs(60), || {
        let logs = namespace.editor.rproc(&["logs", "moves"]).finish()?;
        Ok(logs.code == 125 && logs.err().contains("the archive removed them"))
    })
}
