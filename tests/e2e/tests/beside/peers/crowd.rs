//! More readers than can be started as separate programs.

use anyhow::{Context, Result, bail, ensure};
use remoteprocess_e2e::{seq, sha256, spec, with_temp_ns};
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{ProcessKey, Stream, WatchOutputRequest};
use remoteprocess_tls::{Role, User};
use serde_json::json;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::block_on;
use super::relay::Relay;

const READERS: usize = 1000;
/// A connection takes at most 128 calls at a time.
const CONNECTIONS: usize = 20;
const LAST: u32 = 60_000;

#[test]
fn a_thousand_readers_read_the_same() {
    with_temp_ns("crowd", |namespace| {
        let half = LAST / 2;
        let script = format!(
            "seq 1 {half}; while [ ! -f /tmp/go ]; do sleep 0.05; done; seq {} {LAST}; echo end >&2; exit 3",
            half + 1
        );
        namespace.apply("source", spec(&script, json!({}))).succeed()?;
        namespace.wait_running("source")?;
        let relay = Relay::reach()?;
        let user = User {
            name: format!("system:serviceaccount:{}:editor", namespace.name),
            groups: vec!["system:authenticated".to_owned()],
            ..User::default()
        };
        let key = ProcessKey {
            namespace: namespace.name.clone(),
            name: "source".to_owned(),
            uid: String::new(),
        };
        let expected = sha256(&seq(1, LAST));
        block_on(async {
            // All readers have begun before the second half is written.
            let all_read = std::sync::Arc::new(Barrier::new(READERS + 1));
            let mut readers = JoinSet::new();
            for _ in 0..CONNECTIONS {
                let channel = relay.main(&relay.identity(&Role::User, Some(&user))?).await?;
                for _ in 0..READERS / CONNECTIONS {
                    readers.spawn(read(channel.clone(), key.clone(), all_read.clone()));
                }
            }
            all_read.wait().await;
            namespace.in_container("source", "touch /tmp/go")?;
            while let Some(reader) = readers.join_next().await {
                let (stdout, stderr) = reader??;
                ensure!(sha256(&stdout) == expected, "{} bytes", stdout.len());
                ensure!(stderr == b"end\n", "{stderr:?}");
            }
            Ok(())
        })
    });
}

/// Reads both streams of the process, without holes and up to its end.
async fn read(channel: Channel, key: ProcessKey, first: std::sync::Arc<Barrier>) -> Result<(Vec<u8>, Vec<u8>)> {
    let request = WatchOutputRequest {
        protocol: 1,
        process: Some(key),
        follow: true,
        ..Default::default()
    };
    let mut frames = RelayClient::new(channel).watch_output(request).await?.into_inner();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let frame = frames.message().await?.context("the stream ends without an exit")?;
        match frame.frame {
            Some(Frame::Data(data)) => {
                if stdout.is_empty() {
                    first.wait().await;
                }
                let sink = match data.stream() {
                    Stream::Stderr => &mut stderr,
                    _ => &mut stdout,
                };
                ensure!(
                    data.offset == sink.len() as u64,
                    "offset {} after {}",
                    data.offset,
                    sink.len()
                );
                sink.extend_from_slice(&data.bytes);
            }
            Some(Frame::Gap(gap)) => bail!("{gap:?}"),
            Some(Frame::Exit(exit)) => {
                ensure!(
                    exit.outcome() == Outcome::Code && exit.value == 3 && exit.sealed,
                    "{exit:?}"
                );
                return Ok((stdout, stderr));
            }
            _ => {}
        }
    }
}
