//! Many followers of one process at one replica, some of which take nothing.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use object_store::memory::InMemory;
use tokio::time::{sleep, timeout};

use super::replica::{Got, Replica};
use super::replicas::hashes;
use crate::relay::archive::Archive;
use crate::relay::core::streams::{Limits, Streams};
use crate::relay::faces::Switches;
use crate::relay::live::fake_agent::{FakeAgent, Program};

/// Much longer than any case takes; only a hang lasts this long.
const DEADLINE: Duration = Duration::from_secs(240);
/// Streams on one connection: the relay takes 128.
const STREAMS: usize = 100;

async fn replica() -> Replica {
    Replica::start(&Archive::new(Arc::new(InMemory::new()))).await
}

/// Resident memory of this program, in bytes.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_follower_gets_every_byte() {
    let followers: usize = if std::env::var("RPROC_LONG").is_ok_and(|long| long == "1") {
        1000
    } else {
        200
    };
    let chunks: Vec<(bool, usize)> = (0..200).map(|index| (index % 7 == 0, 1 + index * 53 % 9000)).collect();
    let program = Program::new(&chunks);
    program.written.send_replace(100);
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let mut readers = Vec::new();
    for _ in 0..followers.div_ceil(STREAMS) {
        let client = replica.client().await;
        for _ in 0..STREAMS.min(followers - readers.len()) {
            let mut client = client.clone();
            readers.push(tokio::spawn(async move {
                let mut got = Got::default();
                let mut stream = got.follow(&mut client).await.unwrap();
                let exit = got.take(&mut stream, u64::MAX).await.unwrap().unwrap();
                (exit.value, got.at, got.hashes())
            }));
        }
    }
    program.written.send_replace(program.history.len());
    let expected = (7, program.end(), hashes(&program));
    for reader in timeout(DEADLINE, join_all(readers)).await.expect("in time") {
        assert_eq!(reader.unwrap(), expected);
    }
}

/// Of too many stalled followers, some lose their connection. They lose no byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_too_many_stalled_followers_some_are_cut_and_lose_nothing() {
    let program = Program::new(&vec![(false, 60_000); 600]);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let streams = Streams::new(Limits {
        of_a_user: 100,
        of_all: 100,
        stalled: 2,
    });
    let archive = Archive::new(Arc::new(InMemory::new()));
    let replica = Replica::start_limited(&archive, Switches::default(), streams.clone()).await;
    replica.open(&agent);
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut client = replica.client().await;
        let mut got = Got::default();
        let mut stream = got.follow(&mut client).await.unwrap();
        got.take(&mut stream, 60_000).await.unwrap();
        stalled.push((client, got, stream));
    }
    program.written.send_replace(program.history.len());
    let settled = async {
        while streams.counts() != [2, 2] {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, settled).await.expect("two are cut");
    let mut cut = 0;
    for (_client, mut got, mut stream) in stalled {
        let read = got.take(&mut stream, u64::MAX).await;
        if read.is_err() {
            cut += 1;
            let mut client = replica.client().await;
            let mut stream = got.follow(&mut client).await.unwrap();
            got.take(&mut stream, u64::MAX).await.unwrap().expect("the end");
        }
        assert_eq!(got.hashes(), hashes(&program));
    }
    assert_eq!(cut, 2);
}

/// Stalled followers hold what the kernel and two windows hold, not what they have missed; later they get all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_follower_costs_little_and_delays_no_other() {
    const STALLED: usize = 4;
    let program = Program::new(&vec![(false, 60_000); 1200]);
    program.written.send_replace(1);
    let agent = FakeAgent::serve(&program).await;
    let replica = replica().await;
    replica.open(&agent);
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let mut client = replica.client().await;
        let mut got = Got::default();
        let mut stream = got.follow(&mut client).await.unwrap();
        got.take(&mut stream, 60_000).await.unwrap();
        stalled.push((client, got, stream));
    }
    let mut client = replica.client().await;
    let mut quick = Got::default();
    let mut stream = quick.follow(&mut client).await.unwrap();
    let before = memory();
    program.written.send_replace(program.history.len());
    let exit = timeout(DEADLINE, quick.take(&mut stream, u64::MAX))
        .await
        .expect("in time");
    assert!(exit.unwrap().is_some());
    // The ring and the archive, which is in memory here, and 16 MiB for each stalled follower.
    let output = usize::try_from(program.end().stdout).unwrap();
    let grown = memory().saturating_sub(before);
    assert!(grown < (8 << 20) + 2 * output + STALLED * (16 << 20), "{grown} bytes");
    assert_eq!(quick.hashes(), hashes(&program));
    for (_client, mut got, mut stream) in stalled {
        let exit = timeout(DEADLINE, got.take(&mut stream, u64::MAX))
            .await
            .expect("in time");
        assert!(exit.unwrap().is_some());
        assert_eq!(got.hashes(), hashes(&program));
    }
}
