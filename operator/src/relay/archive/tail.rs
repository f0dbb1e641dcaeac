//! Finds where the last N lines begin.

use memchr::{memchr_iter, memrchr_iter};
use remoteprocess_proto::v1::{Cursor, Stream};

use super::{Archive, Error};
use crate::relay::attempt::AttemptKey;
use crate::relay::piece::{Placed, distance};

/// Counts lines backwards over the history, newest piece first.
#[derive(Debug)]
pub struct TailSearch {
    lines: u64,
    only: Option<Stream>,
    newest: bool,
}

impl TailSearch {
    /// Searches for the beginning of the last `lines` lines of one stream or of both together.
    pub fn new(lines: u64, only: Option<Stream>) -> Self {
        Self {
            lines,
            only,
            newest: true,
        }
    }

    /// Adds the piece before those seen so far; returns the beginning once it is found.
    pub fn step(&mut self, placed: &Placed) -> Option<Cursor> {
        let stream = placed.piece.stream();
        let bytes = placed.piece.bytes();
        if bytes.is_empty() || self.only.is_some_and(|only| only != stream) {
            return None;
        }
        if self.lines == 0 {
            return Some(placed.end());
        }
        // The newline at the very end closes the last line and begins none.
        let end = bytes.len() - usize::from(self.newest && bytes.ends_with(b"\n"));
        self.newest = false;
        // Users ask for many more lines than there are: counting is several times faster than finding each.
        let found = memchr_iter(b'\n', &bytes[..end]).count() as u64;
        if found < self.lines {
            self.lines -= found;
            return None;
        }
        for at in memrchr_iter(b'\n', &bytes[..end]) {
            self.lines -= 1;
            if self.lines == 0 {
                let mut start = placed.start;
                start.set(stream, placed.piece.from() + at as u64 + 1);
                return Some(start);
            }
        }
        None
    }
}

/// Continues a search through the archive, for what is before `before`; returns the very beginning if there are fewer
/// lines.
pub async fn tail_start(
    archive: &Archive,
    key: &AttemptKey,
    mut search: TailSearch,
    before: Option<Cursor>,
) -> Result<Cursor, Error> {
    let mut before = before;
    for name in archive.segments(key).await?.iter().rev() {
        let Some(segment) = archive.segment(key, name).await? else {
            continue;
        };
        for placed in segment.pieces.iter().rev() {
            if before.is_some_and(|before| distance(&placed.start) >= distance(&before)) {
                continue;
            }
            if let Some(start) = search.step(placed) {
                return Ok(start);
            }
        }
        before = Some(name.start());
    }
    Ok(Cursor::default())
}

/// The last bytes of both streams together, in the observed order.
pub(super) async fn last_bytes(archive: &Archive, key: &AttemptKey, limit: usize) -> Result<Vec<u8>, Error> {
    let mut chunks: Vec<Vec<u8>> = Vec::new();
    let mut left = limit;
    // Two writers' segments may overlap.
    let mut before: Option<Cursor> = None;
    for name in archive.segments(key).await?.iter().rev() {
        let Some(segment) = archive.segment(key, name).await? else {
            continue;
        };
        for placed in segment.pieces.iter().rev() {
            let bytes = match before {
                Some(before) => clip(placed, before),
                None => placed.piece.bytes(),
            };
            let taken = &bytes[bytes.len().saturating_sub(left)..];
            left -= taken.len();
            chunks.push(taken.to_vec());
            if left == 0 {
                break;
            }
        }
        if left == 0 {
            break;
        }
        before = Some(name.start());
    }
    chunks.reverse();
    Ok(chunks.concat())
}

/// The bytes of a piece before a position.
fn clip(placed: &Placed, before: Cursor) -> &[u8] {
    let bytes = placed.piece.bytes();
    let room = before.of(placed.piece.stream()).saturating_sub(placed.piece.from());
    &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))]
}
