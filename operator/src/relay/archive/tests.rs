//! The guarantee of the archive, on random histories: every byte exactly once, whatever crashes in between.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, PutPayload};
use proptest::prelude::*;
use prost::Message;
use remoteprocess_proto::Checksum;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::{Cursor, Exit, GapReason, Seal, SealReason, Stream, StreamSeal};
use sha2::Digest;
use tokio::time::timeout;

use super::*;
use crate::relay::piece::{Piece, Placed, Wanted, data, distance, gap};

fn subject() -> Subject {
    Subject {
        namespace: "default".to_owned(),
        name: "hello".to_owned(),
        pod_uid: "pod-1".to_owned(),
        key: AttemptKey {
            uid: "0c1d".to_owned(),
            attempt: 1,
        },
    }
}

fn memory() -> Archive {
    Archive::new(Arc::new(InMemory::new()))
}

/// Byte `at` of a stream: every misplaced byte is visible.
fn byte(stream: Stream, at: u64) -> u8 {
    let salt = if stream == Stream::Stdout { 0 } else { 101 };
    u8::try_from((at.wrapping_mul(31) + salt) % 251).unwrap()
}

fn run_of(stream: Stream, from: u64, length: u64) -> Piece {
    let bytes: Vec<u8> = (from..from + length).map(|at| byte(stream, at)).collect();
    data(stream, from, 0, Bytes::from(bytes))
}

/// The observed order of a whole attempt, as (stream, length) pairs turned into positions.
fn history(chunks: &[(bool, u64)]) -> Vec<Placed> {
    let mut at = Cursor::default();
    chunks
        .iter()
        .map(|(error, length)| {
            let stream = if *error { Stream::Stderr } else { Stream::Stdout };
            let placed = Placed {
                start: at,
                piece: run_of(stream, at.of(stream), *length),
            };
            at = placed.end();
            placed
        })
        .collect()
}

/// What an agent would send from `cursor` on: pieces cut at any position.
fn resumed(history: &[Placed], from: Cursor) -> Vec<Placed> {
    let mut at = from;
    let wanted = Wanted {
        cursor: from,
        only: None,
    };
    history
        .iter()
        .filter_map(|placed| {
            let placed = Placed {
                start: at,
                piece: placed.piece.clone().wanted(&wanted)?,
            };
            at = placed.end();
            Some(placed)
        })
        .collect()
}

async fn read_all(archive: &Archive, wanted: Wanted) -> Vec<Piece> {
    let mut reader = archive.reader(&subject().key);
    let mut at = reader.begin(&wanted).await.unwrap();
    let mut found = Vec::new();
    loop {
        let pieces = reader.next(at).await.unwrap();
        let Some(last) = pieces.last() else {
            return found;
        };
        assert_eq!(pieces[0].start, at, "the path has no holes");
        at = last.end();
        found.extend(pieces.into_iter().filter_map(|placed| placed.piece.wanted(&wanted)));
    }
}

fn assert_exactly_once(pieces: &[Piece], wanted: &Wanted, end: Cursor) {
    let mut at = wanted.cursor;
    for piece in pieces {
        let stream = piece.stream();
        assert_eq!(piece.from(), at.of(stream), "dense");
        for (index, found) in piece.bytes().iter().enumerate() {
            assert_eq!(*found, byte(stream, piece.from() + index as u64));
        }
        at.set(stream, piece.to());
    }
    for stream in [Stream::Stdout, Stream::Stderr] {
        if wanted.only.is_none_or(|only| only == stream) {
            assert_eq!(at.of(stream), end.of(stream).max(wanted.cursor.of(stream)), "complete");
        }
    }
}

