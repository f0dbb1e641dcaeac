//! Clients by others, curl and an SSE library, over a proxy that cuts their connections: they resume as their own
//! documents say, and have every byte.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use remoteprocess_tls::Role;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::cutting_proxy::CuttingProxy;
use super::http_client::PROCESS;
use super::replica::Replica;
use super::replicas::hashes;
use super::resume::{archived, program};
use crate::relay::archive::Archive;
use crate::relay::live::fake_agent::{FakeAgent, pem};

/// Much longer than any program takes; only a hang lasts this long.
const DEADLINE: Duration = Duration::from_secs(120);
/// The relay's name in its certificate.
const NAME: &str = "operator.test.local";
const CUTS: usize = 10;
/// Bytes of the relay after which a connection is cut: more than a handshake and the largest record, and `CUTS` times
/// this is less than the output.
const ENOUGH: u64 = 120_000;

/// The credentials of a user, as files, and room for more.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in ["tls.crt", "tls.key", "ca.crt"].iter().zip(pem(&Role::User)) {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

async fn replica() -> Replica {
    Replica::start(&Archive::new(Arc::new(InMemory::new()))).await
}

/// Runs a program to its end.
async fn run(command: &mut Command) -> Output {
    let ended = command.kill_on_drop(true).output();
    let ended = timeout(DEADLINE, ended).await.expect("in time");
    ended.unwrap_or_else(|error| panic!("{:?}: {error}", command.as_std().get_program()))
}

/// curl with the credentials, which takes the proxy for the relay.
fn curl(folder: &Folder, proxy: SocketAddr, arguments: &[&str]) -> Command {
    let mut curl = Command::new("curl");
    // A configuration of the user has no say.
    curl.args(["--disable", "--silent", "--show-error", "--fail", "--noproxy", "*"]);
    for (flag, name) in [("--cert", "tls.crt"), ("--key", "tls.key"), ("--cacert", "ca.crt")] {
        curl.arg(flag).arg(folder.path(name));
    }
    curl.args(["--connect-to", &format!("{NAME}:443:{proxy}")])
        .args(arguments);
    curl
}

/// Downloads with `curl -C -`, again after each cut, and returns how often it broke off.
async fn download(folder: &Folder, proxy: SocketAddr, version: &str, url: &str, to: &Path) -> usize {
    let to = to.to_str().unwrap();
    for broken in 0.. {
        let before = fs::metadata(to).map_or(0, |file| file.len());
        let ran = run(&mut curl(folder, proxy, &[version, "-C", "-", "--output", to, url])).await;
        if ran.status.success() {
            return broken;
        }
        // 18: bytes are missing; 56: nothing more can be received; 92: the stream of HTTP/2 broke; 16: its connection.
        let code = ran.status.code();
        assert!(matches!(code, Some(16 | 18 | 56 | 92)), "{ran:?}");
        let now = fs::metadata(to).map_or(0, |file| file.len());
        assert!(now > before, "a try got nothing: {ran:?}");
        assert!(broken < 2 * CUTS, "{ran:?}");
    }
    unreachable!("the last try returns")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_resumes_a_download_that_is_cut_ten_times() {
    let program = program();
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let path = format!("{PROCESS}/output?stream=stdout");
    archived(&replica, &path).await;
    replica.record_end();
    let (folder, url) = (Folder::new(), format!("https://{NAME}{path}"));
    for version in ["--http1.1", "--http2"] {
        let proxy = CuttingProxy::start(replica.address, CUTS, ENOUGH).await;
        let file = folder.path(&format!("output{version}"));
        let broken = download(&folder, proxy.address, version, &url, &file).await;
        assert_eq!((broken, proxy.cuts()), (CUTS, CUTS), "{version}");
        let head = run(&mut curl(&folder, replica.address, &[version, "--head", &url])).await;
        let head = String::from_utf8(head.stdout).unwrap().to_lowercase();
        let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
        let got = hex::encode(Sha256::digest(fs::read(&file).unwrap()));
        assert_eq!(tag.trim_matches('"'), got, "{version}");
        assert_eq!(got, hex::encode(&hashes(&program)[0]), "{version}");
    }
}

/// What dev/sse/follow.py saw. It fails by itself if a record is missing or came twice.
async fn follow(folder: &Folder, proxy: SocketAddr) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../dev/sse/follow.py");
    let mut python = Command::new("python3");
    python.arg(script).args(["--name", NAME]);
    for (flag, name) in [("--cert", "tls.crt"), ("--key", "tls.key"), ("--cacert", "ca.crt")] {
        python.arg(flag).arg(folder.path(name));
    }
    python.arg(format!("https://{proxy}{PROCESS}/output?follow=true"));
    let ran = run(&mut python).await;
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sse_library_that_is_cut_ten_times_loses_and_doubles_nothing() {
    let program = program();
    program.written.send_replace(0);
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let proxy = CuttingProxy::start(replica.address, CUTS, ENOUGH).await;
    let folder = Folder::new();
    // The program runs until the last cut; each connection finds enough to be cut.
    let write = async {
        let deadline = Instant::now() + DEADLINE;
        while proxy.cuts() < CUTS {
            assert!(Instant::now() < deadline, "{} cuts", proxy.cuts());
            program.written.send_replace(3 * (proxy.cuts() + 1));
            sleep(Duration::from_millis(10)).await;
        }
        program.written.send_replace(program.history.len());
    };
    let (saw, ()) = tokio::join!(follow(&folder, proxy.address), write);
    let streams = ["stdout", "stderr"].map(|stream| saw["sha256"][stream].as_str().unwrap().to_owned());
    assert_eq!(streams, hashes(&program).map(hex::encode));
    assert_eq!(saw["end"]["exitCode"], 7, "{saw}");
    assert_eq!(saw["end"]["stdout"]["sha256"], streams[0].as_str(), "{saw}");
    assert_eq!(proxy.cuts(), CUTS);
    // Each cut, and the end, is followed by a request with the id of the last whole event; the last answer is 204.
    let sent = saw["lastEventIds"].as_array().unwrap();
    assert!(sent.len() >= CUTS + 2, "{saw}");
    assert!(sent[0].is_null() && sent[1..].iter().all(Value::is_string), "{saw}");
    assert_eq!(saw["status"], 204, "{saw}");
}
