//! The archive in a real S3 server (dev/s3/serve.py), written by processes that are killed during an upload, and over a
//! connection that breaks.

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use remoteprocess_operator::relay::archive::{Archive, Bucket, Error, StoreConfig};
use remoteprocess_operator::relay::attempt::{AttemptKey, Subject};
use remoteprocess_operator::relay::piece::{Placed, data, distance};
use remoteprocess_proto::Checksum;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::{Cursor, Exit, Seal, Stream, StreamSeal};
use sha2::{Digest, Sha256};

/// Names the part that a process of this program plays; without it, the process is the test.
const ROLE: &str = "RPROC_S3_TEST_ROLE";
const ENDPOINT: &str = "RPROC_S3_TEST_ENDPOINT";
const PIECE: usize = 64 * 1024;
const PIECES: u64 = 448;
/// What Google's client accepts as a key without authenticating.
const GCS_KEY: &str = r#"{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}"#;

/// A process that ends with the test.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let stdout = child.stdout.take().expect("a pipe");
        let lines = BufReader::new(stdout).lines();
        Self { child, lines }
    }

    /// Reads up to a line that begins with this, and returns the rest of it; `None` if the process ends before.
    fn wait_for(&mut self, beginning: &str) -> Option<String> {
        self.lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix(beginning).map(str::to_owned))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server and its URL.
fn server() -> (Process, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../dev/s3/serve.py");
    let mut server = Process::start(Command::new("python3").arg(script));
    let url = server
        .wait_for("listening on ")
        .expect("the server's packages are there");
    (server, url)
}

/// This program again, as `role`: credentials are taken from the environment, and only a process can be killed.
fn actor(test: &str, role: &str, endpoint: &str) -> Process {
    let program = std::env::current_exe().expect("its own path");
    Process::start(
        Command::new(program)
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, role)
            .env(ENDPOINT, endpoint)
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("GOOGLE_SERVICE_ACCOUNT_KEY", GCS_KEY),
    )
}

fn say(line: &str) {
    println!("\n{line}");
    let _ = std::io::stdout().flush();
}

/// Plays the part that the environment names; false for the test itself.
fn plays_a_part() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    remoteprocess_tls::install_crypto_provider();
    let bucket = Bucket {
        name: "archive".to_owned(),
        prefix: "some/where".to_owned(),
        endpoint: std::env::var(ENDPOINT).ok(),
        ca: None,
    };
    let config = match role.as_str() {
        "gcs" => StoreConfig::Gcs(bucket),
        _ => StoreConfig::S3 {
            bucket,
            region: "us-east-1".to_owned(),
            path_style: true,
        },
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let archive = Archive::open(&config).expect("the settings fit");
        match role.as_str() {
            "read" => read(&archive).await,
            _ => write(&archive).await,
        }
    });
    true
}

fn subject() -> Subject {
    Subject {
        namespace: "default".to_owned(),
        name: "hello".to_owned(),
        pod_uid: "pod-1".to_owned(),
        key: AttemptKey {
            uid: "0c1d-7".to_owned(),
            attempt: 1,
        },
    }
}

/// The n-th piece of the history: text that compresses a little, every fourth on stderr.
fn piece(number: u64) -> (Stream, Vec<u8>) {
    let stream = if number % 4 == 3 {
        Stream::Stderr
    } else {
        Stream::Stdout
    };
    let mut state = number + 1;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        b'a' + u8::try_from((state >> 33) % 26).unwrap_or_default()
    });
    (stream, bytes.take(PIECE).collect())
}

fn history() -> Vec<Placed> {
    let mut at = Cursor::default();
    let pieces = (0..PIECES).map(|number| {
        let (stream, bytes) = piece(number);
        let placed = Placed {
            start: at,
            piece: data(stream, at.of(stream), 1, Bytes::from(bytes)),
        };
        at = placed.end();
        placed
    });
    pieces.collect()
}

/// The seal of an agent that has seen the whole history.
fn seal_of(stream: Stream) -> StreamSeal {
    let (mut bytes, mut hash, mut checksum) = (0, Sha256::new(), Checksum::default());
    for (_, part) in (0..PIECES).map(piece).filter(|(of, _)| *of == stream) {
        bytes += part.len() as u64;
        hash.update(&part);
        checksum.update(&part);
    }
    StreamSeal {
        bytes,
        sha256: hash.finalize().to_vec().into(),
        checksum: Some(checksum.value()),
        ..StreamSeal::default()
    }
}

/// Continues where the archive ends, with several puts in progress, and seals.
async fn write(archive: &Archive) {
    let mut writer = loop {
        match archive.writer(subject()).await {
            Ok(writer) => break writer,
            Err(error) => failed(&error).await,
        }
    };
    say(&format!("resumed {}", distance(&writer.saved())));
    let saved = distance(&writer.saved());
    for placed in history().iter().filter(|placed| distance(&placed.start) >= saved) {
        writer.append(placed);
        while writer.is_full() {
            if writer.may_store() {
                writer.store().await;
                say("put");
                break;
            }
            match writer.settle().await {
                Ok(saved) => say(&format!("saved {}", distance(&saved))),
                Err(error) => failed(&error).await,
            }
        }
    }
    let exit = Exit {
        outcome: Outcome::Code.into(),
        seal: Some(Seal {
            stdout: Some(seal_of(Stream::Stdout)),
            stderr: Some(seal_of(Stream::Stderr)),
            ..Seal::default()
        }),
        ..Exit::default()
    };
    loop {
        match writer.seal(&exit).await {
            Ok(manifest) => return say(&format!("sealed {}", manifest.sealed)),
            Err(error) => failed(&error).await,
        }
    }
}