/// How one relay's life ends in the model.
#[derive(Clone, Debug)]
enum Life {
    /// Takes `pieces`, flushes after each `flush_each`-th, and dies without a last flush.
    Crash { pieces: usize, flush_each: usize },
    /// As `Crash`, and a torn segment stays behind.
    Torn { pieces: usize, flush_each: usize },
    /// As `Crash`, with several puts in progress, of which the `lost`-th never arrives and later ones do.
    Overtaken {
        pieces: usize,
        flush_each: usize,
        lost: usize,
    },
}

fn life() -> impl Strategy<Value = Life> {
    (0_usize..40, 1_usize..8, 0_usize..4, 0_u8..3).prop_map(|(pieces, flush_each, lost, kind)| match kind {
        0 => Life::Torn { pieces, flush_each },
        1 => Life::Crash { pieces, flush_each },
        _ => Life::Overtaken {
            pieces,
            flush_each,
            lost,
        },
    })
}

async fn live(archive: &Archive, history: &[Placed], life: &Life) {
    let mut writer = archive.writer(subject()).await.unwrap();
    let rest = resumed(history, writer.saved());
    match *life {
        Life::Crash { pieces, flush_each } => write(&mut writer, &rest, pieces, flush_each).await,
        Life::Torn { pieces, flush_each } => {
            write(&mut writer, &rest, pieces, flush_each).await;
            let key = subject().key;
            let name = SegmentName::new(writer.saved(), 0xdead);
            let path = key.segment_path(&name).unwrap();
            archive
                .store
                .put(&path, PutPayload::from_static(b"RPSEG"))
                .await
                .unwrap();
        }
        Life::Overtaken {
            pieces,
            flush_each,
            lost,
        } => {
            write(&mut writer, &rest, pieces, flush_each).await;
            let known = archive.segments(&subject().key).await.unwrap();
            let (saved, behind) = (writer.saved(), &rest[pieces.min(rest.len())..]);
            for placed in behind.iter().take(4) {
                writer.append(placed);
                writer.store().await;
            }
            // The puts of the in-memory store finish at once, but the writer is not told.
            let mut settled = writer;
            while !settled.is_settled() {
                settled.settle().await.unwrap();
            }
            drop(settled);
            let stored = archive.segments(&subject().key).await.unwrap();
            let new: Vec<_> = stored.iter().filter(|name| !known.contains(name)).collect();
            if let Some(name) = new.get(lost).filter(|name| distance(&name.start()) >= distance(&saved)) {
                let path = subject().key.segment_path(name).unwrap();
                archive.store.delete(&path).await.unwrap();
            }
        }
    }
}

async fn write(writer: &mut Writer, rest: &[Placed], pieces: usize, flush_each: usize) {
    for (index, placed) in rest.iter().take(pieces).enumerate() {
        writer.append(placed);
        if index % flush_each == flush_each - 1 || writer.is_full() {
            let saved = writer.flush().await.unwrap();
            assert_eq!(saved, placed.end());
        }
    }
}

/// The seal of an agent that has seen all of a history.
fn whole_exit(history: &[Placed]) -> Exit {
    let seal = |stream| {
        let bytes: Vec<u8> = history
            .iter()
            .filter(|placed| placed.piece.stream() == stream)
            .flat_map(|placed| placed.piece.bytes().to_vec())
            .collect();
        let mut checksum = Checksum::default();
        checksum.update(&bytes);
        Some(StreamSeal {
            bytes: bytes.len() as u64,
            sha256: sha2::Sha256::digest(&bytes).to_vec().into(),
            dropped_bytes: 0,
            checksum: Some(checksum.value()),
        })
    };
    Exit {
        outcome: Outcome::Code.into(),
        seal: Some(Seal {
            stdout: seal(Stream::Stdout),
            stderr: seal(Stream::Stderr),
            ..Seal::default()
        }),
        ..Exit::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn every_byte_exactly_once_over_crashes(
        chunks in proptest::collection::vec((any::<bool>(), 1_u64..70_000), 1..60),
        lives in proptest::collection::vec(life(), 0..6),
        cut in (0.0_f64..1.0, 0.0_f64..1.0),
        only in proptest::option::of(prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let history = history(&chunks);
            let end = history.last().unwrap().end();
            let archive = memory();
            for life in &lives {
                live(&archive, &history, life).await;
            }
            let mut writer = archive.writer(subject()).await.unwrap();
            for placed in resumed(&history, writer.saved()) {
                writer.append(&placed);
                if writer.is_full() {
                    writer.flush().await.unwrap();
                }
            }
            let manifest = writer.seal(&whole_exit(&history)).await.unwrap();
            let reason = manifest.exit_frame().unwrap().seal.unwrap().reason();
            assert_eq!(reason, SealReason::Unspecified, "a writer continues the checksum after a crash");
            assert_eq!((manifest.end(), manifest.sealed), (end, true));
            let part = |of: u64, share: f64| (of as f64 * share) as u64;
            let cursor = Cursor { stdout: part(end.stdout, cut.0), stderr: part(end.stderr, cut.1) };
            let wanted = Wanted { cursor, only };
            assert_exactly_once(&read_all(&archive, wanted).await, &wanted, end);
        });
    }
}

