//! Output that is dropped before it is archived: reported, counted, never twice.

use super::*;

/// A home: what it has received, and which bytes it was told are gone.
#[derive(Default)]
struct Home {
    cursor: Offsets,
    got: u64,
    missed: Offsets,
}

impl Home {
    /// Reads up to `most` items and checks each against what was written.
    fn read(&mut self, spool: &Spool, written: &[Vec<u8>; 2], most: usize) {
        let mut reader = spool.home_reader(self.cursor).unwrap();
        for _ in 0..most {
            match reader.try_next().unwrap() {
                Some(Item::Chunk(chunk)) => {
                    let from = self.cursor.of(chunk.stream);
                    assert_eq!(chunk.offset, from, "dense");
                    let end = from + chunk.bytes.len() as u64;
                    assert!(chunk.bytes == written[chunk.stream.index()][from as usize..end as usize]);
                    self.cursor.set(chunk.stream, end);
                    self.got += end - from;
                }
                Some(Item::Gap(gap)) => {
                    assert_eq!(gap.from, self.cursor.of(gap.stream), "dense");
                    assert!(gap.to > gap.from);
                    self.cursor.set(gap.stream, gap.to);
                    self.missed
                        .set(gap.stream, self.missed.of(gap.stream) + gap.to - gap.from);
                }
                Some(Item::End) | None => break,
            }
        }
        assert_eq!(reader.cursor(), self.cursor);
    }
}

const fn policy(when_full: WhenFull, patience: Duration) -> Policy {
    Policy {
        size: 1 << 20,
        when_full,
        patience,
    }
}

fn bench(when_full: WhenFull, patience: Duration) -> Bench {
    Bench::open(tempfile::tempdir().unwrap(), policy(when_full, patience), vec![])
}

