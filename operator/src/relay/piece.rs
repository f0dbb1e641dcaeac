//! One item of an attempt's history: bytes, or the statement that bytes are missing; and the gRPC message in which it is
//! sent, encoded once for all readers.

use bytes::Bytes;
use remoteprocess_proto::MAX_CHUNK;
use remoteprocess_proto::v1::{Cursor, Data, Gap, GapReason, OutputFrame, Stream, output_frame::Frame};
use remoteprocess_proto::wire::{HEAD, data_message, encode};

/// A piece of at least this size is a message of its own.
const LARGE: usize = 16 * 1024;
/// A piece of at least this size may stay in the message that brought it: what came from the socket together with it
/// may stay in memory as long, up to twice its size.
const ADOPTED: usize = 32 * 1024;
/// Pieces whose times differ by more than this are not merged, in nanoseconds: the time of a message is that of its
/// first byte.
const MOMENT: i64 = 10_000_000;

/// The items of an attempt's history, in the observed order. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Bytes as the program wrote them.
    Data(Data),
    /// A range that will never be delivered.
    Gap(Gap),
}

/// A piece and the position of both streams before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The offsets that both streams had reached before this piece.
    pub start: Cursor,
    /// The piece itself.
    pub piece: Piece,
}

/// What a reader wants: bytes at or beyond a cursor, of one stream or of both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// First offset wanted of each stream.
    pub cursor: Cursor,
    /// The only stream wanted; `None` for both.
    pub only: Option<Stream>,
}

impl Piece {
    /// The piece inside a frame; `None` for frames that are no part of the history.
    pub fn from_frame(frame: OutputFrame) -> Option<Self> {
        match frame.frame? {
            Frame::Data(data) => Some(Self::Data(data)),
            Frame::Gap(gap) => Some(Self::Gap(gap)),
            Frame::State(_) | Frame::Heartbeat(_) | Frame::Exit(_) | Frame::Spool(_) => None,
        }
    }

    /// The frame that carries this piece.
    pub fn into_frame(self) -> OutputFrame {
        let frame = match self {
            Self::Data(data) => Frame::Data(data),
            Self::Gap(gap) => Frame::Gap(gap),
        };
        OutputFrame { frame: Some(frame) }
    }

    /// The stream that the piece belongs to.
    pub fn stream(&self) -> Stream {
        match self {
            Self::Data(data) => data.stream(),
            Self::Gap(gap) => gap.stream(),
        }
    }

    /// Offset of the first byte of the piece in its stream.
    pub fn from(&self) -> u64 {
        match self {
            Self::Data(data) => data.offset,
            Self::Gap(gap) => gap.from,
        }
    }

    /// First offset after the piece; its own start if the end of a gap is not known.
    pub fn to(&self) -> u64 {
        match self {
            Self::Data(data) => data.offset.saturating_add(data.bytes.len() as u64),
            Self::Gap(gap) => gap.to.unwrap_or(gap.from),
        }
    }

    /// Whether it is a gap whose end is not known. It has no length: a position does not tell whether it was passed.
    pub const fn is_endless(&self) -> bool {
        matches!(self, Self::Gap(Gap { to: None, .. }))
    }

    /// The bytes of the piece; none for a gap.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Data(data) => &data.bytes,
            Self::Gap(_) => &[],
        }
    }

    /// When the agent took the bytes, in nanoseconds since the Unix epoch; `None` for a gap.
    pub fn time(&self) -> Option<i64> {
        match self {
            Self::Data(data) => Some(data.time_unix_nanos),
            Self::Gap(_) => None,
        }
    }

    /// Memory that the piece occupies, in bytes.
    pub fn cost(&self) -> usize {
        /// The piece beside its bytes, and the head of its message in an allocation of its own.
        const OVERHEAD: usize = size_of::<Framed>() + 2 * HEAD;
        self.bytes().len() + OVERHEAD
    }

    /// The part of the piece at or beyond `offset` of its own stream; `None` if nothing is left. A gap without a known
    /// end always stays.
    pub fn beyond(mut self, offset: u64) -> Option<Self> {
        if self.to() <= offset && !self.is_endless() {
            return None;
        }
        match &mut self {
            Self::Data(data) if data.offset < offset => {
                // The cut is shorter than the chunk: `to() > offset`.
                let cut = usize::try_from(offset - data.offset).unwrap_or(data.bytes.len());
                data.bytes = data.bytes.slice(cut.min(data.bytes.len())..);
                data.offset = offset;
            }
            Self::Gap(gap) => gap.from = gap.from.max(offset),
            Self::Data(_) => {}
        }
        Some(self)
    }

    /// The part of the piece that a reader wants.
    pub fn wanted(self, wanted: &Wanted) -> Option<Self> {
        let stream = self.stream();
        if wanted.only.is_some_and(|only| only != stream) {
            return None;
        }
        self.beyond(wanted.cursor.of(stream))
    }
}