/// The pause of one who tries again.
async fn failed(error: &Error) {
    say(&format!("failed {} {error}", error.unavailable().reason()));
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Reads everything and compares it with what was written.
async fn read(archive: &Archive) {
    let key = subject().key;
    let mut reader = archive.reader(&key);
    let mut at = Cursor::default();
    let mut hashes = [Sha256::new(), Sha256::new()];
    loop {
        let pieces = reader.next(at).await.expect("the archive answers");
        let Some(last) = pieces.last() else { break };
        for placed in &pieces {
            let index = usize::from(placed.piece.stream() == Stream::Stderr);
            hashes[index].update(placed.piece.bytes());
        }
        at = last.end();
    }
    let found = hashes.map(|hash| hash.finalize().to_vec());
    let expected = [Stream::Stdout, Stream::Stderr].map(|stream| seal_of(stream).sha256.to_vec());
    let sealed = archive
        .manifest(&key)
        .await
        .expect("it is there")
        .is_some_and(|manifest| manifest.sealed);
    say(&format!("equal {} sealed {sealed}", found == expected));
}

#[test]
fn killed_in_mid_upload_the_sealed_object_equals_the_output() {
    const NAME: &str = "killed_in_mid_upload_the_sealed_object_equals_the_output";
    if plays_a_part() {
        return;
    }
    let (_server, url) = server();
    let mut resumed = Vec::new();
    for puts in [1, 2, 1, 3, 2, 1] {
        let mut writer = actor(NAME, "write", &url);
        resumed.push(writer.wait_for("resumed ").expect("it resumes"));
        for _ in 0..puts {
            writer.wait_for("put").expect("more to put");
        }
        // SIGKILL, with the put under way.
        drop(writer);
    }
    let mut last = actor(NAME, "write", &url);
    let resumed_last: u64 = last
        .wait_for("resumed ")
        .and_then(|at| at.parse().ok())
        .expect("a number");
    assert!(resumed_last > 0, "something of it was kept: {resumed:?}");
    assert_eq!(last.wait_for("sealed ").as_deref(), Some("true"));
    let mut reader = actor(NAME, "read", &url);
    assert_eq!(reader.wait_for("equal ").as_deref(), Some("true sealed true"));
}

/// Connections to the server, which can be cut and refused.
struct Line {
    is_up: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    url: String,
}

impl Line {
    fn to(url: &str) -> Self {
        let target = url.strip_prefix("http://").expect("a plain URL").to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (is_up, open) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
        let (up, kept) = (is_up.clone(), open.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(&target) else { continue };
                let mut kept = kept.lock().expect("no panic");
                if !up.load(Ordering::SeqCst) {
                    continue;
                }
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else {
                        continue;
                    };
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
                kept.extend([near, far]);
            }
        });
        let url = format!("http://127.0.0.1:{port}");
        Self { is_up, open, url }
    }

    fn cut(&self) {
        let mut open = self.open.lock().expect("no panic");
        self.is_up.store(false, Ordering::SeqCst);
        for stream in open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn restore(&self) {
        self.is_up.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_server_that_goes_away_and_comes_back_has_everything() {
    const NAME: &str = "a_server_that_goes_away_and_comes_back_has_everything";
    if plays_a_part() {
        return;
    }
    let (_server, url) = server();
    let line = Line::to(&url);
    let mut writer = actor(NAME, "write", &line.url);
    for _ in 0..2 {
        writer.wait_for("put").expect("more to put");
        line.cut();
        let failed = writer.wait_for("failed ").expect("it notices");
        assert!(failed.starts_with("StoreUnreachable"), "{failed}");
        line.restore();
        writer.wait_for("saved ").expect("it goes on");
    }
    assert_eq!(writer.wait_for("sealed ").as_deref(), Some("true"));
    let mut reader = actor(NAME, "read", &url);
    assert_eq!(reader.wait_for("equal ").as_deref(), Some("true sealed true"));
}

/// Both services speak the same XML; what is Google's own (its tokens, its condition for a put) is not proven by this.
#[test]
fn the_client_of_gcs_writes_what_can_be_read() {
    const NAME: &str = "the_client_of_gcs_writes_what_can_be_read";
    if plays_a_part() {
        return;
    }
    let (_server, url) = server();
    let mut writer = actor(NAME, "gcs", &url);
    assert_eq!(writer.wait_for("sealed ").as_deref(), Some("true"));
    let mut reader = actor(NAME, "read", &url);
    assert_eq!(reader.wait_for("equal ").as_deref(), Some("true sealed true"));
}
