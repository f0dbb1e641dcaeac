//! One reader of an attempt: from the archive, from the ring of a live attempt, or first from one and then from the
//! other.

use std::collections::VecDeque;

use remoteprocess_proto::v1::{Cursor, GapReason};
use tokio::sync::watch;

use super::Feed;
use super::ring::{Next, Place};
use crate::relay::archive::{Archive, Error, Reader, TailSearch, first_since, precedes, since_start, tail_start};
use crate::relay::attempt::AttemptKey;
use crate::relay::piece::{Framed, Open, Piece, Placed, Wanted, distance, gap};

/// A cursor into one attempt's history. It holds at most one segment of it in memory.
pub struct Follower {
    archive: Archive,
    key: AttemptKey,
    reader: Reader,
    live: Option<Live>,
    wanted: Wanted,
    place: Option<Place>,
    until: Option<u64>,
    queue: VecDeque<Placed>,
}

struct Live {
    feed: Feed,
    changes: watch::Receiver<u64>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.feed.ring.leave();
    }
}

impl Follower {
    /// A reader of what `wanted` says.
    pub fn new(archive: Archive, key: AttemptKey, wanted: Wanted) -> Self {
        Self {
            reader: archive.reader(&key),
            live: None,
            wanted,
            place: None,
            until: None,
            queue: VecDeque::new(),
            archive,
            key,
        }
    }

    /// Reads a live ring from now on (or, with `None`, only the archive), and continues at the current position.
    pub fn attach(&mut self, feed: Option<Feed>) {
        // Another home may not have come as far yet: what this follower already has is filtered out.
        self.wanted.cursor = self.position();
        self.place = None;
        self.until = None;
        self.reader.put_back(std::mem::take(&mut self.queue));
        self.live = feed.map(|feed| {
            feed.ring.join();
            let changes = feed.ring.changes();
            Live { feed, changes }
        });
    }

    /// Whether a live attempt is read.
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Begins at the last `lines` lines of what is there now, if that is later than the current beginning.
    pub async fn begin_at_tail(&mut self, lines: u64) -> Result<(), Error> {
        let mut search = TailSearch::new(lines, self.wanted.only);
        let (found, before) = {
            let recent = self.recent();
            let found = recent.iter().rev().find_map(|placed| search.step(placed));
            (found, recent.first().map(|placed| placed.start))
        };
        let start = match found {
            Some(start) => start,
            None => tail_start(&self.archive, &self.key, search, before).await?,
        };
        self.begin_at_least(start);
        Ok(())
    }

    /// Begins at the first piece that was taken at or after `since`, in nanoseconds since the Unix epoch; at the end of
    /// what is there now if there is none.
    pub async fn begin_since(&mut self, since: i64) -> Result<(), Error> {
        let (is_in_ring, recent) = {
            let recent = self.recent();
            let first = recent.iter().find_map(|placed| placed.piece.time());
            (first.is_some_and(|time| time < since), first_since(&recent, since))
        };
        let archived = match is_in_ring {
            true => None,
            false => since_start(&self.archive, &self.key, since).await?,
        };
        let start = match archived.or(recent) {
            Some(start) => start,
            None => match &self.live {
                Some(live) => live.feed.ring.end(),
                None => self.reader.end().await?,
            },
        };
        self.begin_at_least(start);
        Ok(())
    }

    fn begin_at_least(&mut self, start: Cursor) {
        let cursor = &mut self.wanted.cursor;
        cursor.stdout = cursor.stdout.max(start.stdout);
        cursor.stderr = cursor.stderr.max(start.stderr);
    }

    fn recent(&self) -> Vec<Placed> {
        let live = self.live.as_ref();
        live.map(|live| live.feed.ring.snapshot()).unwrap_or_default()
    }

    /// Ends with `Next::Limit` at what has been received now instead of waiting for more. The limit is that of the
    /// attached live attempt; an attempt that has ended is read to its end.
    pub fn limit_to_now(&mut self) {
        self.until = self.live.as_ref().map(|live| distance(&live.feed.ring.end()));
    }

    /// The next wanted pieces, of about `max` bytes.
    pub async fn next(&mut self, max: usize) -> Result<Next, Error> {
        loop {
            let at = self.at().await?;
            if !self.has_ended() && self.until.is_some_and(|until| distance(&at) >= until) {
                return Ok(Next::Limit);
            }
            let found = if self.queue.is_empty() {
                self.fetch(at, max).await?
            } else {
                Next::Pieces(self.dequeue(max))
            };
            match found {
                Next::Pieces(frames) if frames.is_empty() => {}
                other => return Ok(other),
            }
        }
    }

