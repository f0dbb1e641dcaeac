//! Reads one attempt's history back, from any cursor.

use std::collections::VecDeque;

use remoteprocess_proto::v1::{Cursor, GapReason, Stream};

use super::{Archive, Error, Seat, SegmentName};
use crate::relay::attempt::AttemptKey;
use crate::relay::piece::{Piece, Placed, Wanted, distance, gap};

/// Walks the segments of an attempt. A reader that keeps one cursor gets every archived byte at or beyond it once, in
/// the observed order, and an explicit gap where the archive is damaged.
#[derive(Debug)]
pub struct Reader {
    archive: Archive,
    key: AttemptKey,
    listed: VecDeque<SegmentName>,
    /// For the pieces that were returned last.
    seat: Option<Seat>,
    /// The streams whose endless gap was returned. It has no length, so a position does not tell.
    told: Vec<Stream>,
}

/// A segment's pieces beyond a position; never empty.
struct Found {
    pieces: Vec<Placed>,
    durable: Cursor,
    seat: Option<Seat>,
}

impl Reader {
    pub(super) fn new(archive: Archive, key: AttemptKey) -> Self {
        Self {
            archive,
            key,
            listed: VecDeque::new(),
            seat: None,
            told: Vec::new(),
        }
    }

    /// The pieces of the next segment that reaches beyond `at`, a position on the history's path; empty if the
    /// archive has nothing further now. The first piece starts exactly at `at`. The reader has a seat for them until it
    /// is told to [`Reader::release`] it, or reads on.
    pub async fn next(&mut self, at: Cursor) -> Result<Vec<Placed>, Error> {
        self.release();
        let mut has_listed = false;
        loop {
            let is_fresh = self.listed.is_empty();
            if is_fresh {
                self.listed = self.archive.segments(&self.key).await?.into();
            }
            let found = self.advance(at).await?;
            // An earlier list may be older than the archive: neither an end nor a hole in it is trusted. A directory
            // that is read while segments are added may show a later one without an earlier one (readdir(3) allows
            // that): only a second list proves a hole.
            match found {
                None if is_fresh => return Ok(Vec::new()),
                Some(found) if is_no_hole(&found.pieces[0]) => return Ok(self.hold(found)),
                Some(found) if is_fresh && has_listed => return self.believe(found, at).await,
                _ => {}
            }
            has_listed |= is_fresh;
            self.listed.clear();
        }
    }

    /// Handles a segment that was put while the one before it was still in progress: that may still arrive, from its
    /// writer or from the next, unless it was once durable or the attempt is closed.
    async fn believe(&mut self, found: Found, at: Cursor) -> Result<Vec<Placed>, Error> {
        let is_damage = distance(&found.durable) > distance(&at);
        let is_closed = async || {
            let manifest = self.archive.manifest(&self.key).await?;
            Ok::<_, Error>(manifest.is_some_and(|manifest| manifest.exit.is_some()))
        };
        if is_damage || is_closed().await? {
            return Ok(self.hold(found));
        }
        self.listed.clear();
        Ok(Vec::new())
    }

    fn hold(&mut self, found: Found) -> Vec<Placed> {
        self.seat = found.seat;
        let endless = found
            .pieces
            .iter()
            .map(|placed| &placed.piece)
            .filter(|piece| piece.is_endless());
        self.told.extend(endless.map(Piece::stream));
        found.pieces
    }

    /// Whether this reader has returned the piece, as far as its position does not tell: an endless gap.
    pub fn has_told(&self, piece: &Piece) -> bool {
        piece.is_endless() && self.told.contains(&piece.stream())
    }

    /// Takes back pieces of which nobody has heard, and frees what they occupy.
    pub fn put_back(&mut self, pieces: VecDeque<Placed>) {
        let endless = |stream: Stream| {
            let mut of_it = pieces.iter().map(|placed| &placed.piece);
            of_it.any(|piece| piece.is_endless() && piece.stream() == stream)
        };
        self.told.retain(|stream| !endless(*stream));
        self.release();
    }

