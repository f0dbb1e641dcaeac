//! Agent, entrypoint and program, as in a pod, and their relay.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::operator::{Hello, NAMESPACE, POD_UID, TOKEN, TRUST_DOMAIN, UID};

/// Everything except the client. Its processes end with it.
pub(crate) struct Pod {
    folder: TempDir,
    pub operator: Child,
    pub agent: Child,
    pub entrypoint: Child,
    pub hello: String,
}

impl Pod {
    /// Starts the relay and a pod that runs the writer, which waits for [`Pod::open_gate`] after its warm-up.
    pub(crate) fn start(build: &Path, writer: &[String]) -> Self {
        let folder = tempfile::tempdir_in(build).unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["handover", "spool", "archive"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("token"), TOKEN).unwrap();
        let mut operator = Command::new(build.join("examples/loopback"))
            .arg("operator")
            .arg(path("archive"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let hello = first_line(operator.stdout.as_mut().unwrap());
        let agent = agent(build, folder.path(), &serde_json::from_str(&hello).unwrap());
        let entrypoint = Command::new(build.join("entrypoint"))
            .arg("--subreaper")
            .arg("--socket")
            .arg(path("handover/socket"))
            .arg("--")
            .arg(build.join("bench-writer"))
            .arg("--gate")
            .arg(path("gate"))
            .arg("--hold")
            .arg(path("end"))
            .args(writer)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            folder,
            operator,
            agent,
            entrypoint,
            hello,
        }
    }

    /// Lets the writer continue.
    pub(crate) fn open_gate(&self) {
        fs::write(self.folder.path().join("gate"), "").unwrap();
    }

    /// Lets the writer end when it has written everything.
    pub(crate) fn end(&self) {
        fs::write(self.folder.path().join("end"), "").unwrap();
    }

    /// Where it keeps its files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The writer ends, and the entrypoint with it.
        let _ = fs::write(self.folder.path().join("gate"), "");
        let _ = fs::write(self.folder.path().join("end"), "");
        let _ = self.entrypoint.wait();
        for child in [&mut self.agent, &mut self.operator] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The first line that a child prints.
pub(crate) fn first_line(stdout: &mut ChildStdout) -> String {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn agent(build: &Path, folder: &Path, hello: &Hello) -> Child {
    Command::new(build.join("agent"))
        .arg("run")
        .env("RPROC_RELAY_ENROLL", &hello.enroll)
        .env("RPROC_RELAY", &hello.relay)
        .env("RPROC_CA_BUNDLE", &hello.certificate)
        .env("RPROC_TRUST_DOMAIN", TRUST_DOMAIN)
        .env("RPROC_PROCESS_NAMESPACE", NAMESPACE)
        .env("RPROC_PROCESS_NAME", "measured")
        .env("RPROC_PROCESS_UID", UID)
        .env("RPROC_ATTEMPT", "1")
        .env("RPROC_POD_UID", POD_UID)
        .env("RPROC_POD_IP", "127.0.0.1")
        .env("RPROC_LISTEN_PORT", "0")
        .env("RPROC_SPOOL_SIZE", (64 << 20).to_string())
        .env("RPROC_LOG", "warn")
        .env("RPROC_TOKEN_FILE", folder.join("token"))
        .env("RPROC_HANDOVER", folder.join("handover"))
        .env("RPROC_SPOOL", folder.join("spool"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}
