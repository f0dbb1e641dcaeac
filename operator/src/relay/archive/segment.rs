//! The format of a segment: a mark, length-delimited `OutputFrame` messages, a checkpoint, and a footer that proves
//! that it is complete.
//!
//! Version 2: the messages may be compressed as one zstd frame. Version 1 had neither compression nor a checkpoint; it
//! can still be read.

use std::fmt;
use std::io::Write;
use std::time::Instant;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use remoteprocess_proto::MAX_MESSAGE;
use remoteprocess_proto::v1::{Cursor, Data, OutputFrame, Stream};

use super::checkpoint::{Checkpoint, Tally};
use super::{Error, SEGMENT_BYTES, Seat};
use crate::relay::piece::{Piece, Placed, distance};

const HEAD: &[u8; 8] = b"RPSEG\0\0\x02";
const HEAD_1: &[u8; 8] = b"RPSEG\0\0\x01";
const TAIL: &[u8; 4] = b"SEAL";
/// Raw length of the messages (8), length of the checkpoint (4), codec (4), length of all before the footer (8), CRC-32
/// (4), mark (4).
const FOOTER: usize = 32;
/// Codecs of the messages.
const PLAIN: u32 = 0;
const ZSTD: u32 = 1;
/// The level that saves by far the most for its time: docs/decisions/0010.
const LEVEL: i32 = 1;
/// Size of the sample of a segment that must be stored fast. The whole segment is compressed only if the sample shrinks
/// to less than one part in [`REPETITIVE`]: output that repetitive is compressed faster than it is written.
const SAMPLE: usize = 32 * 1024;
const REPETITIVE: usize = 16;
/// More than the raw size of any segment: a damaged length must not exhaust the memory.
pub(super) const RAW_LIMIT: usize = 2 * SEGMENT_BYTES + 4 * MAX_MESSAGE;
/// Bytes that are compressed in most segments, at most, with room for the list of the pieces.
pub(super) const USUAL: usize = SEGMENT_BYTES + MAX_MESSAGE;
/// Bodies of at least this size are referred to; smaller ones are copied next to their heads.
const COPY_BELOW: usize = 4096;

/// Where a segment begins, and its writer. Ordered by position in the history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    distance: u64,
    stdout: u64,
    stderr: u64,
    writer: u32,
}

/// A segment that was read back and is complete.
#[derive(Debug)]
pub struct Segment {
    /// The pieces, in the observed order.
    pub pieces: Vec<Placed>,
    /// The position of both streams after the last piece.
    pub end: Cursor,
    /// Everything before this was durable when the segment was made.
    pub durable: Cursor,
    /// The checkpoint at its end; version 1 has none.
    pub checkpoint: Option<Checkpoint>,
    /// What holding it costs, in bytes of memory.
    pub cost: usize,
    /// Held by a reader while it holds the pieces.
    pub seat: Option<Seat>,
}

/// A segment while it is written: refers to the pieces' bytes, and copies only small ones.
#[derive(Debug)]
pub(super) struct SegmentBuilder {
    name: SegmentName,
    end: Cursor,
    chunks: Vec<Bytes>,
    loose: BytesMut,
    raw: usize,
    begun: Instant,
}

impl SegmentName {
    /// A name for a segment that begins at `start`.
    pub fn new(start: Cursor, writer: u32) -> Self {
        Self {
            distance: distance(&start),
            stdout: start.stdout,
            stderr: start.stderr,
            writer,
        }
    }

    /// The position of both streams where the segment begins.
    pub fn start(&self) -> Cursor {
        Cursor {
            stdout: self.stdout,
            stderr: self.stderr,
        }
    }

    /// The mark of its writer.
    pub fn writer(&self) -> u32 {
        self.writer
    }

    /// Parses a name; `None` for objects that are no segments.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let stdout = parts.next()?.parse().ok()?;
        let stderr = parts.next()?.parse().ok()?;
        let writer = u32::from_str_radix(parts.next()?, 16).ok()?;
        parts
            .next()
            .is_none()
            .then(|| Self::new(Cursor { stdout, stderr }, writer))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-{:020}-{:08x}", self.stdout, self.stderr, self.writer)
    }
}