#[tokio::test]
async fn a_late_put_of_an_earlier_home_harms_nothing() {
    let archive = memory();
    let history = history(&[(false, 5_000), (true, 3_000), (false, 9_000), (false, 10)]);
    let mut old = archive.writer(subject()).await.unwrap();
    old.append(&history[0]);
    old.flush().await.unwrap();
    let mut new = archive.writer(subject()).await.unwrap();
    for placed in resumed(&history, new.saved()) {
        new.append(&placed);
    }
    new.flush().await.unwrap();
    old.append(&history[1]);
    old.flush().await.unwrap();
    let wanted = Wanted {
        cursor: Cursor::default(),
        only: None,
    };
    let end = history.last().unwrap().end();
    assert_exactly_once(&read_all(&archive, wanted).await, &wanted, end);
    assert_eq!(archive.writer(subject()).await.unwrap().saved(), end);
}

#[tokio::test]
async fn a_damaged_segment_in_the_middle_is_a_named_gap() {
    let archive = memory();
    let history = history(&[(false, 300_000), (true, 300_000), (false, 300_000)]);
    let mut writer = archive.writer(subject()).await.unwrap();
    for placed in &history {
        writer.append(placed);
        writer.flush().await.unwrap();
    }
    let names = archive.segments(&subject().key).await.unwrap();
    assert_eq!(names.len(), 3);
    let path = subject().key.segment_path(&names[1]).unwrap();
    archive
        .store
        .put(&path, PutPayload::from_static(b"rubbish"))
        .await
        .unwrap();
    let pieces = read_all(
        &archive,
        Wanted {
            cursor: Cursor::default(),
            only: None,
        },
    )
    .await;
    assert_eq!(
        pieces[1],
        gap(Stream::Stderr, 0, Some(300_000), GapReason::ArchiveDamaged)
    );
    assert_eq!(pieces[2], history[2].piece);
}

#[tokio::test]
async fn a_slow_stream_makes_few_objects() {
    let archive = memory();
    let mut writer = archive.writer(subject()).await.unwrap();
    for placed in history(&[(false, 100); 500]) {
        writer.append(&placed);
        writer.flush().await.unwrap();
    }
    assert_eq!(archive.segments(&subject().key).await.unwrap().len(), 1);
}

#[tokio::test]
async fn gaps_are_remembered_once_over_a_restart() {
    let archive = memory();
    let lost = Placed {
        start: Cursor::default(),
        piece: gap(Stream::Stdout, 0, Some(9), GapReason::SpoolFull),
    };
    for _ in 0..2 {
        let mut writer = archive.writer(subject()).await.unwrap();
        writer.append(&lost);
        writer.flush().await.unwrap();
    }
    let mut writer = archive.writer(subject()).await.unwrap();
    let manifest = writer.seal(&Exit::default()).await.unwrap();
    assert_eq!((manifest.gaps.len(), manifest.lost().stdout), (1, 9));
}