impl Placed {
    /// The position of both streams after the piece.
    pub fn end(&self) -> Cursor {
        let mut end = self.start;
        end.set(self.piece.stream(), self.piece.to());
        end
    }
}

/// A piece, its position, and the message that carries it, which contains the piece's bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Framed {
    /// The piece and where it begins.
    pub placed: Placed,
    /// The message with its prefix.
    pub wire: Bytes,
}

/// A message to which further bytes may be added.
#[derive(Debug)]
pub struct Open {
    start: Cursor,
    stream: Stream,
    offset: u64,
    time: i64,
    buffer: Vec<u8>,
}

impl Framed {
    /// The part that a reader wants: usually all of it, unchanged.
    pub fn wanted(self, wanted: &Wanted) -> Option<Self> {
        let piece = &self.placed.piece;
        if wanted.only.is_some_and(|only| only != piece.stream()) {
            return None;
        }
        let reached = wanted.cursor.of(piece.stream());
        if piece.from() >= reached {
            return Some(self);
        }
        let start = self.placed.start;
        let piece = self.placed.piece.beyond(reached)?;
        Some(Self::new(Placed { start, piece }))
    }

    /// The message that brought a piece, if reusing it is worthwhile and it contains little else.
    pub fn adopt(placed: &Placed, wire: &Bytes) -> Option<Self> {
        let length = placed.piece.bytes().len();
        (length >= ADOPTED && wire.len() <= length + HEAD).then(|| Self {
            placed: placed.clone(),
            wire: wire.clone(),
        })
    }

    /// Copies the piece into a message of its own, which refers to nothing larger than itself.
    pub fn new(placed: Placed) -> Self {
        let start = placed.start;
        match &placed.piece {
            Piece::Data(data) => Open::new(start, data).seal(),
            Piece::Gap(_) => Self {
                wire: encode(&placed.piece.clone().into_frame()),
                placed,
            },
        }
    }
}

impl Open {
    /// A message that begins with these bytes.
    pub fn new(start: Cursor, data: &Data) -> Self {
        let mut buffer = Vec::with_capacity(HEAD + data.bytes.len());
        buffer.resize(HEAD, 0);
        buffer.extend_from_slice(&data.bytes);
        Self {
            start,
            stream: data.stream(),
            offset: data.offset,
            time: data.time_unix_nanos,
            buffer,
        }
    }

    /// The position of both streams before it.
    pub fn start(&self) -> Cursor {
        self.start
    }

    /// Whether these bytes, the next of the history, may go into the same message.
    pub fn takes(&self, data: &Data) -> bool {
        let length = self.buffer.len() - HEAD;
        data.stream() == self.stream
            && data.offset == self.offset + length as u64
            && data.time_unix_nanos.abs_diff(self.time) < MOMENT.unsigned_abs()
            && data.bytes.len() < LARGE
            && length + data.bytes.len() <= MAX_CHUNK
    }

    /// Adds bytes for which [`Self::takes`] is true.
    pub fn add(&mut self, data: &Data) {
        self.buffer.extend_from_slice(&data.bytes);
    }

    /// The whole message.
    pub fn seal(self) -> Framed {
        let length = self.buffer.len() - HEAD;
        let wire = data_message(self.buffer, self.stream, self.offset, self.time);
        let piece = Piece::Data(Data {
            stream: self.stream.into(),
            offset: self.offset,
            time_unix_nanos: self.time,
            bytes: wire.slice(wire.len() - length..),
        });
        Framed {
            placed: Placed {
                start: self.start,
                piece,
            },
            wire,
        }
    }
}

/// The distance of a position along the history: the observed order is one sequence, in which this sum only grows.
pub fn distance(cursor: &Cursor) -> u64 {
    cursor.stdout.saturating_add(cursor.stderr)
}

/// A gap that a relay itself reports.
pub fn gap(stream: Stream, from: u64, to: Option<u64>, reason: GapReason) -> Piece {
    Piece::Gap(Gap {
        stream: stream.into(),
        from,
        to,
        reason: reason.into(),
    })
}

