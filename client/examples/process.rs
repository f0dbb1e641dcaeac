//! Lists processes, follows one from an offset, signals one, and runs one to completion:
//!
//! ```text
//! cargo run -p remoteprocess-client --example process -- list
//! cargo run -p remoteprocess-client --example process -- run busybox:1.36 seq 10
//! cargo run -p remoteprocess-client --example process -- follow NAME 1000
//! cargo run -p remoteprocess-client --example process -- signal NAME 1
//! ```

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::api::{ListParams, PostParams};
use remoteprocess_api::{RemoteProcess, names};
use remoteprocess_client::{
    Cluster, ClusterOptions, Dial, Follower, Ledger, Relay, Sink, SinkError, Want, control, gap,
};
use remoteprocess_proto::v1::{Cursor, Data, Exit, Gap, ProcessKey, SignalTarget, Stream};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    remoteprocess_tls::install_crypto_provider();
    let cluster = Arc::new(Cluster::open(&ClusterOptions::default()).await?);
    let relay = Relay::new(cluster.clone());
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["list"] => list(&cluster.processes())
            .await?
            .iter()
            .for_each(|line| println!("{line}")),
        ["follow", name, offset] => {
            let key = key(&cluster, name);
            println!("{}", follow(relay, key, offset.parse()?, std::io::stdout()).await?);
        }
        ["signal", name, number] => {
            let target = SignalTarget::Main;
            control::signal(&mut { relay }, key(&cluster, name), number.parse()?, target).await?;
        }
        ["run", image, ref command @ ..] => {
            let name = create(&cluster.processes(), image, command).await?;
            println!("{}", follow(relay, key(&cluster, &name), 0, std::io::stdout()).await?);
        }
        _ => return Err("list | follow NAME OFFSET | signal NAME NUMBER | run IMAGE COMMAND...".into()),
    }
    Ok(())
}

fn key(cluster: &Cluster, name: &str) -> ProcessKey {
    ProcessKey {
        namespace: cluster.namespace.clone(),
        name: name.to_owned(),
        ..ProcessKey::default()
    }
}

/// One line for each process of the namespace: its name and its phase.
pub(crate) async fn list(processes: &Api<RemoteProcess>) -> Result<Vec<String>> {
    let found = processes.list(&ListParams::default()).await?;
    let line = |object: &RemoteProcess| {
        let phase = object.status.as_ref().and_then(|status| status.phase);
        let phase = phase.map_or("Pending".into(), |phase| format!("{phase:?}"));
        format!("{} {phase}", object.metadata.name.as_deref().unwrap_or_default())
    };
    Ok(found.iter().map(line).collect())
}

/// Creates a process, and returns its name.
pub(crate) async fn create(processes: &Api<RemoteProcess>, image: &str, command: &[&str]) -> Result<String> {
    let object = serde_json::from_value(serde_json::json!({
        "apiVersion": format!("{}/v1alpha1", names::GROUP), "kind": "RemoteProcess",
        "metadata": {"generateName": "example-"},
        "spec": {"image": image, "command": command},
    }))?;
    let created = processes.create(&PostParams::default(), &object).await?;
    Ok(created.metadata.name.unwrap_or_default())
}

/// Writes standard output from `offset` to the end of the process, over as many connections as it takes, and returns
/// whether it matches the agent's seal.
pub(crate) async fn follow(
    relay: impl Dial,
    process: ProcessKey,
    offset: u64,
    out: impl Write + Send,
) -> Result<String> {
    let mut follower = Follower {
        dial: relay,
        ledger: Ledger::new(Want {
            process,
            stream: Stream::Stdout,
            cursor: Some(Cursor {
                stdout: offset,
                ..Cursor::default()
            }),
            follow: true,
            ..Want::default()
        }),
        sink: Copy {
            out,
            hash: Sha256::new(),
        },
        progress: (),
        // The relay may learn of a new process later than you.
        unknown_until: Instant::now() + Duration::from_secs(15),
    };
    let exit = follower.run().await?.ok_or("the process has not ended")?;
    if let Some(lost) = gap::losses(follower.ledger.losses()) {
        return Err(lost.into());
    }
    if let Some(wrong) = follower.ledger.audit(&exit) {
        return Err(wrong.into());
    }
    verify(&exit, offset, follower.sink.hash)
}

/// The seal has the hash of the whole stream, so it cannot verify a part.
fn verify(exit: &Exit, offset: u64, hash: Sha256) -> Result<String> {
    let seal = exit.seal.as_ref().filter(|_| exit.sealed);
    let seal = seal
        .and_then(|seal| seal.stdout.as_ref())
        .ok_or("the output is not sealed")?;
    if offset == 0 && seal.sha256[..] != hash.finalize()[..] {
        return Err("the output is not what the agent sealed".into());
    }
    let how = if offset == 0 { "by length and hash" } else { "by length" };
    Ok(format!(
        "ended with {}; {} bytes, verified {how}",
        exit.value, seal.bytes
    ))
}

/// A sink that writes and hashes the output.
struct Copy<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write + Send> Sink for Copy<W> {
    async fn attempt(&mut self, _: u32) -> std::result::Result<(), SinkError> {
        Ok(())
    }

    async fn data(&mut self, data: Data) -> std::result::Result<(), SinkError> {
        self.hash.update(&data.bytes);
        let written = self.out.write_all(&data.bytes);
        written.map_err(|error| SinkError::Write(error.to_string()))
    }

    async fn gap(&mut self, gap: Gap) -> std::result::Result<(), SinkError> {
        eprintln!("{}", gap::loss(&gap));
        Ok(())
    }

    async fn flush(&mut self) -> std::result::Result<(), SinkError> {
        self.out.flush().map_err(|error| SinkError::Write(error.to_string()))
    }
}