/// Appends as the capture thread does: not into a full spool.
fn append(bench: &mut Bench, stream: Stream, bytes: &[u8]) {
    for part in bytes.chunks(32 * 1024) {
        if !bench.appender.has_room() {
            bench.appender.set_stalled(Some(Stall::SpoolFull));
            until("room", || bench.appender.has_room());
            bench.appender.set_stalled(None);
        }
        bench.append(stream, part);
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|i| (((seed + i) * 2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn drop_oldest_never_waits_and_says_what_is_gone() {
    let mut bench = bench(WhenFull::DropOldest, Duration::MAX);
    let written = [noise(1, 5_000_000), noise(2, 100)];
    append(&mut bench, Stream::Stderr, &written[1]);
    append(&mut bench, Stream::Stdout, &written[0]);
    let mut bench = bench.kill();
    bench.appender.close();
    until("sealed", || bench.spool.progress().seals.is_some());
    let mut home = Home::default();
    home.read(&bench.spool, &written, usize::MAX);
    assert_eq!(home.cursor, offsets(5_000_000, 100));
    assert_eq!(home.missed.stderr, 100, "the oldest goes first");
    assert!(home.got <= 1 << 20 && home.got > 1 << 19, "{}", home.got);
    assert_eq!(home.got + home.missed.total(), 5_000_100);
    assert_eq!(bench.spool.lost(), home.missed);
    let seals = bench.spool.progress().seals.unwrap();
    assert_eq!(seals.stdout.sha256[..], Sha256::digest(&written[0])[..]);
    assert_eq!(seals.stderr.sha256[..], Sha256::digest(&written[1])[..]);
    bench.spool.commit(home.cursor).unwrap();
    let lost = bench.kill().spool.lost();
    assert_eq!(lost, home.missed, "for good");
}

#[test]
fn a_home_that_has_received_dropped_output_gets_no_gap() {
    let mut bench = bench(WhenFull::DropOldest, Duration::MAX);
    let written = [noise(3, 3_000_000), vec![]];
    let mut home = Home::default();
    append(&mut bench, Stream::Stdout, &written[0][..500_000]);
    home.read(&bench.spool, &written, usize::MAX);
    append(&mut bench, Stream::Stdout, &written[0][500_000..1_300_000]);
    assert!(bench.spool.progress().dropped.stdout > 0);
    home.read(&bench.spool, &written, usize::MAX);
    assert_eq!((home.missed, bench.spool.lost()), (offsets(0, 0), offsets(0, 0)));
    bench.spool.commit(home.cursor).unwrap();
    append(&mut bench, Stream::Stdout, &written[0][1_300_000..]);
    let error = bench.spool.reader(offsets(1, 0)).unwrap_err();
    assert!(matches!(error, Error::Dropped { .. }), "the archive has it");
}

#[test]
fn auto_holds_back_until_its_patience_ends_also_across_a_kill() {
    let patience = Duration::from_millis(1500);
    let mut bench = bench(WhenFull::Auto, patience);
    let begun = Instant::now();
    bench.append(Stream::Stdout, &vec![1; 1 << 20]);
    bench.appender.set_stalled(Some(Stall::SpoolFull));
    let directory = bench.directory.path().to_owned();
    until("the wait is noted", || {
        let (_, checkpoint) = Slots::<Checkpoint>::open(&directory, "checkpoint").unwrap();
        checkpoint.is_some_and(|checkpoint: Checkpoint| checkpoint.wait.is_some())
    });
    assert_eq!(bench.spool.progress().dropped, offsets(0, 0));
    let mut bench = bench.kill();
    let restarted = Instant::now();
    bench.appender.set_stalled(Some(Stall::SpoolFull));
    until("room", || bench.appender.has_room());
    assert!(begun.elapsed() >= patience);
    assert!(restarted.elapsed() < patience, "{:?}", restarted.elapsed());
    bench.appender.set_stalled(None);
    // Without progress there is no second wait.
    append(&mut bench, Stream::Stdout, &vec![1; 1 << 20]);
    // With it there is.
    let progress = bench.spool.progress();
    bench
        .spool
        .commit(progress.dropped.map2(offsets(1, 0), |a, b| a + b))
        .unwrap();
    bench.append(Stream::Stdout, &vec![1; 1 << 20]);
    let dropped = bench.spool.progress().dropped;
    bench.appender.set_stalled(Some(Stall::SpoolFull));
    let held = Instant::now();
    until("room", || bench.appender.has_room());
    assert!(held.elapsed() >= patience.mul_f32(0.9), "{:?}", held.elapsed());
    assert!(bench.spool.progress().dropped.stdout > dropped.stdout);
}

#[test]
fn block_drops_nothing_without_a_commit() {
    let mut bench = bench(WhenFull::Block, Duration::ZERO);
    bench.append(Stream::Stdout, &vec![1; 1 << 20]);
    bench.appender.set_stalled(Some(Stall::SpoolFull));
    bench.spool.commit(offsets(4096, 0)).unwrap();
    until("room", || bench.appender.has_room());
    assert_eq!(bench.spool.progress().dropped, offsets(4096, 0));
}

#[test]
fn a_short_silent_stream_does_not_pin_the_journal() {
    let mut bench = bench(WhenFull::Block, Duration::MAX);
    bench.append(Stream::Stderr, b"started\n");
    for _ in 0..40 {
        bench.append(Stream::Stdout, &[0; 32 * 1024]);
        // One record for each, as with a program that writes now and then.
        for _ in 0..20 {
            bench.append(Stream::Stdout, b"x");
            bench.append(Stream::Stderr, b"y");
        }
        let written = bench.spool.progress().written;
        bench.spool.commit(written).unwrap();
    }
    until("the journal moves on", || bench.spool.progress().first_record > 0);
}

#[derive(Clone, Debug)]
enum Step {
    Append(bool, usize),
    Read(usize),
    Commit,
    Kill,
    OtherHome,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<bool>(), 1..400_000usize).prop_map(|(err, n)| Step::Append(err, n)),
        4 => (any::<bool>(), 1..5000usize).prop_map(|(err, n)| Step::Append(err, n)),
        4 => (1..12usize).prop_map(Step::Read),
        3 => Just(Step::Commit),
        2 => Just(Step::Kill),
        1 => Just(Step::OtherHome),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn gaps_and_bytes_add_up_to_what_was_written(steps in steps()) {
        let mut bench = bench(WhenFull::DropOldest, Duration::MAX);
        let mut written = [vec![], vec![]];
        // What the home holds only in memory, and what it has made durable.
        let (mut home, mut durable) = (Home::default(), Home::default());
        let copy = |home: &Home| Home { cursor: home.cursor, got: home.got, missed: home.missed };
        for (turn, step) in steps.iter().enumerate() {
            match *step {
                Step::Append(is_err, length) => {
                    let bytes = noise(turn as u64 * 7919, length);
                    let stream = Stream::ALL[usize::from(is_err)];
                    written[stream.index()].extend_from_slice(&bytes);
                    append(&mut bench, stream, &bytes);
                }
                Step::Read(most) => home.read(&bench.spool, &written, most),
                Step::Commit => {
                    durable = copy(&home);
                    bench.spool.commit(durable.cursor).unwrap();
                }
                Step::Kill => bench = bench.kill(),
                Step::OtherHome => home = copy(&durable),
            }
        }
        bench.appender.close();
        home.read(&bench.spool, &written, usize::MAX);
        let total = offsets(written[0].len() as u64, written[1].len() as u64);
        prop_assert_eq!(home.cursor, total);
        prop_assert_eq!(home.got + home.missed.total(), total.total());
        prop_assert_eq!(bench.spool.lost(), home.missed);
        until("sealed", || bench.spool.progress().seals.is_some());
        let seals = bench.spool.progress().seals.unwrap();
        prop_assert_eq!(&seals.stdout.sha256[..], &Sha256::digest(&written[0])[..]);
        prop_assert_eq!(&seals.stderr.sha256[..], &Sha256::digest(&written[1])[..]);
    }
}
