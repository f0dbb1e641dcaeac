//! What recording costs the program itself: the time of its writes, compared with a pipe that `cat` reads.

use anyhow::Result;
use remoteprocess_e2e::Namespace;

use crate::report::{median, table};
use crate::subject::{GATE, Kind, Subject};

const KINDS: [(Kind, &str); 2] = [(Kind::Ours, "RemoteProcess"), (Kind::Pod, "containerd's logger")];
/// How the program writes.
const WRITES: [(usize, &str); 2] = [(100, "one write(2) a line"), (8192, "blocks of 8 KiB")];

/// Seconds into the drained pipe and seconds into the container's standard output.
#[derive(Clone, Copy)]
struct Times {
    base: f64,
    own: f64,
}

/// Runs the rounds and describes them.
pub(crate) fn measure(namespace: &Namespace, rounds: usize, megabytes: usize) -> Result<String> {
    let mut rows = Vec::new();
    for (block, how) in WRITES {
        let mut times: [Vec<Times>; 2] = Default::default();
        for round in 0..rounds {
            for ((kind, name), times) in KINDS.into_iter().zip(&mut times) {
                let id = format!("slow-{block}-{round}-{}", kind as usize);
                let turn = take_turn(namespace, kind, &id, block, megabytes * 1_000_000)?;
                eprintln!("{name}, {how}: {:.3} s, drained by cat {:.3} s", turn.own, turn.base);
                times.push(turn);
            }
        }
        rows.extend(describe(&times, how));
    }
    let header = [
        "writes",
        "recorded by",
        "drained by cat, s",
        "recorded, s",
        "slower by, s",
        "to containerd's logger",
    ];
    Ok(format!(
        "## How much the program is slowed\n\nTime in which a program has written {megabytes} MB of 100-byte lines; nobody \
         follows it.\n\n{}",
        table(&header, &rows)
    ))
}

fn take_turn(namespace: &Namespace, kind: Kind, name: &str, block: usize, size: usize) -> Result<Times> {
    let writer = format!("/tmp/writer --bytes={size} --block={block}");
    let command = format!("{writer} --result=/tmp/base | cat > /dev/null; {writer} --gate={GATE} --result=/tmp/own");
    let subject = Subject::start(namespace, kind, name, &command)?;
    let base = subject.result("/tmp/base")?;
    subject.open_gate()?;
    let own = subject.result("/tmp/own")?;
    subject.remove()?;
    Ok(Times { base, own })
}

fn describe(times: &[Vec<Times>; 2], how: &str) -> Vec<Vec<String>> {
    // One baseline for both: the same program in the same kind of pipe.
    let base = median(&times.iter().flatten().map(|times| times.base).collect::<Vec<_>>());
    let slower = |times: &[Times]| median(&times.iter().map(|times| times.own).collect::<Vec<_>>()) - base;
    let of_logger = slower(&times[1]);
    let row = |(times, (_, name)): (&Vec<Times>, (Kind, &str))| {
        let own = slower(times);
        let ratio = if own > 0.0 {
            format!("1/{:.1}", of_logger / own)
        } else {
            "not slowed".to_owned()
        };
        vec![
            how.to_owned(),
            name.to_owned(),
            format!("{base:.3}"),
            format!("{:.3}", own + base),
            format!("{own:.3}"),
            ratio,
        ]
    };
    times.iter().zip(KINDS).map(row).collect()
}
