//! The form of a segment: a mark, length-delimited `OutputFrame` messages, and a footer that proves it whole.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::encode_varint;
use remoteprocess_proto::MAX_MESSAGE;
use remoteprocess_proto::v1::{Cursor, OutputFrame};

use super::Error;
use crate::relay::piece::{Piece, Placed, distance};

const HEAD: &[u8; 8] = b"RPSEG\0\0\x01";
const TAIL: &[u8; 4] = b"SEAL";
/// End offsets (2 × 8), length of head and records (8), CRC-32 (4), mark (4).
const FOOTER: usize = 32;
/// Bodies from this size on are referred to, smaller ones copied beside their heads.
const COPY_BELOW: usize = 4096;

/// Where a segment begins, and who wrote it. Ordered by place in the history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    distance: u64,
    stdout: u64,
    stderr: u64,
    writer: u32,
}

/// A segment that was read back and found whole.
#[derive(Debug)]
pub struct Segment {
    /// The pieces, in the observed order.
    pub pieces: Vec<Placed>,
    /// The position of both streams after the last piece.
    pub end: Cursor,
}

/// A segment while it is written: refers to the pieces' bytes, copies only small ones.
#[derive(Debug)]
pub struct SegmentBuilder {
    name: SegmentName,
    end: Cursor,
    chunks: Vec<Bytes>,
    loose: BytesMut,
    raw: usize,
}

impl SegmentName {
    /// A name for a segment that begins at `start`.
    #[must_use]
    pub fn new(start: Cursor, writer: u32) -> Self {
        Self {
            distance: distance(&start),
            stdout: start.stdout,
            stderr: start.stderr,
            writer,
        }
    }

    /// The position of both streams where the segment begins.
    #[must_use]
    pub fn start(&self) -> Cursor {
        Cursor {
            stdout: self.stdout,
            stderr: self.stderr,
        }
    }

    /// Who wrote it.
    #[must_use]
    pub fn writer(&self) -> u32 {
        self.writer
    }

