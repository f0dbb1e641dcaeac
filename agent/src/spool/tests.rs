use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

struct Bench {
    directory: tempfile::TempDir,
    spool: Spool,
    appender: Appender,
    secrets: Vec<&'static str>,
}

impl Bench {
    fn new(size: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::open(directory, block(size), vec![])
    }

    fn open(directory: tempfile::TempDir, policy: Policy, secrets: Vec<&'static str>) -> Self {
        let named = secrets.iter().map(|secret| (String::new(), secret.as_bytes().to_vec()));
        let mask = (!secrets.is_empty()).then(|| Mask::new(named.collect()).unwrap());
        let (spool, appender) = Spool::open(directory.path(), policy, mask).unwrap();
        Self {
            directory,
            spool,
            appender,
            secrets,
        }
    }

    /// After a SIGKILL only what is in the files is left: nothing is flushed on drop.
    fn kill(self) -> Self {
        let Self {
            directory,
            spool,
            appender,
            secrets,
        } = self;
        let policy = spool.policy();
        drop((spool, appender));
        Self::open(directory, policy, secrets)
    }

    fn append(&mut self, stream: Stream, bytes: &[u8]) {
        let (read, mut write) = std::io::pipe().unwrap();
        for part in bytes.chunks(32 * 1024) {
            write.write_all(part).unwrap();
            let taken = self.appender.take(stream, read.as_fd()).unwrap();
            assert_eq!(taken, Taken::Bytes(part.len()));
        }
    }