    /// Whether the live attempt knows its end, so that what is left is finite.
    fn has_ended(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.feed.ring.exit().is_some())
    }

    /// Waits until there may be more in the live attempt. Never returns without one.
    pub async fn changed(&mut self) {
        match &mut self.live {
            // An error means that the live attempt is gone; `next` detects that.
            Some(live) => drop(live.changes.changed().await),
            None => std::future::pending().await,
        }
    }

    /// Frees what is held in memory; it is read again when the follower continues.
    pub fn park(&mut self) {
        if let (Some(first), Some(place)) = (self.queue.front(), &mut self.place) {
            *place = Place::new(first.start);
        }
        self.reader.put_back(std::mem::take(&mut self.queue));
    }

    /// Other readers of the archive wait for what this one holds, and it has had its turn.
    pub fn is_due(&self) -> bool {
        self.reader.is_due()
    }

    /// The position of both streams, on the history's path.
    pub fn reached(&self) -> Cursor {
        self.queue
            .front()
            .map(|placed| placed.start)
            .or(self.place.map(|place| place.at))
            .unwrap_or_default()
    }

    /// The reader's position: nothing below it is delivered anymore.
    pub fn position(&self) -> Cursor {
        let (reached, wanted) = (self.reached(), self.wanted.cursor);
        Cursor {
            stdout: reached.stdout.max(wanted.stdout),
            stderr: reached.stderr.max(wanted.stderr),
        }
    }

    async fn at(&mut self) -> Result<Cursor, Error> {
        if self.place.is_none() {
            let front = self.live.as_ref().and_then(|live| live.feed.ring.front());
            let begin = match front.filter(|front| precedes(front, &self.wanted)) {
                Some(front) => front,
                None => self.reader.begin(&self.wanted).await?,
            };
            self.place = Some(Place::new(begin));
        }
        Ok(self.reached())
    }

    async fn fetch(&mut self, at: Cursor, max: usize) -> Result<Next, Error> {
        let place = self.place.get_or_insert_with(|| Place::new(at));
        let Some(live) = &mut self.live else {
            let found = self.reader.next(at).await?;
            return Ok(if found.is_empty() {
                Next::Wait
            } else {
                self.enqueue(found, max)
            });
        };
        live.changes.borrow_and_update();
        match live.feed.ring.read(place, max) {
            Next::Pieces(found) => Ok(Next::Pieces(
                found
                    .into_iter()
                    .filter(|framed| !self.reader.has_told(&framed.placed.piece))
                    .filter_map(|framed| framed.wanted(&self.wanted))
                    .collect(),
            )),
            Next::Behind => {
                let (front, is_home) = (live.feed.ring.front().unwrap_or_default(), live.feed.is_home);
                let mut found = self.reader.next(at).await?;
                if found.is_empty() {
                    // It is durable, or the ring would have kept it: a list that was made while segments arrived may
                    // have missed it.
                    found = self.reader.next(at).await?;
                }
                Ok(if found.is_empty() && !is_home {
                    Next::Behind
                } else if found.is_empty() {
                    self.skip_to(at, front)
                } else {
                    self.enqueue(found, max)
                })
            }
            other => Ok(other),
        }
    }

    /// What the ring has dropped is not in the archive: reports a gap.
    fn skip_to(&mut self, at: Cursor, front: Cursor) -> Next {
        self.place = Some(Place::new(front));
        let mut holes = VecDeque::new();
        let mut start = at;
        for stream in remoteprocess_proto::STREAMS {
            if front.of(stream) > start.of(stream) {
                let piece = gap(
                    stream,
                    start.of(stream),
                    Some(front.of(stream)),
                    GapReason::ArchiveDamaged,
                );
                holes.push_back(Placed { start, piece });
                start.set(stream, front.of(stream));
            }
        }
        self.queue = holes;
        Next::Pieces(self.dequeue(usize::MAX))
    }

    fn enqueue(&mut self, found: Vec<Placed>, max: usize) -> Next {
        if let Some(last) = found.last() {
            self.place = Some(Place::new(last.end()));
        }
        self.queue = found.into();
        Next::Pieces(self.dequeue(max))
    }

    /// The wanted part of the next pieces, with small ones merged. It is copied, so that it does not keep its whole
    /// segment in memory while it waits in a peer's window.
    fn dequeue(&mut self, max: usize) -> Vec<Framed> {
        let mut cost = 0;
        let mut found = Vec::new();
        let mut open: Option<Open> = None;
        while cost < max {
            let Some(Placed { start, piece }) = self.queue.pop_front() else {
                break;
            };
            cost += piece.cost();
            let Some(piece) = piece.wanted(&self.wanted) else {
                continue;
            };
            match (&piece, &mut open) {
                (Piece::Data(data), Some(open)) if open.takes(data) => open.add(data),
                (Piece::Data(data), _) => found.extend(open.replace(Open::new(start, data)).map(Open::seal)),
                (Piece::Gap(_), _) => {
                    found.extend(open.take().map(Open::seal));
                    found.push(Framed::new(Placed { start, piece }));
                }
            }
        }
        found.extend(open.map(Open::seal));
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
            self.reader.release();
        }
        found
    }
}