#[tokio::test]
async fn the_local_archive_is_on_disk() {
    let root = tempfile::tempdir().unwrap();
    let archive = Archive::local(&root.path().join("archive")).unwrap();
    let mut writer = archive.writer(subject()).await.unwrap();
    for placed in history(&[(false, 100_000), (true, 7)]) {
        writer.append(&placed);
    }
    writer.seal(&Exit::default()).await.unwrap();
    let again = Archive::local(&root.path().join("archive")).unwrap();
    assert_eq!(again.attempts("0c1d").await.unwrap(), vec![1]);
    assert_eq!(again.manifest(&subject().key).await.unwrap().unwrap().name, "hello");
    let wanted = Wanted {
        cursor: Cursor::default(),
        only: Some(Stream::Stderr),
    };
    assert_eq!(read_all(&again, wanted).await.len(), 1);
}

#[tokio::test]
async fn the_last_lines_are_found_across_segments_and_streams() {
    let archive = memory();
    let mut writer = archive.writer(subject()).await.unwrap();
    let mut at = Cursor::default();
    for (stream, text) in [
        (Stream::Stdout, "one\ntw"),
        (Stream::Stderr, "err\n"),
        (Stream::Stdout, "o\nthree\n"),
        (Stream::Stdout, "end"),
    ] {
        let piece = data(stream, at.of(stream), 0, Bytes::from_static(text.as_bytes()));
        let placed = Placed { start: at, piece };
        at = placed.end();
        writer.append(&placed);
    }
    writer.flush().await.unwrap();
    let start = async |lines, only| {
        let key = subject().key;
        tail_start(&archive, &key, TailSearch::new(lines, only), None)
            .await
            .unwrap()
    };
    assert_eq!(distance(&start(0, None).await), distance(&at));
    assert_eq!(start(1, None).await, Cursor { stdout: 14, stderr: 4 });
    assert_eq!(start(2, None).await, Cursor { stdout: 8, stderr: 4 });
    assert_eq!(start(3, None).await, Cursor { stdout: 6, stderr: 4 });
    assert_eq!(start(1, Some(Stream::Stderr)).await, Cursor::default());
    assert_eq!(start(100, None).await, Cursor::default());
}

/// Decoders on all processors would delay every call.
#[tokio::test]
async fn users_decode_on_a_part_of_the_processors_and_the_operator_does_not_wait() {
    let archive = memory();
    let processors = std::thread::available_parallelism().unwrap().get();
    let decoders = archive.decoders.available_permits();
    assert!(
        decoders >= 1 && (decoders < processors || processors == 1),
        "{decoders}"
    );
    let history = history(&[(false, 10)]);
    let life = Life::Crash {
        pieces: 1,
        flush_each: 1,
    };
    live(&archive, &history, &life).await;
    let all = archive
        .decoders
        .clone()
        .acquire_many_owned(decoders as u32)
        .await
        .unwrap();
    let (of_user, key) = (archive.for_user("alice"), subject().key);
    let names = archive.segments(&key).await.unwrap();
    let mut reading = Box::pin(of_user.segment(&key, &names[0]));
    assert!(archive.segment(&key, &names[0]).await.unwrap().is_some());
    let waited = timeout(Duration::from_millis(100), &mut reading).await;
    assert!(waited.is_err(), "all decoders are busy");
    drop(all);
    assert!(reading.await.unwrap().is_some());
}