/// Bytes of a stream.
pub fn data(stream: Stream, offset: u64, time_unix_nanos: i64, bytes: Bytes) -> Piece {
    Piece::Data(Data {
        stream: stream.into(),
        offset,
        time_unix_nanos,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reader_gets_the_part_beyond_its_cursor() {
        let piece = data(Stream::Stdout, 10, 0, Bytes::from_static(b"abcdef"));
        assert_eq!(piece.clone().beyond(16), None);
        assert_eq!(piece.clone().beyond(10), Some(piece.clone()));
        assert_eq!(
            piece.beyond(12),
            Some(data(Stream::Stdout, 12, 0, Bytes::from_static(b"cdef")))
        );
    }

    #[test]
    fn a_gap_is_cut_at_the_cursor_and_an_endless_one_stays() {
        assert_eq!(
            gap(Stream::Stderr, 0, Some(9), GapReason::SpoolFull).beyond(4),
            Some(gap(Stream::Stderr, 4, Some(9), GapReason::SpoolFull))
        );
        assert_eq!(gap(Stream::Stderr, 0, Some(9), GapReason::SpoolFull).beyond(9), None);
        assert!(
            gap(Stream::Stderr, 3, None, GapReason::NeverSealed)
                .beyond(100)
                .is_some()
        );
    }

    #[test]
    fn the_other_stream_is_filtered_out() {
        let wanted = Wanted {
            cursor: Cursor::default(),
            only: Some(Stream::Stderr),
        };
        assert_eq!(
            data(Stream::Stdout, 0, 0, Bytes::from_static(b"x")).wanted(&wanted),
            None
        );
    }

    fn decode(wire: &Bytes) -> Piece {
        Piece::from_frame(remoteprocess_proto::wire::decode(wire).unwrap()).unwrap()
    }

    #[test]
    fn only_a_large_piece_stays_in_the_message_that_brought_it() {
        let placed = |length| Placed {
            start: Cursor::default(),
            piece: data(Stream::Stdout, 5, 6, Bytes::from(vec![7; length])),
        };
        let (small, large) = (placed(ADOPTED - 1), placed(ADOPTED));
        assert_eq!(Framed::adopt(&small, &Framed::new(small.clone()).wire), None);
        let wire = Framed::new(large.clone()).wire;
        assert_eq!(Framed::adopt(&large, &wire), Some(Framed::new(large.clone())));
        let with_more_in_it = Bytes::from(vec![0; ADOPTED + HEAD + 1]);
        assert_eq!(Framed::adopt(&large, &with_more_in_it), None);
    }

    proptest! {
        #[test]
        fn what_is_written_by_hand_is_the_message(
            error in any::<bool>(), offset in any::<u64>(), time in any::<i64>(), length in 0..70_000_usize
        ) {
            let stream = if error { Stream::Stderr } else { Stream::Stdout };
            let piece = data(stream, offset, time, Bytes::from(vec![7; length]));
            let framed = Framed::new(Placed { start: Cursor::default(), piece: piece.clone() });
            prop_assert_eq!(decode(&framed.wire), piece.clone());
            prop_assert_eq!(framed.placed.piece, piece.clone());
            prop_assert!(framed.wire.len() <= length + HEAD);
        }
    }

    #[test]
    fn a_gap_is_a_message_too() {
        let piece = gap(Stream::Stderr, 4, None, GapReason::NeverSealed);
        let start = Cursor { stdout: 0, stderr: 4 };
        let framed = Framed::new(Placed {
            start,
            piece: piece.clone(),
        });
        assert_eq!(decode(&framed.wire), piece);
    }

    #[test]
    fn only_small_neighbors_of_one_moment_are_merged() {
        let chunk = |stream, offset, time, length| match data(stream, offset, time, Bytes::from(vec![1; length])) {
            Piece::Data(data) => data,
            Piece::Gap(_) => unreachable!(),
        };
        let mut open = Open::new(Cursor::default(), &chunk(Stream::Stdout, 10, 5, 100));
        assert!(!open.takes(&chunk(Stream::Stderr, 110, 5, 1)));
        assert!(!open.takes(&chunk(Stream::Stdout, 111, 5, 1)));
        assert!(!open.takes(&chunk(Stream::Stdout, 110, 5 + MOMENT, 1)));
        assert!(!open.takes(&chunk(Stream::Stdout, 110, 5, LARGE)));
        let next = chunk(Stream::Stdout, 110, 6, 50);
        assert!(open.takes(&next));
        open.add(&next);
        let merged = open.seal();
        assert_eq!(
            decode(&merged.wire),
            data(Stream::Stdout, 10, 5, Bytes::from(vec![1; 150]))
        );
    }
}
