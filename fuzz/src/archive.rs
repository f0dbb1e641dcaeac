//! What the archive stores: segments, their names, and manifests. The store is not ours, and disks fail.

use bytes::Bytes;
use remoteprocess_operator::fuzz::{encode_segment, read_segment};
use remoteprocess_operator::relay::archive::{Manifest, Segment, SegmentEntry, SegmentName};
use remoteprocess_operator::relay::piece::{Piece, Placed, data, gap};
use remoteprocess_proto::STREAMS;
use remoteprocess_proto::v1::exit::{Outcome, Source, Stop};
use remoteprocess_proto::v1::{Cursor, Exit, GapReason, Reason, Seal, SealReason, Stream, StreamSeal, Usage};
use serde_json::json;

use crate::{Input, Seed, form};

/// Two offsets and a writer (8 bytes each), and an object that a writer could have stored: its checksum is made right.
const SEALED: u8 = 0;
/// The same, as it is.
const OBJECT: u8 = 1;
/// Steps of a writer, see [`pieces`].
const WRITTEN: u8 = 2;
/// A manifest, JSON.
const MANIFEST: u8 = 3;
/// The name of a segment.
const NAME: u8 = 4;

/// Length of the footer of a segment, and where in it the length of all before it is.
const FOOTER: usize = 32;
const LENGTH: usize = 16;
const CHECKSUM: usize = 24;
const MARK: &[u8; 4] = b"SEAL";

/// Judges one input.
pub fn run(input: &[u8]) -> bool {
    let mut input = Input(input);
    match input.byte() % 5 {
        SEALED => {
            let name = name(&mut input);
            object(&name, sealed(input.rest()))
        }
        OBJECT => {
            let name = name(&mut input);
            object(&name, Bytes::copy_from_slice(input.rest()))
        }
        WRITTEN => written(input),
        MANIFEST => manifest(input.rest()),
        _ => str::from_utf8(input.rest()).is_ok_and(is_name),
    }
}

fn name(input: &mut Input<'_>) -> SegmentName {
    let start = Cursor {
        stdout: input.number(),
        stderr: input.number(),
    };
    SegmentName::new(start, u32::from(input.byte()))
}

/// The object with the length, the checksum and the mark that belong to it.
fn sealed(object: &[u8]) -> Bytes {
    let mut object = object.to_vec();
    if let Some(footer) = object.len().checked_sub(FOOTER) {
        let length = (footer as u64).to_le_bytes();
        object[footer + LENGTH..footer + CHECKSUM].copy_from_slice(&length);
        let checksum = crc32fast::hash(&object[..footer + CHECKSUM]).to_le_bytes();
        object[footer + CHECKSUM..footer + CHECKSUM + 4].copy_from_slice(&checksum);
        object[footer + CHECKSUM + 4..].copy_from_slice(MARK);
    }
    object.into()
}

/// A segment that is read has one history, and a writer can store it again.
fn object(name: &SegmentName, object: Bytes) -> bool {
    let Ok(segment) = Segment::decode(name, object) else {
        return false;
    };
    check(name, &segment);
    let pieces: Vec<Piece> = segment.pieces.iter().map(|placed| placed.piece.clone()).collect();
    let again = encode_segment(name, &pieces, None, true).expect("nothing comes before it");
    let again = Segment::decode(name, again).expect("what is written is read");
    assert_eq!((again.pieces, again.end), (segment.pieces.clone(), segment.end));
    let next = SegmentName::new(segment.end, 1);
    if let Some(more) = encode_segment(&next, &[], Some(&segment), false) {
        assert_eq!(
            Segment::decode(&next, more).expect("what is written is read").end,
            segment.end
        );
    }
    true
}

/// Whatever a writer adds, a reader gets: all of it, or the part beyond its cursor, each byte once.
fn written(mut input: Input<'_>) -> bool {
    let start = Cursor {
        stdout: input.number() >> 8,
        stderr: input.number() >> 8,
    };
    let (compress, back) = (input.byte().is_multiple_of(2), input.byte());
    let at = Cursor {
        stdout: start
            .stdout
            .saturating_add(input.byte().into())
            .saturating_sub(back.into()),
        stderr: start.stderr.saturating_add(input.byte().into()),
    };
    let name = SegmentName::new(start, 7);
    let pieces = pieces(input, start);
    let object = encode_segment(&name, &pieces, None, compress).expect("nothing comes before it");
    let segment = Segment::decode(&name, object).expect("what is written is read");
    let read = segment.pieces.iter().map(|placed| &placed.piece);
    assert!(read.eq(&pieces));
    check(&name, &segment);
    check_read(segment, at);
    true
}