#[tokio::test]
async fn a_seat_is_large_enough_for_what_is_compressed() {
    let archive = memory();
    let (key, chunk) = (subject().key, 64 << 10);
    for (name, chunks) in [(1, 16), (2, 120)] {
        let name = SegmentName::new(Cursor::default(), name);
        let zeros = |at| data(Stream::Stdout, at * chunk, 0, Bytes::from(vec![0; chunk as usize]));
        let pieces: Vec<Piece> = (0..chunks).map(zeros).collect();
        let object = Segment::encode(&name, &pieces, None, true).unwrap();
        let path = key.segment_path(&name).unwrap();
        archive.store.put(&path, PutPayload::from(object)).await.unwrap();
        let segment = archive.for_user("alice").segment(&key, &name).await.unwrap().unwrap();
        assert_eq!(segment.pieces.len() as u64, chunks);
        assert_eq!(segment.seat.unwrap().bytes(), segment.cost);
    }
}

#[test]
fn a_uid_cannot_leave_its_directory() {
    for bad in ["", "..", "a/b", "a.b", "ä", &"a".repeat(65)] {
        assert!(check_uid(bad).is_err(), "{bad}");
    }
    assert!(check_uid("1c9a31a0-0000-4000-8000-000000000001").is_ok());
}

#[tokio::test]
async fn a_reader_whose_list_is_old_sees_what_was_added() {
    let archive = memory();
    let history = history(&[(false, 300_000); 6]);
    let mut writer = archive.writer(subject()).await.unwrap();
    let mut reader = archive.reader(&subject().key);
    for placed in &history[..2] {
        writer.append(placed);
        writer.flush().await.unwrap();
    }
    // Leaves the second segment in the list, and then skips it.
    let mut starts = async |at| {
        let pieces = reader.next(at).await.unwrap();
        pieces.into_iter().map(|placed| placed.start.stdout).collect::<Vec<_>>()
    };
    assert_eq!(starts(Cursor::default()).await, [0]);
    for placed in &history[2..] {
        writer.append(placed);
        writer.flush().await.unwrap();
    }
    assert_eq!(starts(history[1].end()).await, [600_000]);
    assert_eq!(starts(history[4].end()).await, [1_500_000]);
    assert!(starts(history[5].end()).await.is_empty());
}

#[tokio::test]
async fn a_put_that_is_still_on_its_way_is_no_hole() {
    let archive = memory();
    let history = history(&[(false, 300_000); 3]);
    let mut writer = archive.writer(subject()).await.unwrap();
    for placed in &history {
        writer.append(placed);
        writer.store().await;
    }
    while !writer.is_settled() {
        writer.settle().await.unwrap();
    }
    let names = archive.segments(&subject().key).await.unwrap();
    let path = subject().key.segment_path(&names[1]).unwrap();
    let late = archive.store.get(&path).await.unwrap().bytes().await.unwrap();
    archive.store.delete(&path).await.unwrap();
    let all = Wanted {
        cursor: Cursor::default(),
        only: None,
    };
    assert_eq!(
        read_all(&archive, all).await.len(),
        1,
        "what comes after it waits for it"
    );
    archive.store.put(&path, late.into()).await.unwrap();
    assert_exactly_once(&read_all(&archive, all).await, &all, history[2].end());
}