    fn read_from(&self, cursor: Offsets) -> Vec<Chunk> {
        let mut reader = self.spool.reader(cursor).unwrap();
        let mut chunks = Vec::new();
        while let Some(Item::Chunk(chunk)) = reader.try_next().unwrap() {
            chunks.push(chunk);
        }
        chunks
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

fn joined(chunks: &[Chunk], stream: Stream) -> Vec<u8> {
    let parts = chunks.iter().filter(|chunk| chunk.stream == stream);
    parts.flat_map(|chunk| chunk.bytes.to_vec()).collect()
}

const fn block(size: u64) -> Policy {
    Policy {
        size,
        when_full: WhenFull::Block,
        patience: DEADLINE,
    }
}

fn offsets(stdout: u64, stderr: u64) -> Offsets {
    Offsets { stdout, stderr }
}

#[test]
fn both_streams_come_back_in_the_order_in_which_they_were_taken() {
    let mut bench = Bench::new(1 << 20);
    bench.append(Stream::Stdout, b"one");
    bench.append(Stream::Stderr, b"two");
    bench.append(Stream::Stdout, b"three");
    let order: Vec<_> = bench
        .read_from(Offsets::default())
        .iter()
        .map(|chunk| (chunk.stream, chunk.offset, chunk.bytes.to_vec()))
        .collect();
    let expected = vec![
        (Stream::Stdout, 0, b"one".to_vec()),
        (Stream::Stderr, 0, b"two".to_vec()),
        (Stream::Stdout, 3, b"three".to_vec()),
    ];
    assert_eq!(order, expected);
}

#[test]
fn a_cursor_inside_a_record_begins_there() {
    let mut bench = Bench::new(1 << 20);
    bench.append(Stream::Stdout, b"0123456789");
    bench.append(Stream::Stderr, b"abc");
    let chunks = bench.read_from(offsets(4, 3));
    assert_eq!(joined(&chunks, Stream::Stdout), b"456789");
    assert_eq!(joined(&chunks, Stream::Stderr), b"");
}

#[test]
fn a_record_that_grows_is_delivered_without_repeats() {
    let mut bench = Bench::new(1 << 20);
    let mut reader = bench.spool.reader(Offsets::default()).unwrap();
    let mut seen = Vec::new();
    for turn in 0..1000u32 {
        bench.append(Stream::Stdout, format!("{turn}\n").as_bytes());
        if turn % 3 == 0 {
            while let Some(Item::Chunk(chunk)) = reader.try_next().unwrap() {
                seen.extend_from_slice(&chunk.bytes);
            }
        }
    }
    while let Some(Item::Chunk(chunk)) = reader.try_next().unwrap() {
        seen.extend_from_slice(&chunk.bytes);
    }
    let expected: String = (0..1000u32).map(|turn| format!("{turn}\n")).collect();
    assert_eq!(String::from_utf8(seen).unwrap(), expected);
}

#[test]
fn many_small_writes_are_read_in_large_chunks() {
    let mut bench = Bench::new(1 << 20);
    for _ in 0..20_000 {
        bench.append(Stream::Stdout, &[b'x'; 10]);
    }
    let chunks = bench.read_from(Offsets::default());
    assert_eq!(joined(&chunks, Stream::Stdout).len(), 200_000);
    // A chunk ends at 64 KiB or after 20 ms of the program's time.
    assert!(chunks.len() < 200, "{} chunks", chunks.len());
}

#[test]
fn a_kill_between_file_and_journal_loses_nothing() {
    let mut bench = Bench::new(1 << 20);
    bench.append(Stream::Stdout, b"journalled");
    bench.spool.inner.files[0]
        .set_len(10)
        .and_then(|()| {
            use std::os::unix::fs::FileExt;
            bench.spool.inner.files[0].write_all_at(b", found", 10)
        })
        .unwrap();
    let bench = bench.kill();
    let chunks = bench.read_from(Offsets::default());
    assert_eq!(joined(&chunks, Stream::Stdout), b"journalled, found");
}

#[test]
fn a_torn_journal_is_completed_from_the_files() {
    let mut bench = Bench::new(1 << 20);
    bench.append(Stream::Stdout, b"first");
    bench.append(Stream::Stderr, b"second");
    let journal = File::options()
        .write(true)
        .open(bench.directory.path().join("journal"))
        .unwrap();
    journal.set_len(40).unwrap();
    let mut bench = bench.kill();
    bench.append(Stream::Stderr, b", third");
    let chunks = bench.read_from(Offsets::default());
    assert_eq!(joined(&chunks, Stream::Stdout), b"first");
    assert_eq!(joined(&chunks, Stream::Stderr), b"second, third");
}

#[test]
fn a_commit_frees_blocks_and_refuses_readers_below() {
    let mut bench = Bench::new(4 << 20);
    let bytes = vec![7; 3 << 20];
    bench.append(Stream::Stdout, &bytes);
    bench.spool.commit(offsets(2 << 20, 0)).unwrap();
    until("dropped", || bench.spool.progress().dropped == offsets(2 << 20, 0));
    assert_eq!(bench.spool.progress().used(), 1 << 20);
    let error = bench.spool.reader(Offsets::default()).unwrap_err();
    assert!(matches!(error, Error::Dropped { begins, .. } if begins == 2 << 20));
    let error = bench.spool.reader(offsets(4 << 20, 0)).unwrap_err();
    assert!(matches!(error, Error::Beyond { .. }));
    use std::os::unix::fs::MetadataExt;
    until("the blocks are free", || {
        bench.spool.inner.files[0].metadata().unwrap().blocks() * 512 < 2 << 20
    });
    let chunks = bench.read_from(offsets(2 << 20, 0));
    assert_eq!(joined(&chunks, Stream::Stdout), vec![7; 1 << 20]);
}

#[test]
fn a_reader_that_is_overtaken_by_a_commit_gets_an_error() {
    let mut bench = Bench::new(4 << 20);
    bench.append(Stream::Stdout, &vec![1; 2 << 20]);
    let mut reader = bench.spool.reader(Offsets::default()).unwrap();
    reader.try_next().unwrap();
    bench.spool.commit(offsets(2 << 20, 0)).unwrap();
    until("dropped", || bench.spool.progress().dropped.stdout > 0);
    assert!(matches!(reader.try_next().unwrap_err(), Error::Dropped { .. }));
}

#[test]
fn the_seal_is_the_hash_of_every_byte_even_over_kills_and_drops() {
    let mut bench = Bench::new(64 << 20);
    let mut expected = Sha256::new();
    for round in 0..5u8 {
        let bytes: Vec<u8> = (0..3_000_001usize).map(|i| (i % 251) as u8 ^ round).collect();
        bench.append(Stream::Stderr, &bytes);
        expected.update(&bytes);
        let written = bench.spool.progress().written;
        bench.spool.commit(written).unwrap();
        until("dropped", || bench.spool.progress().dropped.stderr > 0);
        bench = bench.kill();
    }
    bench.appender.close();
    until("sealed", || bench.spool.progress().seals.is_some());
    let seals = bench.spool.progress().seals.unwrap();
    assert_eq!(seals.stderr.bytes, 15_000_005);
    assert_eq!(seals.stderr.sha256[..], expected.finalize()[..]);
    assert_eq!(seals.stdout.sha256[..], Sha256::digest(b"")[..]);
}

#[test]
fn a_kill_after_a_commit_does_not_keep_a_full_spool_full() {
    let mut bench = Bench::new(1 << 20);
    bench.append(Stream::Stdout, &vec![1; 1 << 20]);
    // Not yet worth dropping at this size, and then the agent dies.
    bench.spool.commit(offsets(4096, 0)).unwrap();
    let mut bench = bench.kill();
    bench.appender.set_stalled(Some(Stall::SpoolFull));
    until("room", || bench.appender.has_room());
}

#[test]
fn a_full_spool_has_no_room_until_a_commit() {
    let mut bench = Bench::new(1 << 20);
    bench.append(Stream::Stdout, &vec![1; 1 << 20]);
    assert!(!bench.appender.has_room());
    bench.appender.set_stalled(Some(Stall::SpoolFull));
    bench.spool.commit(offsets(8192, 0)).unwrap();
    until("room", || bench.appender.has_room());
    bench.append(Stream::Stdout, &[1; 8192]);
    assert!(!bench.appender.has_room());
    bench.appender.set_ending();
    assert!(bench.appender.has_room());
}

#[test]
fn a_record_is_there_whole_or_not_at_all() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Fact(u32);
    impl record::Record for Fact {
        const NAME: &'static str = "fact";
    }
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(record::load::<Fact>(directory.path()).unwrap(), None);
    record::store(directory.path(), &Fact(7)).unwrap();
    record::store(directory.path(), &Fact(8)).unwrap();
    assert_eq!(record::load::<Fact>(directory.path()).unwrap(), Some(Fact(8)));
}

#[tokio::test]
async fn a_waiting_reader_is_woken_by_bytes_and_by_the_end() {
    let mut bench = Bench::new(1 << 20);
    let mut reader = bench.spool.reader(Offsets::default()).unwrap();
    let waiting = tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            match reader.next().await.unwrap() {
                Item::Chunk(chunk) => seen.extend_from_slice(&chunk.bytes),
                Item::Gap(gap) => panic!("{gap:?}"),
                Item::End => return seen,
            }
        }
    });
    bench.append(Stream::Stdout, b"live");
    tokio::task::yield_now().await;
    bench.append(Stream::Stdout, b" bytes");
    bench.appender.close();
    let seen = tokio::time::timeout(DEADLINE, waiting).await.unwrap();
    assert_eq!(seen.unwrap(), b"live bytes");
}

