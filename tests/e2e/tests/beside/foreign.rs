//! The clients in examples/clients: curl, and Python with gRPC.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use remoteprocess_e2e::{Namespace, Program, sha256, spec, until, with_temp_ns};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::peers::relay::{Relay, trust_domain};

/// Writes a line, waits for a signal, and ends with 3.
const SCRIPT: &str = "trap 'seq 1 20000; exit 3' USR1; echo first; while true; do sleep 0.05; done";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples/clients")
        .join(name)
}

/// The environment of both clients: a forward to the relay, and a certificate of the editor.
struct Setup {
    relay: Relay,
    certificates: TempDir,
    name: String,
}

impl Setup {
    fn of(namespace: &Namespace) -> Result<Self> {
        let certificates = TempDir::new()?;
        let folder = certificates.path().to_string_lossy().into_owned();
        let told = namespace.editor.rproc(&["login", "--output-dir", &folder]).succeed()?;
        let name = format!("operator.{}", trust_domain()?.as_str());
        ensure!(told.contains(&name), "{told}");
        namespace.apply("hello", spec(SCRIPT, json!({}))).succeed()?;
        namespace.wait_running("hello")?;
        Ok(Self {
            relay: Relay::reach()?,
            certificates,
            name,
        })
    }

    fn client(&self, namespace: &Namespace, program: &str, arguments: &[&str]) -> Program {
        Program::new(program, arguments)
            .env("RELAY", &self.relay.main)
            .env("RELAY_NAME", &self.name)
            .env("CERTS", self.certificates.path())
            .env("NAMESPACE", &namespace.name)
    }
}

#[test]
fn curl_lists_follows_signals_and_downloads() {
    with_temp_ns("curl", |namespace| {
        let setup = Setup::of(namespace)?;
        let script = example("relay.sh").to_string_lossy().into_owned();
        let curl = |arguments: &[&str]| setup.client(namespace, "sh", &[&[script.as_str()], arguments].concat());
        let list = curl(&["list"]).json()?;
        ensure!(list["items"][0]["metadata"]["name"] == "hello", "{list}");
        let follow = curl(&["follow", "hello"]).start()?;
        until("the first line", Duration::from_secs(30), || Ok(follow.received() > 0))?;
        curl(&["signal", "hello", "USR1"]).succeed()?;
        let lines = follow.finish()?.out();
        let records: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let output: String = records.iter().filter_map(|record| record["text"].as_str()).collect();
        ensure!(
            output.starts_with("first\n1\n2\n") && output.ends_with("\n20000\n"),
            "{lines}"
        );
        let end = records.last().unwrap_or(&Value::Null);
        ensure!(
            end["type"] == "end" && end["exitCode"] == 3 && end["sealed"] == true,
            "{end}"
        );
        ensure!(end["stdout"]["sha256"] == sha256(output.as_bytes()).as_str(), "{end}");
        // From the cursor of the first record on, only the rest comes.
        let cursor = records
            .iter()
            .find_map(|record| record["cursor"].as_str().filter(|_| record["type"] == "data"));
        let rest = curl(&["follow", "hello", cursor.unwrap_or_default()]).succeed()?;
        ensure!(rest.contains("\"type\":\"end\"") && !rest.contains("first"), "{rest}");
        let file = setup.certificates.path().join("hello.out");
        let path = file.to_string_lossy().into_owned();
        std::fs::write(&file, &output.as_bytes()[..1000])?;
        until("a sealed output", Duration::from_secs(30), || {
            Ok(curl(&["download", "hello", "stdout", &path])
                .finish()?
                .expect_code(0)
                .is_ok())
        })?;
        ensure!(std::fs::read_to_string(&file)? == output, "resumed at byte 1000");
        Ok(())
    });
}

/// `rproc proxy` has the certificate, and curl the bearer token of its link.
#[test]
fn curl_needs_no_certificate_behind_a_proxy() {
    with_temp_ns("proxy", |namespace| {
        namespace.apply("hello", spec(SCRIPT, json!({}))).succeed()?;
        namespace.wait_running("hello")?;
        let proxy = namespace.editor.rproc(&["proxy"]).start()?;
        until("the link", Duration::from_secs(60), || Ok(proxy.said().ends_with('\n')))?;
        let link = proxy.said().trim().to_owned();
        let base = link.split("/login").next().unwrap_or_default();
        let processes = format!("{base}/v1/namespaces/{}/processes", namespace.name);
        let session = Program::new("curl", ["-sS", "--fail", "-H", "Accept: application/json", &link]).json()?;
        let bearer = format!(
            "Authorization: Bearer {}",
            session["token"].as_str().unwrap_or_default()
        );
        let curl = |arguments: &[&str]| {
            let common = ["-sS", "--fail", "--no-buffer", "-H", bearer.as_str()];
            Program::new("curl", [&common[..], arguments].concat())
        };
        let list = curl(&[&processes]).json()?;
        ensure!(list["items"][0]["metadata"]["name"] == "hello", "{list}");
        let output = format!("{processes}/hello/output?follow=true");
        let follow = curl(&["-H", "Accept: application/x-ndjson", &output]).start()?;
        until("the first line", Duration::from_secs(30), || {
            Ok(follow.said().contains("first"))
        })?;
        let (json, signal) = ("Content-Type: application/json", format!("{processes}/hello/signal"));
        curl(&["-H", json, "-d", r#"{"signal":"USR1"}"#, &signal]).succeed()?;
        let lines = follow.finish()?.out();
        let end: Value = serde_json::from_str(lines.lines().last().unwrap_or_default())?;
        ensure!(end["type"] == "end" && end["exitCode"] == 3, "{end}");
        let bytes = curl(&[&format!("{output}&stream=stdout")]).succeed()?;
        ensure!(
            bytes.starts_with("first\n1\n") && bytes.ends_with("\n20000\n"),
            "{bytes}"
        );
        let stranger = Program::new("curl", ["-sS", "-o", "/dev/null", "-w", "%{http_code}", &processes]).succeed()?;
        ensure!(stranger == "401", "{stranger}");
        Ok(())
    });
}

#[test]
fn python_lists_follows_and_signals() {
    let has_grpc = Program::new("python3", ["-c", "import grpc, grpc_tools"]).finish();
    if !has_grpc.is_ok_and(|finished| finished.expect_code(0).is_ok()) {
        println!("left out: python3 has no grpcio and grpcio-tools (pip install grpcio grpcio-tools)");
        return;
    }
    with_temp_ns("python", |namespace| {
        let setup = Setup::of(namespace)?;
        let script = example("relay.py").to_string_lossy().into_owned();
        let python = |arguments: &[&str]| setup.client(namespace, "python3", &[&[script.as_str()], arguments].concat());
        let list = python(&["list"]).succeed()?;
        ensure!(list == "hello PHASE_RUNNING 1\n", "{list}");
        let mut follow = python(&["follow", "hello", "3"]).start()?;
        follow.wait_for_bytes(3)?;
        python(&["signal", "hello", "10"]).succeed()?;
        let finished = follow.finish()?;
        finished.expect_code(3)?;
        ensure!(
            finished.out().starts_with("st\n1\n2\n") && finished.out().ends_with("\n20000\n"),
            "{finished}"
        );
        Ok(())
    });
}
