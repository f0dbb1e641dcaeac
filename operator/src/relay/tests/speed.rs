//! How fast one replica is, agent and followers in the same program. Not a test: prints what it measures.
//!
//! `cargo test --release -p remoteprocess-operator --lib relay::tests::speed -- --ignored --nocapture`

use std::time::Instant;

use futures::future::join_all;
use remoteprocess_proto::v1::output_frame::Frame;

use super::replica::{Got, Replica};
use crate::relay::archive::Archive;
use crate::relay::session::fake_agent::{FakeAgent, Program};

/// CPU time of this program so far, in seconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks: f64 = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum();
    ticks / 100.0
}

#[rstest::rstest]
#[case::blocks(64 * 1024, 16 * 1024, 1)]
#[case::lines(2000, 128 * 1024, 1)]
#[case::many(64 * 1024, 1024, 50)]
#[ignore = "measures"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_per_second(#[case] piece: usize, #[case] count: usize, #[case] followers: usize) {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::start(&Archive::local(directory.path()).unwrap()).await;
    let program = Program::of_zeros(piece, count);
    let agent = FakeAgent::serve(&program).await;
    let mut streams = Vec::new();
    for _ in 0..followers {
        let got = Got::default();
        let mut client = replica.client().await;
        streams.push((got.follow(&mut client).await.unwrap(), client));
    }
    let (begun, before) = (Instant::now(), cpu());
    replica.open(&agent);
    let read = streams.into_iter().map(|(mut stream, client)| {
        tokio::spawn(async move {
            let (mut bytes, mut frames) = (0, 0);
            while let Some(frame) = stream.message().await.unwrap() {
                if let Some(Frame::Data(data)) = frame.frame {
                    bytes += data.bytes.len() as u64;
                    frames += 1;
                }
            }
            drop(client);
            (bytes, frames)
        })
    });
    let (mut bytes, mut frames) = (0, 0);
    for read in join_all(read).await {
        let read = read.unwrap();
        (bytes, frames) = (bytes + read.0, frames + read.1);
    }
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu() - before);
    println!(
        "{followers} followers, pieces of {piece}: {:.0} MB/s, {:.2} ns of CPU per byte delivered, {} bytes per frame",
        bytes as f64 / seconds / 1e6,
        cpu * 1e9 / bytes as f64,
        bytes / frames.max(1),
    );
    assert_eq!(bytes, (piece * count * followers) as u64);
}
