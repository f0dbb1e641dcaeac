//! A spool with a mask: no stream contains the secret, and kills change nothing.

use super::*;

fn bench() -> Bench {
    let secrets = vec!["hunter2", "correct horse", "horse battery\n"];
    Bench::open(tempfile::tempdir().unwrap(), block(1 << 20), secrets)
}

/// Writes these bytes in small pieces, with a kill after every few.
fn feed(mut bench: Bench, stream: Stream, bytes: &[u8], piece: usize, kill_every: usize) -> Bench {
    for (turn, piece) in bytes.chunks(piece).enumerate() {
        bench.append(stream, piece);
        if turn % kill_every == kill_every - 1 {
            bench = bench.kill();
        }
    }
    bench
}

fn sealed(mut bench: Bench, stream: Stream) -> Vec<u8> {
    bench.appender.finish().unwrap();
    bench.appender.close();
    until("sealed", || bench.spool.progress().seals.is_some());
    let bytes = joined(&bench.read_from(Offsets::default()), stream);
    let seals = bench.spool.progress().seals.unwrap();
    let seal = if stream == Stream::Stdout {
        seals.stdout
    } else {
        seals.stderr
    };
    assert_eq!(seal.sha256[..], Sha256::digest(&bytes)[..], "of what is left");
    assert_eq!(seal.bytes, bytes.len() as u64);
    bytes
}

#[test]
fn values_are_masked_across_chunks_and_kills() {
    let text = b"user=hunter2 pass=correct horse battery hunter hunter22 hunte".repeat(50);
    let expected = b"user=*** pass=****** hunter ***2 hunte".repeat(50);
    for (piece, kill_every) in [(1, 7), (5, 1), (64, 3), (1000, 1), (100_000, 1)] {
        let bench = feed(bench(), Stream::Stdout, &text, piece, kill_every);
        let masked = sealed(bench, Stream::Stdout);
        assert_eq!(
            String::from_utf8_lossy(&masked),
            String::from_utf8_lossy(&expected),
            "{piece}"
        );
    }
}

#[test]
fn only_the_beginning_of_a_value_is_held_back() {
    let mut bench = bench();
    bench.append(Stream::Stderr, b"go on hunt");
    assert_eq!(joined(&bench.read_from(Offsets::default()), Stream::Stderr), b"go on ");
    bench.append(Stream::Stderr, b"ing");
    assert_eq!(
        joined(&bench.read_from(Offsets::default()), Stream::Stderr),
        b"go on hunting"
    );
}

#[test]
fn raw_bytes_do_not_stay() {
    use std::os::unix::fs::MetadataExt;
    let mut bench = bench();
    let text = b"user=hunter2\n".repeat(300_000);
    for piece in text.chunks(30_000) {
        bench.append(Stream::Stdout, piece);
        let written = bench.spool.progress().written;
        bench.spool.commit(written).unwrap();
    }
    let raw = bench.directory.path().join("stdout.raw").metadata().unwrap();
    assert_eq!(raw.len(), text.len() as u64);
    assert!(raw.blocks() * 512 < 1 << 20, "{} bytes", raw.blocks() * 512);
    let bench = bench.kill();
    assert_eq!(
        bench.spool.progress().written.stdout,
        b"user=***\n".len() as u64 * 300_000
    );
}

#[test]
fn what_was_masked_but_not_journalled_is_masked_again() {
    let mut bench = bench();
    bench.append(Stream::Stdout, b"a hunter2 b");
    let before = bench.spool.progress().written;
    // As after a kill between the write of masked bytes and their record.
    std::os::unix::fs::FileExt::write_all_at(&bench.spool.inner.files[0], b"garbage", before.stdout).unwrap();
    let mut bench = bench.kill();
    assert_eq!(bench.spool.progress().written, before);
    bench.append(Stream::Stdout, b" hunter2");
    assert_eq!(sealed(bench, Stream::Stdout), b"a *** b ***");
}