impl SegmentBuilder {
    /// An empty segment that begins at `start`.
    pub(super) fn new(start: Cursor, writer: u32) -> Self {
        Self {
            name: SegmentName::new(start, writer),
            end: start,
            chunks: Vec::new(),
            loose: BytesMut::new(),
            raw: 0,
            begun: Instant::now(),
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &SegmentName {
        &self.name
    }

    /// Number of bytes of output (and of records of gaps) in it.
    pub(super) fn raw_bytes(&self) -> usize {
        self.raw
    }

    /// The position of both streams after the last piece.
    pub(super) fn end(&self) -> Cursor {
        self.end
    }

    /// Bytes per second since it was begun.
    pub(super) fn rate(&self) -> f64 {
        self.raw as f64 / self.begun.elapsed().as_secs_f64().max(f64::EPSILON)
    }

    /// Adds the next piece of the history.
    pub(super) fn push(&mut self, placed: &Placed) {
        self.raw += placed.piece.cost();
        self.end = placed.end();
        match &placed.piece {
            Piece::Data(data) => self.push_data(data),
            gap @ Piece::Gap(_) => {
                let frame = gap.clone().into_frame().encode_length_delimited_to_vec();
                self.loose.put_slice(&frame);
            }
        }
    }

    /// Encoded by hand, so that the body is referred to and not copied: `bytes` is the last field of the last message.
    fn push_data(&mut self, data: &Data) {
        let head = Data {
            stream: data.stream,
            offset: data.offset,
            time_unix_nanos: data.time_unix_nanos,
            bytes: Bytes::new(),
        };
        let body = data.bytes.len();
        let field = if body == 0 {
            0
        } else {
            1 + encoded_len_varint(body as u64) + body
        };
        let inner = head.encoded_len() + field;
        encode_varint((1 + encoded_len_varint(inner as u64) + inner) as u64, &mut self.loose);
        self.loose.put_u8(0x0a);
        encode_varint(inner as u64, &mut self.loose);
        head.encode_raw(&mut self.loose);
        if body > 0 {
            self.loose.put_u8(0x22);
            encode_varint(body as u64, &mut self.loose);
        }
        if body < COPY_BELOW {
            self.loose.put_slice(&data.bytes);
        } else {
            self.split();
            self.chunks.push(data.bytes.clone());
        }
    }

    /// Appends the segment that follows this one.
    pub(super) fn absorb(&mut self, mut next: Self) {
        next.split();
        self.split();
        self.chunks.append(&mut next.chunks);
        self.raw += next.raw;
        self.end = next.end;
        self.begun = next.begun;
    }

    fn split(&mut self) {
        if !self.loose.is_empty() {
            self.chunks.push(self.loose.split().freeze());
        }
    }

    /// The whole object, as chunks to be written one after the other: compressed, or plain if it must be stored fast.
    /// Uses the processor for milliseconds.
    pub(super) fn object(&mut self, checkpoint: &Checkpoint, compress: bool) -> Vec<Bytes> {
        self.split();
        let raw: usize = self.chunks.iter().map(Bytes::len).sum();
        let compress = compress || is_repetitive(&self.chunks);
        let small = compress.then(|| squeeze(&self.chunks, raw)).flatten();
        let codec = if small.is_some() { ZSTD } else { PLAIN };
        let mut chunks = vec![Bytes::from_static(HEAD)];
        match small {
            Some(small) => chunks.push(small),
            None => chunks.extend_from_slice(&self.chunks),
        }
        let checkpoint = Bytes::from(checkpoint.encode_to_vec());
        let noted = checkpoint.len();
        chunks.push(checkpoint);
        let length: usize = chunks.iter().map(Bytes::len).sum();
        let mut footer = BytesMut::with_capacity(FOOTER);
        footer.put_u64_le(raw as u64);
        footer.put_u32_le(u32::try_from(noted).unwrap_or(u32::MAX));
        footer.put_u32_le(codec);
        footer.put_u64_le(length as u64);
        let mut crc = crc32fast::Hasher::new();
        chunks.iter().for_each(|chunk| crc.update(chunk));
        crc.update(&footer);
        footer.put_u32_le(crc.finalize());
        footer.put_slice(TAIL);
        chunks.push(footer.freeze());
        chunks
    }
}

fn is_repetitive(chunks: &[Bytes]) -> bool {
    let mut sample = Vec::with_capacity(SAMPLE);
    for chunk in chunks {
        let part = chunk.len().min(SAMPLE - sample.len());
        sample.extend_from_slice(&chunk[..part]);
    }
    sample.len() == SAMPLE && zstd::bulk::compress(&sample, LEVEL).is_ok_and(|small| small.len() < SAMPLE / REPETITIVE)
}

/// The chunks as one zstd frame; `None` if that saves nothing.
fn squeeze(chunks: &[Bytes], raw: usize) -> Option<Bytes> {
    let mut encoder = zstd::Encoder::new(Vec::with_capacity(raw / 3), LEVEL).ok()?;
    encoder.set_pledged_src_size(Some(raw as u64)).ok()?;
    encoder.include_checksum(false).ok()?;
    for chunk in chunks {
        encoder.write_all(chunk).ok()?;
    }
    let small = encoder.finish().ok()?;
    (small.len() < raw).then(|| small.into())
}

/// The footer of version 2, up to its mark.
struct Footer {
    /// Length of the messages, if they are not compressed.
    raw: usize,
    /// Length of the checkpoint.
    noted: usize,
    codec: u32,
    /// Length of all before the footer.
    length: u64,
    crc: u32,
}

impl Footer {
    /// Reads the last [`FOOTER`] bytes of an object.
    fn read(mut bytes: &[u8]) -> Self {
        Self {
            raw: usize::try_from(bytes.get_u64_le()).unwrap_or(usize::MAX),
            noted: bytes.get_u32_le() as usize,
            codec: bytes.get_u32_le(),
            length: bytes.get_u64_le(),
            crc: bytes.get_u32_le(),
        }
    }
}

impl Segment {
    /// The object that a writer makes of `pieces`: of a new attempt, or as it continues after a segment. `None` if the
    /// checkpoint of that segment is damaged. For `fuzz/`.
    pub(crate) fn encode(name: &SegmentName, pieces: &[Piece], after: Option<&Self>, compress: bool) -> Option<Bytes> {
        let mut tally = match after.and_then(|segment| segment.checkpoint.as_ref()) {
            Some(checkpoint) => Tally::resume(checkpoint)?,
            None => Tally::default(),
        };
        let mut builder = SegmentBuilder::new(name.start(), name.writer());
        for piece in pieces {
            tally.take(piece);
            builder.push(&Placed {
                start: builder.end(),
                piece: piece.clone(),
            });
        }
        let checkpoint = tally.checkpoint(builder.end(), name.start());
        Some(builder.object(&checkpoint, compress).concat().into())
    }

    /// Reads a segment back; the pieces share `body` if it is not compressed. Uses the processor for milliseconds.
    pub fn decode(name: &SegmentName, body: Bytes) -> Result<Self, Error> {
        let buffer = Vec::with_capacity(compressed(&body));
        Self::decode_into(name, body, buffer)
    }

    /// As [`Segment::decode`]. What is compressed goes into `buffer`, which has room for it by [`compressed`].
    pub(super) fn decode_into(name: &SegmentName, body: Bytes, buffer: Vec<u8>) -> Result<Self, Error> {
        let is_whole = body.len() >= HEAD.len() + FOOTER && body.ends_with(TAIL);
        let decoded = match body.get(..HEAD.len()) {
            Some(head) if is_whole && head == HEAD => decode(name, body, buffer),
            Some(head) if is_whole && head == HEAD_1 => decode_1(name, body),
            _ if is_whole => Err("not a segment of this version"),
            _ => Err("torn"),
        };
        decoded.map_err(|reason| Error::Damaged {
            name: name.to_string(),
            reason,
        })
    }
}

fn decode(name: &SegmentName, mut body: Bytes, buffer: Vec<u8>) -> Result<Segment, &'static str> {
    let footer_at = body.len() - FOOTER;
    let checked = crc32fast::hash(&body[..footer_at + 24]);
    let footer = Footer::read(&body.split_off(footer_at));
    if footer.crc != checked {
        return Err("checksum");
    }
    body.advance(HEAD.len());
    if footer.length != footer_at as u64 || footer.noted > body.len() {
        return Err("lengths");
    }
    let checkpoint = body.split_off(body.len() - footer.noted);
    let checkpoint = Checkpoint::decode(checkpoint).map_err(|_| "checkpoint")?;
    let records = match footer.codec {
        PLAIN => body,
        ZSTD if footer.raw <= RAW_LIMIT => decompress(&body, buffer).map_err(|_| "compression")?,
        _ => return Err("codec"),
    };
    let held = records.len();
    let pieces = decode_records(name, records, checkpoint.end)?;
    Ok(Segment {
        cost: held + cost_of_places(&pieces),
        pieces,
        end: checkpoint.end,
        durable: checkpoint.durable,
        checkpoint: Some(checkpoint),
        seat: None,
    })
}

/// Decompresses into a buffer that is as large as the result.
fn decompress(small: &[u8], mut buffer: Vec<u8>) -> std::io::Result<Bytes> {
    zstd::bulk::Decompressor::new()?.decompress_to_buffer(small, &mut buffer)?;
    Ok(buffer.into())
}

/// Version 1: end offsets (2 × 8), length of head and records (8), CRC-32 (4), mark (4). Its writer had one put at a
/// time.
fn decode_1(name: &SegmentName, mut body: Bytes) -> Result<Segment, &'static str> {
    let footer_at = body.len() - FOOTER;
    let checked = crc32fast::hash(&body[..footer_at + 24]);
    let mut footer = body.split_off(footer_at);
    let end = Cursor {
        stdout: footer.get_u64_le(),
        stderr: footer.get_u64_le(),
    };
    let length = footer.get_u64_le();
    if footer.get_u32_le() != checked {
        return Err("checksum");
    }
    if length != footer_at as u64 {
        return Err("lengths");
    }
    body.advance(HEAD.len());
    let held = body.len();
    let pieces = decode_records(name, body, end)?;
    Ok(Segment {
        cost: held + cost_of_places(&pieces),
        pieces,
        end,
        durable: name.start(),
        checkpoint: None,
        seat: None,
    })
}