#[test]
fn a_full_pipe_and_its_end_are_distinguished_from_an_empty_one() {
    let mut bench = Bench::new(1 << 20);
    let (read, write) = std::io::pipe().unwrap();
    let read = OwnedFd::from(read);
    let taken = bench.appender.take(Stream::Stdout, read.as_fd()).unwrap();
    assert_eq!(taken, Taken::Nothing);
    drop(write);
    let taken = bench.appender.take(Stream::Stdout, read.as_fd()).unwrap();
    assert_eq!(taken, Taken::End);
}

#[derive(Clone, Debug)]
enum Step {
    Append(bool, usize),
    Commit(u8, u8),
    Kill,
    TearJournal(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<bool>(), 1..300_000usize).prop_map(|(err, n)| Step::Append(err, n)),
        6 => (any::<bool>(), 1..40usize).prop_map(|(err, n)| Step::Append(err, n)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Step::Commit(a, b)),
        1 => Just(Step::Kill),
        1 => (1..200u8).prop_map(Step::TearJournal),
    ];
    proptest::collection::vec(step, 1..40)
}

struct Model {
    bench: Bench,
    written: [Vec<u8>; 2],
    committed: Offsets,
    counter: u64,
}

impl Model {
    fn apply(mut self, step: &Step) -> Self {
        match *step {
            Step::Append(is_err, length) => {
                let stream = Stream::ALL[usize::from(is_err)];
                let bytes: Vec<u8> = (0..length as u64)
                    .map(|i| (((self.counter + i) * 2_654_435_761) >> 13) as u8)
                    .collect();
                self.counter += length as u64;
                self.bench.append(stream, &bytes);
                self.written[stream.index()].extend_from_slice(&bytes);
            }
            Step::Commit(out, err) => {
                let part = |all: usize, share: u8| all as u64 * u64::from(share) / 255;
                let archived = offsets(part(self.written[0].len(), out), part(self.written[1].len(), err));
                self.bench.spool.commit(archived).unwrap();
                self.committed = self.committed.map2(archived, u64::max);
            }
            Step::Kill => self.bench = self.bench.kill(),
            Step::TearJournal(bytes) => {
                let path = self.bench.directory.path().join("journal");
                let first = self.bench.spool.progress().first_record * 32;
                let length = path.metadata().unwrap().len();
                let torn = length.saturating_sub(u64::from(bytes)).max(first);
                drop(File::options().write(true).open(path).map(|file| file.set_len(torn)));
                self.bench = self.bench.kill();
            }
        }
        self
    }

