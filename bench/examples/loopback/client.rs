//! The client, which writes to standard output: the library's follower over gRPC, or one of HTTP in one of its forms.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use clap::ValueEnum;
use remoteprocess_client::{Dial, DialError, Follower, Ledger, Sink, SinkError, Want};
use remoteprocess_proto::v1::{Data, Gap, ProcessKey};
use remoteprocess_tls::{Authority, Dialer, Role};
use tokio::time::{Duration, Instant};
use tonic::transport::Channel;

use crate::http::{Answer, Records, path};
use crate::operator::{Hello, NAME, NAMESPACE, TRUST_DOMAIN, certificate, identity, trust_domain};

/// How the client follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Face {
    /// gRPC
    Grpc,
    /// Raw bytes over HTTP/2
    Raw,
    /// Lines of JSON over HTTP/2
    Lines,
    /// Server-sent events over HTTP/2
    Events,
    /// Raw bytes by curl
    Curl,
}

struct Direct(Dialer, String);

impl Dial for Direct {
    async fn dial(&mut self) -> Result<Channel, DialError> {
        let channel = self.0.connect(&self.1, &Role::Operator).await;
        channel.map_err(|error| DialError::Unreachable(error.to_string()))
    }

    fn discredit(&mut self) {}
}

struct Stdout;

impl Sink for Stdout {
    async fn attempt(&mut self, _: u32) -> Result<(), SinkError> {
        Ok(())
    }

    async fn data(&mut self, data: Data) -> Result<(), SinkError> {
        let written = std::io::stdout().lock().write_all(&data.bytes);
        written.map_err(|error| SinkError::Write(error.to_string()))
    }

    async fn gap(&mut self, gap: Gap) -> Result<(), SinkError> {
        panic!("nothing is lost here: {gap:?}")
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Follows until the process ends.
pub(crate) fn run(hello: &str, face: Face) {
    let hello: Hello = serde_json::from_str(hello).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async {
        match face {
            Face::Grpc => follow_grpc(hello).await,
            Face::Raw => follow_raw(hello).await,
            Face::Lines => follow_records(hello, "application/x-ndjson").await,
            Face::Events => follow_records(hello, "text/event-stream").await,
            Face::Curl => panic!("curl is a program of its own"),
        }
    });
}

fn dialer(hello: &Hello) -> Dialer {
    let authority = Authority::from_pem(&hello.certificate, &hello.key, &trust_domain()).unwrap();
    Dialer::new(identity(&authority, &Role::User))
}

async fn follow_grpc(hello: Hello) {
    let mut follower = Follower {
        dial: Direct(dialer(&hello), hello.relay),
        ledger: Ledger::new(Want {
            process: ProcessKey {
                namespace: NAMESPACE.to_owned(),
                name: NAME.to_owned(),
                uid: String::new(),
            },
            follow: true,
            ..Want::default()
        }),
        sink: Stdout,
        progress: (),
        unknown_until: Instant::now() + Duration::from_secs(10),
    };
    follower.run().await.unwrap();
}

async fn follow_raw(hello: Hello) {
    let channel = dialer(&hello).connect(&hello.relay, &Role::Operator).await.unwrap();
    let mut answer = Answer::open(channel, None).await;
    while let Some(bytes) = answer.next().await {
        std::io::stdout().lock().write_all(&bytes).unwrap();
    }
}

async fn follow_records(hello: Hello, accept: &str) {
    let channel = dialer(&hello).connect(&hello.relay, &Role::Operator).await.unwrap();
    let mut answer = Answer::open(channel, Some(accept)).await;
    let mut records = Records::default();
    while let Some(bytes) = answer.next().await {
        for record in records.take(&bytes) {
            std::io::stdout().lock().write_all(record.text.as_bytes()).unwrap();
        }
    }
}

/// curl with a certificate of its own, in `folder`.
pub(crate) fn curl(hello: &str, folder: &Path) -> Command {
    let hello: Hello = serde_json::from_str(hello).unwrap();
    let authority = Authority::from_pem(&hello.certificate, &hello.key, &trust_domain()).unwrap();
    let (chain, key) = certificate(&authority, &Role::User);
    let mut curl = Command::new("curl");
    curl.args(["--disable", "--silent", "--show-error", "--no-buffer", "--noproxy", "*"]);
    for (flag, text) in [("--cert", &chain), ("--key", &key), ("--cacert", &hello.certificate)] {
        let path = folder.join(flag.trim_start_matches('-'));
        fs::write(&path, text).unwrap();
        curl.arg(flag).arg(path);
    }
    let name = format!("operator.{TRUST_DOMAIN}");
    curl.args(["--connect-to", &format!("{name}:443:{}", hello.relay)]);
    curl.arg(format!("https://{name}{}&stream=stdout", path()));
    curl
}