/// Bytes that are compressed in an object, by what it says itself, and at most what a reader accepts; 0 if nothing is.
pub(super) fn compressed(body: &[u8]) -> usize {
    let footer = match body.len().checked_sub(FOOTER) {
        Some(at) if body.starts_with(HEAD) => Footer::read(&body[at..]),
        _ => return 0,
    };
    match footer.codec {
        PLAIN => 0,
        _ => footer.raw.min(RAW_LIMIT),
    }
}

fn cost_of_places(pieces: &[Placed]) -> usize {
    size_of_val(pieces)
}

fn decode_records(name: &SegmentName, mut records: Bytes, end: Cursor) -> Result<Vec<Placed>, &'static str> {
    let mut pieces = Vec::new();
    let mut at = name.start();
    while records.has_remaining() {
        let length = prost::decode_length_delimiter(&mut records).map_err(|_| "record length")?;
        if length > records.len() || length > MAX_MESSAGE {
            return Err("record length");
        }
        let frame = OutputFrame::decode(records.split_to(length)).map_err(|_| "record")?;
        let piece = Piece::from_frame(frame).ok_or("record")?;
        if !follows(&piece, &at) {
            return Err("record order");
        }
        let placed = Placed { start: at, piece };
        at = placed.end();
        pieces.push(placed);
    }
    if at == end { Ok(pieces) } else { Err("end offsets") }
}

