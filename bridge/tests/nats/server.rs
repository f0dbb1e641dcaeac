//! A nats-server of its own: its data is in a folder that goes away with it.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::env;
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::Info;
use futures::TryStreamExt as _;
use remoteprocess_ports::free_port;
use tempfile::TempDir;

/// How long the server may take to start.
const START: Duration = Duration::from_secs(20);

/// A running server.
pub(crate) struct Server {
    program: String,
    arguments: Vec<String>,
    folder: TempDir,
    port: u16,
    running: Option<Child>,
}

impl Server {
    /// Starts one; `None`, with a sentence, if this machine has none.
    pub(crate) fn start(arguments: &[&str]) -> Option<Self> {
        let Ok(program) = env::var("RPROC_NATS_SERVER") else {
            eprintln!("left out: RPROC_NATS_SERVER does not name a nats-server; cargo xtask test sets it");
            return None;
        };
        let mut server = Self {
            program,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            folder: tempfile::tempdir().expect("a folder"),
            port: free_port(),
            running: None,
        };
        server.begin();
        Some(server)
    }

    /// Starts it, again with the same data.
    pub(crate) fn begin(&mut self) {
        let running = Command::new(&self.program)
            .args(["--jetstream", "--addr", "127.0.0.1", "--port"])
            .arg(self.port.to_string())
            .arg("--store_dir")
            .arg(self.folder.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let running = self.running.insert(running.expect("nats-server starts"));
        let begin = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let has_ended = running.try_wait().expect("its state").is_some();
            assert!(!has_ended && begin.elapsed() < START, "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.kill();
            let _ = running.wait();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A connection of the test.
    pub(crate) async fn context(&self) -> jetstream::Context {
        let client = async_nats::connect(self.url()).await.expect("a connection");
        jetstream::new(client)
    }

    /// Messages of the stream that wait, or were delivered and have no answer, for its only consumer.
    pub(crate) async fn unsettled(&self, stream: &str) -> u64 {
        let stream = self.context().await.get_stream(stream).await.expect("the stream");
        let consumers: Vec<Info> = stream.consumers().try_collect().await.expect("the consumers");
        assert_eq!(consumers.len(), 1);
        let unanswered = u64::try_from(consumers[0].num_ack_pending).expect("a number");
        consumers[0].num_pending + unanswered
    }

    pub(crate) async fn until_settled(&self, stream: &str) {
        let begin = Instant::now();
        while self.unsettled(stream).await > 0 {
            assert!(begin.elapsed() < Duration::from_secs(40), "messages without an answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
