//! What is known of everything up to the end of a segment. It is stored in the segment itself, so that the next writer
//! continues with the same checksums and the same losses.

use bytes::Bytes;
use remoteprocess_proto::Checksum;
use remoteprocess_proto::v1::{Cursor, Gap, Stream};

use crate::relay::piece::Piece;

/// Maximum number of gaps that are stored individually; of further ones only the bytes are counted.
const GAPS: usize = 100;

/// The stored form, at the end of each segment.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Checkpoint {
    /// The position of both streams after the segment's last piece.
    #[prost(message, required, tag = "1")]
    pub end: Cursor,
    /// Everything before this was durable when the segment was written: a hole before it is damage; a hole after it may
    /// be a put that is still in progress.
    #[prost(message, required, tag = "2")]
    pub durable: Cursor,
    /// State of the checksum of stdout up to `end`, 8 bytes, little-endian; absent after a gap. Earlier versions stored that of a
    /// SHA-256, which is longer. Each reads the archive again if it finds the other's.
    #[prost(bytes = "bytes", optional, tag = "3")]
    stdout_state: Option<Bytes>,
    /// See `stdout_state`.
    #[prost(bytes = "bytes", optional, tag = "4")]
    stderr_state: Option<Bytes>,
    /// Ranges that are permanently missing; the first hundred of them.
    #[prost(message, repeated, tag = "5")]
    gaps: Vec<Gap>,
    /// Number of bytes in all such ranges, as far as their ends are known.
    #[prost(message, required, tag = "6")]
    lost: Cursor,
}

/// The running form.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// `None` from the first gap on: bytes that never arrived have no checksum.
    stdout: Option<Checksum>,
    stderr: Option<Checksum>,
    /// Ranges that are permanently missing; the first hundred of them.
    pub gaps: Vec<Gap>,
    /// Number of bytes in all such ranges, as far as their ends are known.
    pub lost: Cursor,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            stdout: Some(Checksum::default()),
            stderr: Some(Checksum::default()),
            gaps: Vec::new(),
            lost: Cursor::default(),
        }
    }
}

impl Tally {
    /// Continues where a segment ended; `None` if its checksums cannot be read.
    pub(super) fn resume(from: &Checkpoint) -> Option<Self> {
        let load = |state: &Option<Bytes>| match state {
            None => Some(None),
            Some(state) => {
                let state = u64::from_le_bytes(state.as_ref().try_into().ok()?);
                Some(Some(Checksum::resume(state)))
            }
        };
        Some(Self {
            stdout: load(&from.stdout_state)?,
            stderr: load(&from.stderr_state)?,
            gaps: from.gaps.clone(),
            lost: from.lost,
        })
    }

    /// Adds the next piece.
    pub(super) fn take(&mut self, piece: &Piece) {
        let checksum = match piece.stream() {
            Stream::Stderr => &mut self.stderr,
            Stream::Stdout | Stream::Unspecified => &mut self.stdout,
        };
        match (piece, checksum) {
            (Piece::Data(data), Some(checksum)) => checksum.update(&data.bytes),
            (Piece::Data(_), None) => {}
            (Piece::Gap(gap), checksum) => {
                *checksum = None;
                self.note(gap);
            }
        }
    }

    /// A gap without a known end is reported again after each resume: it is the same gap.
    fn note(&mut self, gap: &Gap) {
        let is_known = |known: &Gap| known.stream == gap.stream && known.from == gap.from && known.to == gap.to;
        if self.gaps.iter().any(is_known) {
            return;
        }
        let bytes = gap.to.unwrap_or(gap.from).saturating_sub(gap.from);
        // A checkpoint that was read may contain any number.
        let lost = self.lost.of(gap.stream()).saturating_add(bytes);
        self.lost.set(gap.stream(), lost);
        if self.gaps.len() < GAPS {
            self.gaps.push(*gap);
        }
    }

    /// The checksum of all bytes of a stream so far; `None` if some never arrived.
    pub(super) fn checksum(&self, stream: Stream) -> Option<u64> {
        let checksum = match stream {
            Stream::Stderr => &self.stderr,
            Stream::Stdout | Stream::Unspecified => &self.stdout,
        };
        checksum.map(|checksum| checksum.value())
    }

    /// The stored form.
    pub(super) fn checkpoint(&self, end: Cursor, durable: Cursor) -> Checkpoint {
        let store = |checksum: &Checksum| Bytes::copy_from_slice(&checksum.value().to_le_bytes());
        Checkpoint {
            end,
            durable,
            stdout_state: self.stdout.as_ref().map(store),
            stderr_state: self.stderr.as_ref().map(store),
            gaps: self.gaps.clone(),
            lost: self.lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::piece::{data, gap};
    use prost::Message;
    use remoteprocess_proto::v1::GapReason;

    #[test]
    fn a_tally_continues_from_its_checkpoint() {
        let (first, second) = (Bytes::from_static(b"hello, wor"), Bytes::from_static(b"ld"));
        let mut whole = Tally::default();
        whole.take(&data(Stream::Stderr, 0, 0, first));
        let stored = whole.checkpoint(Cursor { stdout: 0, stderr: 10 }, Cursor::default());
        let read = Checkpoint::decode(&stored.encode_to_vec()[..]).unwrap();
        let mut resumed = Tally::resume(&read).unwrap();
        resumed.take(&data(Stream::Stderr, 10, 0, second));
        let mut expected = Checksum::default();
        assert_eq!(resumed.checksum(Stream::Stdout), Some(expected.value()));
        expected.update(b"hello, world");
        assert_eq!(resumed.checksum(Stream::Stderr), Some(expected.value()));
    }

    #[test]
    fn the_state_of_a_sha256_is_not_taken_for_that_of_a_checksum() {
        let mut read = Tally::default().checkpoint(Cursor::default(), Cursor::default());
        assert!(Tally::resume(&read).is_some());
        read.stderr_state = Some(Bytes::from_static(&[0; 104]));
        assert!(Tally::resume(&read).is_none());
    }

    #[test]
    fn no_number_in_a_checkpoint_is_too_large_to_continue_from() {
        let most = Cursor {
            stdout: u64::MAX,
            stderr: u64::MAX,
        };
        let mut read = Tally::default().checkpoint(most, most);
        read.lost = most;
        let mut tally = Tally::resume(&read).unwrap();
        tally.take(&gap(Stream::Stderr, 0, Some(9), GapReason::SpoolFull));
        assert_eq!(tally.lost, most);
    }

    #[test]
    fn after_a_gap_there_is_no_checksum_and_every_lost_byte_is_counted() {
        let mut tally = Tally::default();
        for from in (0..4000).step_by(20) {
            tally.take(&gap(Stream::Stdout, from, Some(from + 10), GapReason::SpoolFull));
            tally.take(&data(Stream::Stdout, from + 10, 0, Bytes::from(vec![1; 10])));
        }
        tally.take(&gap(Stream::Stderr, 0, None, GapReason::NeverSealed));
        tally.take(&gap(Stream::Stderr, 0, None, GapReason::NeverSealed));
        assert_eq!(tally.checksum(Stream::Stdout), None);
        assert_eq!((tally.lost.stdout, tally.lost.stderr), (2000, 0));
        assert_eq!(tally.gaps.len(), GAPS);
    }
}