/// One piece for each three bytes: the stream and the kind, the length, the time.
fn pieces(mut input: Input<'_>, mut at: Cursor) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while !input.is_empty() && pieces.len() < 64 {
        let (kind, length, time) = (input.byte(), u64::from(input.byte()), i64::from(input.byte()));
        let stream = STREAMS[usize::from(kind % 2)];
        let from = at.of(stream);
        let piece = match kind / 2 % 8 {
            0 => gap(stream, from, Some(from + length), GapReason::SpoolFull),
            1 => gap(stream, from, None, GapReason::NeverSealed),
            2 => data(stream, from, -time, Bytes::from(vec![kind; usize::from(kind) * 32])),
            _ => data(
                stream,
                from,
                time << 30,
                Bytes::copy_from_slice(input.bytes(length as usize)),
            ),
        };
        at.set(stream, piece.to());
        pieces.push(piece);
    }
    pieces
}

/// The pieces of a segment join each other, from its name to its end.
fn check(name: &SegmentName, segment: &Segment) {
    let end = check_path(&segment.pieces, name.start());
    assert_eq!(end, segment.end);
    let bytes: usize = segment.pieces.iter().map(|placed| placed.piece.bytes().len()).sum();
    assert!(segment.cost >= bytes, "all memory is counted");
}

/// Follows the pieces: no offset goes back, no byte comes twice, none is left out. Returns where they end.
fn check_path(pieces: &[Placed], from: Cursor) -> Cursor {
    let mut at = from;
    for placed in pieces {
        let stream = placed.piece.stream();
        assert_eq!((placed.start, placed.piece.from()), (at, at.of(stream)));
        let end = placed.piece.from() + placed.piece.bytes().len() as u64;
        assert!(end <= placed.piece.to(), "{:?}", placed.piece);
        at = placed.end();
    }
    at
}

/// A reader at `at` gets a path, too, and the same bytes.
fn check_read(segment: Segment, at: Cursor) {
    let whole = segment.pieces.clone();
    let read = read_segment(segment, at);
    let end = check_path(&read, at);
    for stream in STREAMS {
        let bytes = |pieces: &[Placed]| -> Vec<u8> {
            let own = pieces.iter().filter(|placed| placed.piece.stream() == stream);
            let beyond = own.filter_map(|placed| placed.piece.clone().beyond(at.of(stream)));
            beyond.flat_map(|piece| piece.bytes().to_vec()).collect()
        };
        assert!(end.of(stream) >= at.of(stream));
        assert_eq!(bytes(&read), bytes(&whole), "{}", stream.name());
    }
}

/// A manifest that is read is the same when it is written and read again.
fn manifest(json: &[u8]) -> bool {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(json) else {
        return false;
    };
    let text = serde_json::to_vec(&manifest).expect("it was read from JSON");
    let again: Manifest = serde_json::from_slice(&text).expect("what is written is read");
    assert_eq!(again, manifest);
    assert_eq!(manifest.exit_frame().is_some(), manifest.exit.is_some());
    for entry in &manifest.segments {
        is_name(&entry.name);
    }
    true
}