/// Whether the piece is the next of its stream, and ends at or after its last byte. No writer has stored anything else, and
/// a reader that trusted such a piece would read bytes twice or leave some out.
fn follows(piece: &Piece, at: &Cursor) -> bool {
    let (stream, length) = (piece.stream(), piece.bytes().len() as u64);
    let end = piece.from().checked_add(length);
    stream != Stream::Unspecified && piece.from() == at.of(stream) && end.is_some_and(|end| end <= piece.to())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::piece::{data, gap};
    use remoteprocess_proto::v1::GapReason;

    fn sample() -> (SegmentBuilder, Vec<Piece>) {
        let pieces = vec![
            data(Stream::Stdout, 5, 1, Bytes::from(vec![7; 10_000])),
            data(Stream::Stderr, 0, 2, Bytes::from_static(b"\0\r\n")),
            gap(Stream::Stdout, 10_005, Some(10_009), GapReason::SpoolFull),
            data(Stream::Stdout, 10_009, 3, Bytes::new()),
        ];
        let mut builder = SegmentBuilder::new(Cursor { stdout: 5, stderr: 0 }, 0xabc);
        for piece in &pieces {
            builder.push(&Placed {
                start: builder.end(),
                piece: piece.clone(),
            });
        }
        (builder, pieces)
    }

    fn object(builder: &mut SegmentBuilder, compress: bool) -> Bytes {
        let checkpoint = Tally::default().checkpoint(builder.end(), builder.name().start());
        builder.object(&checkpoint, compress).concat().into()
    }

    #[test]
    fn a_segment_reads_back_as_it_was_written() {
        for compress in [true, false] {
            reads_back(compress);
        }
    }

    fn reads_back(compress: bool) {
        let (mut builder, pieces) = sample();
        let object = object(&mut builder, compress);
        let segment = Segment::decode(builder.name(), object).unwrap();
        assert_eq!(
            segment.end,
            Cursor {
                stdout: 10_009,
                stderr: 3
            }
        );
        assert_eq!(
            segment
                .pieces
                .into_iter()
                .map(|placed| placed.piece)
                .collect::<Vec<_>>(),
            pieces
        );
    }

    #[test]
    fn in_a_hurry_only_what_repeats_itself_is_compressed() {
        let lines: Vec<u8> = (0..1000_u64)
            .flat_map(|number| format!("{:x} a line like others\n", number * number * 7919).into_bytes())
            .collect();
        let length = 2 * SAMPLE;
        for (bytes, is_small) in [(vec![b'x'; length], true), (lines.repeat(3)[..length].to_vec(), false)] {
            let start = Cursor::default();
            let mut builder = SegmentBuilder::new(start, 1);
            for part in bytes.chunks(5000) {
                let piece = data(Stream::Stdout, builder.end().stdout, 1, Bytes::copy_from_slice(part));
                builder.push(&Placed {
                    start: builder.end(),
                    piece,
                });
            }
            let object = object(&mut builder, false);
            assert_eq!(object.len() < length / REPETITIVE, is_small, "{}", object.len());
            let segment = Segment::decode(builder.name(), object).unwrap();
            let read: Vec<u8> = segment
                .pieces
                .iter()
                .flat_map(|placed| placed.piece.bytes().to_vec())
                .collect();
            assert_eq!(read, bytes);
        }
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_noticed() {
        let (mut builder, _) = sample();
        let whole = object(&mut builder, true);
        for length in (0..whole.len()).step_by(97).chain(whole.len() - 40..whole.len()) {
            let cut = Bytes::copy_from_slice(&whole[..length]);
            assert!(Segment::decode(builder.name(), cut).is_err(), "cut at {length}");
        }
        for at in (0..whole.len()).step_by(61).chain(whole.len() - 40..whole.len()) {
            let mut flipped = whole.to_vec();
            flipped[at] ^= 0x10;
            assert!(
                Segment::decode(builder.name(), Bytes::from(flipped)).is_err(),
                "flip at {at}"
            );
        }
    }

    #[test]
    fn a_segment_whose_offsets_go_back_or_leave_bytes_out_is_damaged() {
        let before = data(Stream::Stdout, 5, 1, Bytes::from_static(b"abcde"));
        for (odd, what) in [
            (data(Stream::Stdout, 7, 2, Bytes::from_static(b"cde")), "twice"),
            (data(Stream::Stdout, 11, 2, Bytes::from_static(b"x")), "left out"),
            (gap(Stream::Stdout, 10, Some(3), GapReason::SpoolFull), "back"),
            (
                data(Stream::Unspecified, 0, 2, Bytes::from_static(b"x")),
                "of no stream",
            ),
        ] {
            let name = SegmentName::new(Cursor { stdout: 5, stderr: 0 }, 1);
            let object = Segment::encode(&name, &[before.clone(), odd], None, false).unwrap();
            let error = Segment::decode(&name, object).unwrap_err().to_string();
            assert!(error.contains("record order"), "{what}: {error}");
        }
    }

    #[test]
    fn names_sort_by_place_and_parse_back() {
        let first = SegmentName::new(Cursor { stdout: 9, stderr: 100 }, 1);
        let second = SegmentName::new(
            Cursor {
                stdout: 200,
                stderr: 100,
            },
            0,
        );
        assert!(first < second);
        assert_eq!(SegmentName::parse(&first.to_string()), Some(first));
        assert_eq!(SegmentName::parse("manifest.json"), None);
    }
}