#[tokio::test]
async fn another_byte_is_a_hash_mismatch_and_a_gap_says_that_bytes_are_missing() {
    let history = history(&[(false, 1000), (true, 10)]);
    let whole = whole_exit(&history);
    let reason = async |pieces: &[Placed], exit: &Exit| {
        let archive = memory();
        let mut writer = archive.writer(subject()).await.unwrap();
        pieces.iter().for_each(|placed| writer.append(placed));
        let manifest = writer.seal(exit).await.unwrap();
        let exit = manifest.exit_frame().unwrap();
        assert_eq!(manifest.sealed, exit.sealed);
        (exit.sealed, exit.seal.unwrap().reason())
    };
    assert_eq!(reason(&history, &whole).await, (true, SealReason::Unspecified));
    let mut altered = history.clone();
    if let Piece::Data(data) = &mut altered[0].piece {
        let mut bytes = data.bytes.to_vec();
        bytes[500] ^= 1;
        data.bytes = bytes.into();
    }
    assert_eq!(reason(&altered, &whole).await, (false, SealReason::HashMismatch));
    // An agent that sends no checksums.
    let mut older = whole.clone();
    let seal = older.seal.as_mut().unwrap();
    for stream in [&mut seal.stdout, &mut seal.stderr] {
        stream.as_mut().unwrap().checksum = None;
    }
    assert_eq!(reason(&history, &older).await, (true, SealReason::Unspecified));
    assert_eq!(reason(&altered, &older).await, (false, SealReason::HashMismatch));
    let mut unhashed = whole.clone();
    unhashed.seal.as_mut().unwrap().stdout.as_mut().unwrap().sha256.clear();
    assert_eq!(reason(&history, &unhashed).await, (false, SealReason::HashMismatch));
    let mut holed = history.clone();
    holed[0].piece = gap(Stream::Stdout, 0, Some(1000), GapReason::SpoolFull);
    assert_eq!(reason(&holed, &whole).await, (false, SealReason::BytesMissing));
    assert_eq!(reason(&history[..1], &whole).await, (false, SealReason::BytesMissing));
    let mut held = whole.clone();
    held.seal.as_mut().unwrap().set_reason(SealReason::PipeHeld);
    assert_eq!(reason(&history, &held).await, (false, SealReason::PipeHeld));
}

/// Segments as version 1 wrote them: no checkpoint, no compression.
#[tokio::test]
async fn segments_of_version_1_are_read_and_gone_on_from() {
    let archive = memory();
    let history = history(&[(false, 5000), (true, 300), (false, 700)]);
    let end = history[1].end();
    let mut object = b"RPSEG\0\0\x01".to_vec();
    for placed in &history[..2] {
        object.extend(placed.piece.clone().into_frame().encode_length_delimited_to_vec());
    }
    let length = object.len() as u64;
    for number in [end.stdout, end.stderr, length] {
        object.extend(number.to_le_bytes());
    }
    object.extend(crc32fast::hash(&object).to_le_bytes());
    object.extend(b"SEAL");
    let name = SegmentName::new(Cursor::default(), 7);
    let path = subject().key.segment_path(&name).unwrap();
    archive.store.put(&path, object.into()).await.unwrap();
    let mut writer = archive.writer(subject()).await.unwrap();
    assert_eq!(writer.saved(), end);
    writer.append(&history[2]);
    assert!(writer.seal(&whole_exit(&history)).await.unwrap().sealed);
}

#[tokio::test]
async fn what_closed_an_attempt_first_stays() {
    let archive = memory();
    let (mut first, mut second) = (
        archive.writer(subject()).await.unwrap(),
        archive.writer(subject()).await.unwrap(),
    );
    let exit = |value| Exit {
        outcome: Outcome::Code.into(),
        value,
        ..Exit::default()
    };
    first.seal(&exit(1)).await.unwrap();
    let kept = second.seal(&exit(2)).await.unwrap();
    assert_eq!(kept.exit_frame().unwrap().value, 1);
    assert_eq!(archive.writer(subject()).await.unwrap().sealed_exit().unwrap().value, 1);
}

#[tokio::test]
async fn text_is_stored_small() {
    let archive = memory();
    let mut writer = archive.writer(subject()).await.unwrap();
    let line = b"2026-11-21T10:00:00Z INFO request completed in 12 ms\n";
    let piece = data(Stream::Stdout, 0, 0, Bytes::from(line.repeat(1000)));
    let start = Cursor::default();
    writer.append(&Placed {
        start,
        piece: piece.clone(),
    });
    writer.flush().await.unwrap();
    let names = archive.segments(&subject().key).await.unwrap();
    let path = subject().key.segment_path(&names[0]).unwrap();
    let stored = archive.store.head(&path).await.unwrap().size;
    assert!(stored < 5000, "{stored} bytes for 53000");
    let all = Wanted {
        cursor: start,
        only: None,
    };
    assert_eq!(read_all(&archive, all).await, vec![piece]);
}