/// A name that is read is written in its one form, in which names sort.
fn is_name(text: &str) -> bool {
    let Some(name) = SegmentName::parse(text) else {
        return false;
    };
    assert_eq!(SegmentName::parse(&name.to_string()).as_ref(), Some(&name));
    assert_eq!(SegmentName::new(name.start(), name.writer()), name);
    true
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Seed> {
    let start = Cursor { stdout: 5, stderr: 0 };
    let name = SegmentName::new(start, 7);
    let head = [&5_u64.to_le_bytes()[..], &0_u64.to_le_bytes(), &[7]].concat();
    let pieces = [
        data(Stream::Stdout, 5, 1, Bytes::from(b"0123456789".repeat(20))),
        data(Stream::Stderr, 0, 2, Bytes::from_static(b"\0\r\n")),
        gap(Stream::Stdout, 205, Some(209), GapReason::SpoolFull),
        data(Stream::Stdout, 209, 3, Bytes::new()),
        gap(Stream::Stderr, 3, None, GapReason::NeverSealed),
    ];
    let encode = |compress| encode_segment(&name, &pieces, None, compress).expect("a segment");
    let small = encode_segment(&name, &pieces[1..2], None, false).expect("a segment");
    let mut former = small.to_vec();
    let footer = former.len() - FOOTER;
    let notes = u32::from_le_bytes(former[footer + 8..footer + 12].try_into().expect("four bytes")) as usize;
    // Version 1: no checkpoint, and the end offsets in the footer.
    former.drain(footer - notes..footer);
    former[7] = 1;
    let footer = former.len() - FOOTER;
    former[footer..footer + 8].copy_from_slice(&5_u64.to_le_bytes());
    former[footer + 8..footer + 16].copy_from_slice(&3_u64.to_le_bytes());
    let steps = b"\x08\x03\x01abc\x09\x02\x02xy\x00\x05\x00\x04\x00\x00\x03\x00\x00\x06\x01\x01z";
    let place = [&start.stdout.to_le_bytes()[..], &[0; 8], &[0, 2, 1, 0]].concat();
    vec![
        ("sealed-plain", form(SEALED, &[&head, &encode(false)])),
        ("sealed-zstd", form(SEALED, &[&head, &encode(true)])),
        ("sealed-version-1", form(SEALED, &[&head, &former])),
        ("object", form(OBJECT, &[&head, &encode(true)])),
        ("odd-object-cut", form(OBJECT, &[&head, &encode(true)[..90]])),
        ("written", form(WRITTEN, &[&place, steps])),
        ("manifest-running", form(MANIFEST, &[&json(&Manifest::default())])),
        ("manifest-ended", form(MANIFEST, &[&json(&ended())])),
        ("manifest-early", form(MANIFEST, &[early().as_bytes()])),
        ("name", form(NAME, &[name.to_string().as_bytes()])),
        ("odd-name", form(NAME, &[b"manifest.json"])),
    ]
}

fn json(manifest: &Manifest) -> Vec<u8> {
    serde_json::to_vec(manifest).expect("JSON")
}

fn ended() -> Manifest {
    let stream = |bytes| StreamSeal {
        bytes,
        sha256: vec![1; 32].into(),
        dropped_bytes: 2,
        checksum: Some(bytes),
    };
    let exit = Exit {
        outcome: Outcome::Signal.into(),
        value: 9,
        source: Source::Entrypoint.into(),
        reason: Reason::OomKilled.into(),
        message: "killed".into(),
        stop: Some(Stop {
            requested_by: "ana".into(),
            message: "enough".into(),
        }),
        seal: Some(Seal {
            stdout: Some(stream(3)),
            stderr: Some(stream(10)),
            reason: SealReason::PipeHeld.into(),
        }),
        usage: Some(Usage::default()),
        ..Exit::default()
    };
    let lost = gap(Stream::Stdout, 1, Some(3), GapReason::SpoolFull);
    Manifest {
        version: 1,
        uid: "u-1".into(),
        attempt: 1,
        exit: Some(exit),
        gaps: match lost {
            Piece::Gap(gap) => vec![gap],
            Piece::Data(_) => vec![],
        },
        segments: vec![SegmentEntry::of(&SegmentName::new(Cursor::default(), 7))],
        ..Manifest::default()
    }
}

/// The end as it was stored before v0.1.0.
fn early() -> String {
    let seal = json!({
        "stdoutBytes": 3, "stdoutSha256": "01", "stderrBytes": 10, "stderrSha256": "02", "reason": "PipeHeld",
    });
    let exit = json!({
        "outcome": "OUTCOME_SIGNAL", "value": 9, "source": "SOURCE_ENTRYPOINT", "reason": "OOMKilled", "message": "",
        "stoppedBy": "ana", "stopMessage": "enough", "seal": seal, "startedUnixNanos": 4,
        "finishedUnixNanos": 5, "leftovers": 6, "oomKills": 7, "usage": null,
    });
    json!({"version": 1, "namespace": "a", "name": "b", "uid": "c", "attempt": 1, "exit": exit}).to_string()
}