    fn check(&self) {
        let held = self.bench.spool.progress().dropped;
        for stream in Stream::ALL {
            assert!(held.of(stream) <= self.committed.of(stream));
        }
        let chunks = self.bench.read_from(self.committed);
        let mut next = self.committed;
        for chunk in &chunks {
            assert_eq!(chunk.offset, next.of(chunk.stream));
            assert!(chunk.bytes.len() as u64 <= reader::LONGEST_CHUNK);
            next.set(chunk.stream, chunk.offset + chunk.bytes.len() as u64);
        }
        for stream in Stream::ALL {
            let from = self.committed.of(stream) as usize;
            let expected = &self.written[stream.index()][from..];
            assert!(joined(&chunks, stream) == expected, "{stream:?} differs");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_byte_from_the_cursor_on_comes_exactly_once(steps in steps()) {
        let mut model = Model {
            bench: Bench::new(2 << 20),
            written: [Vec::new(), Vec::new()],
            committed: Offsets::default(),
            counter: 0,
        };
        for step in &steps {
            model = model.apply(step);
            model.check();
        }
        let Model { mut bench, written, .. } = model;
        bench.appender.close();
        until("sealed", || bench.spool.progress().seals.is_some());
        let seals = bench.spool.progress().seals.unwrap();
        prop_assert_eq!(&seals.stdout.sha256[..], &Sha256::digest(&written[0])[..]);
        prop_assert_eq!(&seals.stderr.sha256[..], &Sha256::digest(&written[1])[..]);
    }
}

#[test]
fn readers_keep_up_while_bytes_are_written_and_dropped() {
    let bench = Bench::new(8 << 20);
    let Bench {
        spool,
        mut appender,
        directory: _directory,
        ..
    } = bench;
    let spool = Arc::new(spool);
    let reading = {
        let spool = Arc::clone(&spool);
        std::thread::spawn(move || {
            let mut reader = spool.reader(Offsets::default()).unwrap();
            let mut hash = Sha256::new();
            loop {
                match reader.try_next().unwrap() {
                    Some(Item::Chunk(chunk)) => hash.update(&chunk.bytes),
                    Some(Item::Gap(gap)) => panic!("{gap:?}"),
                    Some(Item::End) => return hash.finalize(),
                    None => std::thread::yield_now(),
                }
                spool.commit(reader.cursor()).unwrap();
            }
        })
    };
    let (read, mut write) = std::io::pipe().unwrap();
    let block: Vec<u8> = (0..65_536u32).map(|i| (i % 253) as u8).collect();
    let mut hash = Sha256::new();
    for _ in 0..1024 {
        until("room", || appender.has_room());
        write.write_all(&block).unwrap();
        hash.update(&block);
        appender.take(Stream::Stdout, read.as_fd()).unwrap();
    }
    appender.close();
    assert_eq!(reading.join().unwrap(), hash.finalize());
}

mod dropping;
mod masking;