    /// The pieces that were returned last are not held any more.
    pub fn release(&mut self) {
        self.seat = None;
    }

    /// Other readers wait, and this one has had its turn.
    pub fn is_due(&self) -> bool {
        self.seat.as_ref().is_some_and(Seat::is_due)
    }

    async fn advance(&mut self, at: Cursor) -> Result<Option<Found>, Error> {
        while let Some(name) = self.listed.pop_front() {
            if self.ends_before(&name, &at) {
                continue;
            }
            let Some(segment) = self.archive.segment(&self.key, &name).await? else {
                continue;
            };
            let mut pieces = beyond(segment.pieces, at);
            pieces.retain(|placed| !self.has_told(&placed.piece));
            if !pieces.is_empty() {
                return Ok(Some(Found {
                    pieces,
                    durable: segment.durable,
                    seat: segment.seat,
                }));
            }
        }
        Ok(None)
    }

    /// A segment ends where its own writer's next one begins, so that many need not be read to be skipped.
    fn ends_before(&self, name: &SegmentName, at: &Cursor) -> bool {
        let next = self.listed.iter().find(|later| later.writer() == name.writer());
        next.is_some_and(|next| distance(&next.start()) <= distance(at))
    }

    /// Where on the path a reader that wants `wanted` must begin: the beginning of the last segment before which no
    /// byte is wanted.
    pub async fn begin(&self, wanted: &Wanted) -> Result<Cursor, Error> {
        let names = self.archive.segments(&self.key).await?;
        let start = names
            .iter()
            .map(SegmentName::start)
            .rev()
            .find(|start| precedes(start, wanted));
        Ok(start.unwrap_or_default())
    }

    /// Where the last segment begins: everything before it is archived.
    pub async fn last_start(&self) -> Result<Cursor, Error> {
        let names = self.archive.segments(&self.key).await?;
        Ok(names.last().map(SegmentName::start).unwrap_or_default())
    }

    /// The position of both streams after the last archived piece.
    pub async fn end(&self) -> Result<Cursor, Error> {
        for name in self.archive.segments(&self.key).await?.iter().rev() {
            if let Some(segment) = self.archive.segment(&self.key, name).await? {
                return Ok(segment.end);
            }
        }
        Ok(Cursor::default())
    }
}

fn is_no_hole(placed: &Placed) -> bool {
    !matches!(&placed.piece, Piece::Gap(gap) if gap.reason() == GapReason::ArchiveDamaged)
}

/// Whether everything before `start` is unwanted.
pub fn precedes(start: &Cursor, wanted: &Wanted) -> bool {
    let fits =
        |stream: Stream| wanted.only.is_some_and(|only| only != stream) || start.of(stream) <= wanted.cursor.of(stream);
    fits(Stream::Stdout) && fits(Stream::Stderr)
}

/// The pieces beyond `at`, placed on the path of the reader; a hole becomes a gap.
pub(crate) fn beyond(pieces: Vec<Placed>, at: Cursor) -> Vec<Placed> {
    let mut at = at;
    let mut found = Vec::with_capacity(pieces.len());
    for Placed { start, piece } in pieces {
        for stream in remoteprocess_proto::STREAMS {
            if start.of(stream) > at.of(stream) {
                let hole = gap(stream, at.of(stream), Some(start.of(stream)), GapReason::ArchiveDamaged);
                place(&mut found, &mut at, hole);
            }
        }
        let reached = at.of(piece.stream());
        if let Some(piece) = piece.beyond(reached) {
            place(&mut found, &mut at, piece);
        }
    }
    found
}

fn place(found: &mut Vec<Placed>, at: &mut Cursor, piece: Piece) {
    let placed = Placed { start: *at, piece };
    *at = placed.end();
    found.push(placed);
}
