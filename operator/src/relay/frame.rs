//! Pieces as they go out: one gRPC message each, encoded once for all readers.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use remoteprocess_proto::MAX_CHUNK;
use remoteprocess_proto::v1::{Cursor, Data, OutputFrame, Stream};

use super::piece::{Piece, Placed};

/// Room before the bytes of a piece for everything that precedes them in a message.
const HEAD: usize = 48;
/// Flag and length before each message of gRPC.
const PREFIX: usize = 5;
/// From this size on a piece is a message of its own.
const LARGE: usize = 16 * 1024;
/// Pieces whose times are further apart are not merged, in nanoseconds: the time of a message is that of its first byte.
const MOMENT: i64 = 10_000_000;
/// Tags of `OutputFrame.data` and of the fields of `Data`.
const DATA: u8 = 0x0a;
const FIELDS: [u8; 4] = [0x08, 0x10, 0x18, 0x22];

/// A piece, its place, and the message that carries it, of which the piece's bytes are a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Framed {
    /// The piece and where it begins.
    pub placed: Placed,
    /// The message with its prefix.
    pub wire: Bytes,
}

/// A message of bytes to which further ones may be added.
#[derive(Debug)]
pub struct Open {
    start: Cursor,
    stream: Stream,
    offset: u64,
    time: i64,
    buffer: BytesMut,
}

impl Framed {
    /// Copies the piece into a message of its own: it refers to nothing larger than itself.
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

/// A message with its prefix.
#[must_use]
pub fn encode(frame: &OutputFrame) -> Bytes {
    let length = frame.encoded_len();
    let mut wire = BytesMut::with_capacity(PREFIX + length);
    put_prefix(&mut wire, length);
    wire.put_slice(&frame.encode_to_vec());
    wire.freeze()
}

impl Open {
    /// A message that begins with these bytes.
    #[must_use]
    pub fn new(start: Cursor, data: &Data) -> Self {
        let mut buffer = BytesMut::with_capacity(HEAD + data.bytes.len());
        buffer.put_bytes(0, HEAD);
        buffer.put_slice(&data.bytes);
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

    /// Adds bytes that it takes.
    pub fn add(&mut self, data: &Data) {
        self.buffer.put_slice(&data.bytes);
    }

    /// The whole message.
    #[must_use]
    pub fn seal(mut self) -> Framed {
        let length = self.buffer.len() - HEAD;
        let head = self.head(length);
        let from = HEAD - head.len();
        self.buffer[from..HEAD].copy_from_slice(&head);
        // A buffer that has grown may be twice as large as what is in it.
        let is_roomy = self.buffer.capacity() - self.buffer.len() > length / 4 + HEAD;
        let wire = if is_roomy {
            Bytes::copy_from_slice(&self.buffer[from..])
        } else {
            self.buffer.freeze().slice(from..)
        };
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

    /// Everything before the bytes; by hand, because they are there already and are not to be copied again.
    fn head(&self, length: usize) -> BytesMut {
        // Two's complement, as the wire has it.
        let values = [
            i32::from(self.stream).unsigned_abs().into(),
            self.offset,
            self.time.cast_unsigned(),
        ];
        let mut fields = BytesMut::with_capacity(HEAD);
        for (tag, value) in FIELDS.into_iter().zip(values).filter(|(_, value)| *value != 0) {
            fields.put_u8(tag);
            encode_varint(value, &mut fields);
        }
        fields.put_u8(FIELDS[3]);
        encode_varint(length as u64, &mut fields);
        let inner = fields.len() + length;
        let mut head = BytesMut::with_capacity(HEAD);
        put_prefix(&mut head, 1 + encoded_len_varint(inner as u64) + inner);
        head.put_u8(DATA);
        encode_varint(inner as u64, &mut head);
        head.put_slice(&fields);
        head
    }
}

fn put_prefix(wire: &mut BytesMut, length: usize) {
    wire.put_u8(0);
    // Messages are at most a chunk and their head.
    wire.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::piece::{data, gap};
    use proptest::prelude::*;

    fn decode(wire: &Bytes) -> Piece {
        let length = u32::from_be_bytes(wire[1..PREFIX].try_into().unwrap());
        assert_eq!((wire[0], length as usize), (0, wire.len() - PREFIX));
        Piece::from_frame(OutputFrame::decode(&wire[PREFIX..]).unwrap()).unwrap()
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
        let piece = gap(Stream::Stderr, 4, None, "NeverSealed");
        let start = Cursor { stdout: 0, stderr: 4 };
        let framed = Framed::new(Placed {
            start,
            piece: piece.clone(),
        });
        assert_eq!(decode(&framed.wire), piece);
    }

    #[test]
    fn only_small_neighbours_of_one_moment_are_merged() {
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