    /// Reads a name; `None` for objects that are no segments.
    #[must_use]
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
    #[must_use]
    pub fn new(start: Cursor, writer: u32) -> Self {
        let loose = BytesMut::from(&HEAD[..]);
        Self {
            name: SegmentName::new(start, writer),
            end: start,
            chunks: Vec::new(),
            loose,
            raw: 0,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &SegmentName {
        &self.name
    }

    /// Bytes of output (and of gaps' records) in it.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.raw
    }

    /// The position of both streams after the last piece.
    #[must_use]
    pub fn end(&self) -> Cursor {
        self.end
    }

    /// Adds the next piece of the history.
    pub fn push(&mut self, placed: &Placed) {
        self.raw += placed.piece.cost();
        self.end = placed.end();
        let Piece::Data(data) = &placed.piece else {
            let frame = placed.piece.clone().into_frame();
            encode_varint(frame.encoded_len() as u64, &mut self.loose);
            self.loose.put_slice(&frame.encode_to_vec());
            return;
        };
        // By hand, so that the body is referred to and not copied: `bytes` is the last field of the last message.
        let mut head = data.clone();
        let body = std::mem::take(&mut head.bytes);
        let mut inner = BytesMut::from(&head.encode_to_vec()[..]);
        if !body.is_empty() {
            inner.put_u8(0x22);
            encode_varint(body.len() as u64, &mut inner);
        }
        let mut outer = BytesMut::new();
        outer.put_u8(0x0a);
        encode_varint((inner.len() + body.len()) as u64, &mut outer);
        encode_varint((outer.len() + inner.len() + body.len()) as u64, &mut self.loose);
        self.loose.put_slice(&outer);
        self.loose.put_slice(&inner);
        if body.len() < COPY_BELOW {
            self.loose.put_slice(&body);
        } else {
            self.chunks.push(self.loose.split().freeze());
            self.chunks.push(body);
        }
    }

    /// The whole object, as chunks to be written one after the other.
    #[must_use]
    pub fn object(&self) -> Vec<Bytes> {
        let mut chunks = self.chunks.clone();
        chunks.push(Bytes::copy_from_slice(&self.loose));
        let mut crc = crc32fast::Hasher::new();
        let mut length = 0_u64;
        for chunk in &chunks {
            crc.update(chunk);
            length += chunk.len() as u64;
        }
        let mut footer = BytesMut::with_capacity(FOOTER);
        footer.put_u64_le(self.end.stdout);
        footer.put_u64_le(self.end.stderr);
        footer.put_u64_le(length);
        crc.update(&footer);
        footer.put_u32_le(crc.finalize());
        footer.put_slice(TAIL);
        chunks.push(footer.freeze());
        chunks
    }
}

impl Segment {
    /// Reads a segment back; the pieces share `body`.
    ///
    /// # Errors
    /// When length, checksum or records do not fit: a torn or altered object.
    pub fn decode(name: &SegmentName, body: Bytes) -> Result<Self, Error> {
        decode(name, body).map_err(|reason| Error::Damaged {
            name: name.to_string(),
            reason,
        })
    }
}

fn decode(name: &SegmentName, mut body: Bytes) -> Result<Segment, &'static str> {
    if body.len() < HEAD.len() + FOOTER {
        return Err("too short");
    }
    let footer_at = body.len() - FOOTER;
    let mut footer = body.slice(footer_at..);
    let checked = crc32fast::hash(&body[..footer_at + 24]);
    let end = Cursor {
        stdout: footer.get_u64_le(),
        stderr: footer.get_u64_le(),
    };
    let length = footer.get_u64_le();
    let crc = footer.get_u32_le();
    if &footer[..] != TAIL || length != footer_at as u64 {
        return Err("torn");
    }
    if crc != checked {
        return Err("checksum");
    }
    if &body[..HEAD.len()] != HEAD {
        return Err("not a segment of this version");
    }
    let mut records = body.split_to(footer_at);
    records.advance(HEAD.len());
    let mut pieces = Vec::new();
    let mut at = name.start();
    while records.has_remaining() {
        let length = prost::decode_length_delimiter(&mut records).map_err(|_| "record length")?;
        if length > records.len() || length > MAX_MESSAGE {
            return Err("record length");
        }
        let frame = OutputFrame::decode(records.split_to(length)).map_err(|_| "record")?;
        let piece = Piece::from_frame(frame).ok_or("record")?;
        let placed = Placed { start: at, piece };
        at = placed.end();
        pieces.push(placed);
    }
    if at == end {
        Ok(Segment { pieces, end })
    } else {
        Err("end offsets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::piece::{data, gap};
    use remoteprocess_proto::v1::Stream;

    fn sample() -> (SegmentBuilder, Vec<Piece>) {
        let pieces = vec![
            data(Stream::Stdout, 5, 1, Bytes::from(vec![7; 10_000])),
            data(Stream::Stderr, 0, 2, Bytes::from_static(b"\0\r\n")),
            gap(Stream::Stdout, 10_005, Some(10_009), "SpoolLost"),
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

    #[test]
    fn a_segment_reads_back_as_it_was_written() {
        let (builder, pieces) = sample();
        let segment = Segment::decode(builder.name(), Bytes::from(builder.object().concat())).unwrap();
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
    fn every_cut_and_every_flipped_byte_is_noticed() {
        let (builder, _) = sample();
        let whole = builder.object().concat();
        for length in (0..whole.len()).step_by(97).chain(whole.len() - 40..whole.len()) {
            let cut = Bytes::copy_from_slice(&whole[..length]);
            assert!(Segment::decode(builder.name(), cut).is_err(), "cut at {length}");
        }
        for at in (0..whole.len()).step_by(61).chain(whole.len() - 40..whole.len()) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert!(
                Segment::decode(builder.name(), Bytes::from(flipped)).is_err(),
                "flip at {at}"
            );
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
