//! One item of an attempt's history: bytes, or the statement that bytes are missing.

mod frame;

use bytes::Bytes;
use remoteprocess_proto::v1::{Cursor, Data, Gap, GapReason, OutputFrame, Stream, output_frame::Frame};
use remoteprocess_proto::wire::HEAD;

pub use frame::{Framed, Open};

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
    #[must_use]
    pub fn from_frame(frame: OutputFrame) -> Option<Self> {
        match frame.frame? {
            Frame::Data(data) => Some(Self::Data(data)),
            Frame::Gap(gap) => Some(Self::Gap(gap)),
            Frame::State(_) | Frame::Heartbeat(_) | Frame::Exit(_) | Frame::Spool(_) => None,
        }
    }

    /// The frame that carries this piece.
    #[must_use]
    pub fn into_frame(self) -> OutputFrame {
        let frame = match self {
            Self::Data(data) => Frame::Data(data),
            Self::Gap(gap) => Frame::Gap(gap),
        };
        OutputFrame { frame: Some(frame) }
    }

    /// The stream that the piece belongs to.
    #[must_use]
    pub fn stream(&self) -> Stream {
        match self {
            Self::Data(data) => data.stream(),
            Self::Gap(gap) => gap.stream(),
        }
    }

    /// Offset of the first byte of the piece in its stream.
    #[must_use]
    pub fn from(&self) -> u64 {
        match self {
            Self::Data(data) => data.offset,
            Self::Gap(gap) => gap.from,
        }
    }

    /// First offset after the piece; its own start if the end of a gap is not known.
    #[must_use]
    pub fn to(&self) -> u64 {
        match self {
            Self::Data(data) => data.offset.saturating_add(data.bytes.len() as u64),
            Self::Gap(gap) => gap.to.unwrap_or(gap.from),
        }
    }

    /// The bytes of the piece; none for a gap.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Data(data) => &data.bytes,
            Self::Gap(_) => &[],
        }
    }

    /// When the agent took the bytes, in nanoseconds since the Unix epoch; `None` for a gap.
    #[must_use]
    pub fn time(&self) -> Option<i64> {
        match self {
            Self::Data(data) => Some(data.time_unix_nanos),
            Self::Gap(_) => None,
        }
    }

    /// Memory that the piece occupies, in bytes.
    #[must_use]
    pub fn cost(&self) -> usize {
        /// The piece beside its bytes, and the head of its message in an allocation of its own.
        const OVERHEAD: usize = size_of::<Framed>() + 2 * HEAD;
        self.bytes().len() + OVERHEAD
    }

    /// The part of the piece at or beyond `offset` of its own stream; `None` if nothing is left. A gap without a known
    /// end always stays.
    #[must_use]
    pub fn beyond(mut self, offset: u64) -> Option<Self> {
        let endless = matches!(&self, Self::Gap(gap) if gap.to.is_none());
        if self.to() <= offset && !endless {
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
    #[must_use]
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
    #[must_use]
    pub fn end(&self) -> Cursor {
        let mut end = self.start;
        end.set(self.piece.stream(), self.piece.to());
        end
    }
}

/// The distance of a position along the history: the observed order is one sequence, in which this sum only grows.
#[must_use]
pub fn distance(cursor: &Cursor) -> u64 {
    cursor.stdout.saturating_add(cursor.stderr)
}

/// A gap that a relay itself reports.
#[must_use]
pub fn gap(stream: Stream, from: u64, to: Option<u64>, reason: GapReason) -> Piece {
    Piece::Gap(Gap {
        stream: stream.into(),
        from,
        to,
        reason: reason.into(),
    })
}

/// Bytes of a stream.
#[must_use]
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
}
