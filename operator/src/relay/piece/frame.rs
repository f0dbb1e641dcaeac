//! Pieces as they are sent: one gRPC message each, encoded once for all readers.

use bytes::Bytes;
use remoteprocess_proto::MAX_CHUNK;
use remoteprocess_proto::v1::{Cursor, Data, Stream};
use remoteprocess_proto::wire::{HEAD, data_message, encode};

use super::{Piece, Placed, Wanted};

/// A piece of at least this size is a message of its own.
const LARGE: usize = 16 * 1024;
/// A piece of at least this size may stay in the message that brought it: what came from the socket together with it
/// may stay in memory as long, up to twice its size.
const ADOPTED: usize = 32 * 1024;
/// Pieces whose times differ by more than this are not merged, in nanoseconds: the time of a message is that of its
/// first byte.
const MOMENT: i64 = 10_000_000;

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
    #[must_use]
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
    #[must_use]
    pub fn adopt(placed: &Placed, wire: &Bytes) -> Option<Self> {
        let length = placed.piece.bytes().len();
        (length >= ADOPTED && wire.len() <= length + HEAD).then(|| Self {
            placed: placed.clone(),
            wire: wire.clone(),
        })
    }

    /// Copies the piece into a message of its own, which refers to nothing larger than itself.
    #[must_use]
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
    #[must_use]
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
    #[must_use]
    pub fn start(&self) -> Cursor {
        self.start
    }

    /// Whether these bytes, the next of the history, may go into the same message.
    #[must_use]
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
    #[must_use]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::piece::{data, gap};
    use proptest::prelude::*;
    use remoteprocess_proto::v1::GapReason;

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
