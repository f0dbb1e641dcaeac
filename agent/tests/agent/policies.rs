//! A spool that is too small: each policy is obeyed, and the missing bytes add up.

use std::time::{Duration, Instant};

use remoteprocess_proto::v1::launch_settings::WhenFull;
use remoteprocess_proto::v1::{GapReason, Stream};
use rustix::process::Signal;
use sha2::{Digest, Sha256};

use super::pod::{Options, Pod, launch_with};
use super::relay::{Archive, TestRelay};
use super::{in_time, until};

fn options(when_full: WhenFull, stall_millis: u64) -> Options {
    Options {
        supervised: true,
        spool_size: 2 << 20,
        stall_millis,
        ..launch_with(|launch| launch.set_when_full(when_full))
    }
}

/// 40 MB on stdout and 400 kB on stderr, then code 5.
const SCRIPT: &str = "yes 'a line of the output' | head -c 40000000; \
    yes 'a complaint' | head -c 400000 >&2; exit 5";

fn line_by_line(line: &str, length: usize) -> Vec<u8> {
    line.bytes().cycle().take(length).collect()
}

/// The seal counts everything, and gaps and bytes together are everything.
fn check(archive: &Archive) {
    let exit = archive.exit();
    assert_eq!(exit.value, 5);
    let seal = exit.seal.clone().unwrap();
    let (stdout, stderr) = (seal.stdout.unwrap(), seal.stderr.unwrap());
    assert_eq!((stdout.bytes, stderr.bytes), (40_000_000, 400_000));
    assert_eq!(
        (archive.cursor.stdout, archive.cursor.stderr),
        (stdout.bytes, stderr.bytes)
    );
    assert_eq!(stdout.dropped_bytes, archive.missing(Stream::Stdout));
    assert_eq!(stderr.dropped_bytes, archive.missing(Stream::Stderr));
    assert_eq!(
        archive.got + archive.missing(Stream::Stdout) + archive.missing(Stream::Stderr),
        40_400_000
    );
    let expected = Sha256::digest(line_by_line("a line of the output\n", 40_000_000));
    assert_eq!(stdout.sha256[..], expected[..], "dropped or not, it was hashed");
    let expected = Sha256::digest(line_by_line("a complaint\n", 400_000));
    assert_eq!(stderr.sha256[..], expected[..]);
}

fn expecting_gaps() -> Archive {
    Archive {
        expects_gaps: true,
        ..Archive::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_oldest_lets_the_program_end_without_any_home() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options(WhenFull::DropOldest, 3_600_000));
    pod.shell(SCRIPT);
    relay.next_start().await;
    // A kill in the middle changes nothing.
    let out = pod.path("spool/stdout");
    until("half of it", || {
        std::fs::metadata(&out).is_ok_and(|file| file.len() > 20_000_000)
    })
    .await;
    pod.signal_agent(Signal::KILL);
    assert_eq!(pod.entrypoint_ends().await.code(), Some(5));
    let archive = in_time("the end", relay.be_home_from(expecting_gaps(), |_| {})).await;
    check(&archive);
    assert!(
        archive.gaps.iter().all(|gap| gap.reason() == GapReason::SpoolFull),
        "{:?}",
        archive.gaps
    );
    // At the end the pipes are emptied even into a full spool.
    let most = (2 << 20) + (256 << 10);
    assert!(archive.got <= most && archive.got > 1 << 20, "{}", archive.got);
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_oldest_under_a_home_that_is_slow_adds_up() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options(WhenFull::DropOldest, 3_600_000));
    pod.shell(SCRIPT);
    let mut frames = 0;
    let slow = |_| {
        frames += 1;
        if frames % 3 == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let archive = in_time("the end", relay.be_home_from(expecting_gaps(), slow)).await;
    assert!(!archive.gaps.is_empty(), "it was too slow");
    check(&archive);
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_holds_back_for_a_while_and_then_drops() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options(WhenFull::Auto, 2_000));
    let begun = Instant::now();
    pod.shell(SCRIPT);
    relay.next_start().await;
    assert_eq!(pod.entrypoint_ends().await.code(), Some(5));
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    let archive = in_time("the end", relay.be_home_from(expecting_gaps(), |_| {})).await;
    assert!(
        archive
            .gaps
            .iter()
            .all(|gap| gap.reason() == GapReason::ArchiverStalled)
    );
    assert!(archive.missing(Stream::Stdout) > 30_000_000);
    check(&archive);
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_drops_nothing_while_the_archive_makes_progress() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options(WhenFull::Auto, 30_000));
    pod.shell(SCRIPT);
    let archive = in_time("the end", relay.be_home(|_| {})).await;
    check(&archive);
    assert_eq!(archive.got, 40_400_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_full_is_a_full_spool() {
    if !super::pod::can_mount() {
        return;
    }
    let mut relay = TestRelay::start().await;
    let options = Options {
        spool_size: 64 << 20,
        volume_bytes: Some(4 << 20),
        ..options(WhenFull::DropOldest, 3_600_000)
    };
    let mut pod = Pod::start(&relay, &options);
    pod.shell(SCRIPT);
    relay.next_start().await;
    assert_eq!(pod.entrypoint_ends().await.code(), Some(5));
    let archive = in_time("the end", relay.be_home_from(expecting_gaps(), |_| {})).await;
    assert!(archive.missing(Stream::Stdout) > 30_000_000);
    check(&archive);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_home_learns_when_the_program_is_held_back_and_when_no_longer() {
    let mut relay = TestRelay::start().await;
    let mut pod = Pod::start(&relay, &options(WhenFull::Block, 0));
    pod.shell(SCRIPT);
    let start = relay.next_start().await;
    let mut agent = relay.dial(&start.address).await;
    let mut archive = Archive {
        commits: false,
        ..Archive::default()
    };
    in_time("held back", archive.take_from(&mut agent, &mut |_| {}))
        .await
        .unwrap();
    let spool = archive.spools.pop().unwrap();
    assert!(spool.blocked);
    assert_eq!(spool.size_bytes, 2 << 20);
    assert!(spool.used_bytes >= 2 << 20, "{spool:?}");
    archive.commits = true;
    archive.commit(&mut agent, false).await.unwrap();
    in_time("the rest", archive.take_from(&mut agent, &mut |_| {}))
        .await
        .unwrap();
    check(&archive);
    assert!(
        archive.spools.last().is_none_or(|spool| !spool.blocked),
        "{:?}",
        archive.spools
    );
}
