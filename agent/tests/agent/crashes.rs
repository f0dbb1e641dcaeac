//! The agent dies at each crash point, and at random times: nothing is missing, duplicated or run twice.

use std::time::Duration;

use remoteprocess_agent::crash;
use remoteprocess_proto::v1::Stream;
use remoteprocess_proto::v1::launch_settings::WhenFull;
use rustix::process::Signal;
use sha2::{Digest, Sha256};

use super::pod::{Options, Pod, launch_with};
use super::relay::{Archive, TestRelay};
use super::{in_time, until};

const OUT_LINE: &str = "some line of the output, with a number of bytes\n";
/// Would make the lines shorter, if it were in them; a part of it is.
const MASKED: &str = "bytes\nsomething";
const ERR_LINE: &str = "a complaint\n";
const OUT_BYTES: usize = 6_000_000;
const ERR_BYTES: usize = 300_000;

fn lines(line: &str, length: usize) -> Vec<u8> {
    line.bytes().cycle().take(length).collect()
}

/// How often the point is passed before the agent dies there: late enough to be in the middle of something.
fn hits(point: &str) -> u32 {
    match point {
        "spool.spliced" | "spool.journalled" | "stage.spliced" | "stage.masked" | "stage.journalled" => 20,
        "spool.hashed" | "spool.checkpointed" | "spool.published" | "spool.punched" | "ledger.committed" => 2,
        _ => 1,
    }
}

async fn die_at(point: &str) {
    let mut relay = TestRelay::start().await;
    let marks = tempfile::tempdir().unwrap();
    let mark = marks.path().join("mark");
    let drops = point == "ledger.told";
    let options = Options {
        supervised: true,
        spool_size: 2 << 20,
        mask: if point.starts_with("stage.") {
            vec![MASKED]
        } else {
            vec![]
        },
        crash_at: Some(format!("{point}:{}:{}", hits(point), mark.display())),
        ..launch_with(|launch| launch.set_when_full(if drops { WhenFull::DropOldest } else { WhenFull::Block }))
    };
    let mut pod = Pod::start(&relay, &options);
    let ran = pod.path("ran");
    pod.shell(&format!(
        "echo ran >> {}; yes '{}' | head -c {OUT_BYTES} & yes '{}' | head -c {ERR_BYTES} >&2; wait; exit 7",
        ran.display(),
        OUT_LINE.trim_end(),
        ERR_LINE.trim_end(),
    ));
    if drops {
        relay.next_start().await;
        pod.entrypoint_ends().await;
    }
    let begin = Archive {
        expects_gaps: drops,
        ..Archive::default()
    };
    let archive = in_time(point, relay.be_home_from(begin, |_| {})).await;
    assert!(mark.exists(), "{point} was never reached");
    assert_eq!(std::fs::read_to_string(ran).unwrap(), "ran\n", "{point}");
    let exit = archive.exit();
    assert_eq!((exit.value, exit.sealed), (7, true), "{point}");
    let seal = exit.seal.clone().unwrap();
    let (stdout, stderr) = (seal.stdout.unwrap(), seal.stderr.unwrap());
    let missing = archive.missing(Stream::Stdout) + archive.missing(Stream::Stderr);
    assert_eq!(archive.got + missing, (OUT_BYTES + ERR_BYTES) as u64, "{point}");
    assert_eq!(stdout.dropped_bytes + stderr.dropped_bytes, missing, "{point}");
    assert_eq!(missing > 0, drops, "{point}");
    let expected = [lines(OUT_LINE, OUT_BYTES), lines(ERR_LINE, ERR_BYTES)].map(Sha256::digest);
    assert!(
        stdout.sha256[..] == expected[0][..] && stderr.sha256[..] == expected[1][..],
        "{point}: the seal"
    );
    if !drops {
        let got = archive.hashes.map(Sha256::finalize);
        assert!(got == expected, "{point}: the bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(debug_assertions), ignore = "release builds have no crash points")]
async fn a_death_at_any_point_between_two_steps_costs_nothing() {
    for point in crash::POINTS {
        println!("dying at {point}");
        die_at(point).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_deaths_cost_nothing() {
    let is_long = std::env::var("RPROC_LONG").is_ok_and(|long| long == "1");
    let (kills, longest_millis) = if is_long { (50, 20_000) } else { (10, 600) };
    let mut relay = TestRelay::start().await;
    let options = Options {
        supervised: true,
        spool_size: 2 << 20,
        ..launch_with(|launch| launch.set_when_full(WhenFull::Block))
    };
    let mut pod = Pod::start(&relay, &options);
    let stop = pod.path("stop");
    // It reports on stderr how much it has written to stdout.
    pod.shell(&format!(
        "n=0; while ! test -e {}; do seq 1 20000; n=$((n+1)); sleep 0.02; done; echo $n >&2",
        stop.display()
    ));
    let seed = std::process::id();
    println!("seed {seed}");
    let killing = async {
        let mut state = u64::from(seed);
        for _ in 0..kills {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            tokio::time::sleep(Duration::from_millis((state >> 33) % longest_millis)).await;
            until("an agent", || pod.agent_pid().is_some()).await;
            pod.signal_agent(Signal::KILL);
        }
        std::fs::write(&stop, "").unwrap();
    };
    let ((), archive) = tokio::join!(killing, relay.be_home(|_| {}));
    let rounds: usize = archive.head(1).trim().parse().unwrap();
    let round: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    let mut expected = Sha256::new();
    (0..rounds).for_each(|_| expected.update(&round));
    let expected = expected.finalize();
    let seal = archive.exit().seal.clone().unwrap().stdout.unwrap();
    let [stdout, _] = archive.hashes.clone().map(Sha256::finalize);
    assert!(stdout == expected, "{rounds} rounds, {} bytes", archive.cursor.stdout);
    assert_eq!(seal.sha256[..], expected[..]);
    assert!(archive.exit().sealed);
}
