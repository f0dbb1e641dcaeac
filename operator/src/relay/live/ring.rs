//! The newest part of an attempt's history, in memory, bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use remoteprocess_proto::v1::{Cursor, Exit, GapReason, Stream};
use tokio::sync::{Notify, watch};

use super::budget::Budget;
use crate::relay::archive::SEGMENT_BYTES;
use crate::relay::piece::{Framed, Open, Piece, Placed, distance, gap};

/// Memory limit of a ring, in bytes: one segment being stored and one being filled.
pub(super) const CAPACITY: usize = 2 * SEGMENT_BYTES;

/// The result of a read: from a ring, or by a follower.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// The next pieces, in order.
    Pieces(Vec<Framed>),
    /// Nothing more now: wait for `changed`.
    Wait,
    /// The ring has moved on. A follower returns it only while the archive does not have the bytes yet.
    Behind,
    /// Everything up to the limit that was set has been delivered.
    Limit,
    /// Everything was delivered, and the attempt ended with this exit.
    End(Box<Exit>),
    /// The live attempt is gone without an end.
    Closed,
}

/// One writer (the upstream), one archiver (the archive), any number of readers.
#[derive(Debug)]
pub(super) struct Ring {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    archiver: Notify,
    room: Notify,
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct State {
    budget: Arc<Budget>,
    begun: bool,
    pieces: VecDeque<Framed>,
    open: Option<Open>,
    /// Index of the front piece, counted over the life of the ring.
    first: u64,
    /// Index of the first piece that is not durable.
    kept: u64,
    cost: usize,
    unkept_cost: usize,
    end: Cursor,
    readers: usize,
    ended: bool,
    exit: Option<Exit>,
    closed: bool,
}

/// The position of a reader.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Position of both streams on the history's path.
    pub at: Cursor,
    /// Index of the next piece, if the reader is inside the ring.
    index: Option<u64>,
}

impl Place {
    /// A position outside the ring.
    pub(super) fn new(at: Cursor) -> Self {
        Self { at, index: None }
    }
}

impl Ring {
    /// An empty ring whose memory is counted in `budget`.
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            state: Mutex::new(State::new(budget.clone())),
            changed: watch::Sender::new(0),
            archiver: Notify::new(),
            room: Notify::new(),
            budget,
        }
    }

    /// Opens the ring at the offsets up to which the archive has the output.
    pub(super) fn begin(&self, at: Cursor) {
        let mut state = self.lock();
        state.begun = true;
        state.end = at;
        drop(state);
        self.wake();
    }

    /// Adds what the agent sent: what is already known is dropped, a hole becomes a gap.
    pub(super) fn push(&self, piece: Piece) {
        self.take(piece, None);
    }

    /// As [`Self::push`], with the message that brought the piece.
    pub(super) fn push_message(&self, piece: Piece, wire: Bytes) {
        self.take(piece, Some(wire));
    }

    fn take(&self, piece: Piece, wire: Option<Bytes>) {
        let stream = piece.stream();
        if stream == Stream::Unspecified {
            return;
        }
        let mut state = self.lock();
        let reached = state.end.of(stream);
        let from = piece.from();
        let Some(piece) = piece.beyond(reached) else { return };
        if from > reached {
            state.append(gap(stream, reached, Some(from), GapReason::AgentSkipped), None);
        }
        let before = state.unkept_cost;
        // A message contains more than what is left of its piece.
        state.append(piece, wire.filter(|_| from >= reached));
        let due = before == 0 || before / SEGMENT_BYTES != state.unkept_cost / SEGMENT_BYTES;
        drop(state);
        if due {
            self.archiver.notify_one();
        }
        self.wake();
    }

    /// Waits until the ring has room for another piece.
    pub(super) async fn room(&self) {
        loop {
            let (room, freed) = (self.room.notified(), self.budget.freed());
            let unkept = self.lock().unkept_cost;
            if unkept == 0 || (unkept < CAPACITY && !self.budget.is_tight()) {
                return;
            }
            tokio::select! {
                () = room => {}
                () = freed => {}
            }
        }
    }

    /// No piece will follow; the archiver may finish.
    pub(super) fn end_upstream(&self) {
        self.lock().ended = true;
        self.archiver.notify_one();
    }

    /// Whether no piece will follow and the archiver has seen all below `index`.
    pub(super) fn is_ended_at(&self, index: u64) -> bool {
        let state = self.lock();
        state.ended && state.open.is_none() && index == state.head()
    }

    /// Gives readers the last frame, once they have had everything up to `end`. If another home has archived more than
    /// came here, they find the rest in the archive.
    pub(super) fn finish(&self, exit: Exit, end: Cursor) {
        let mut state = self.lock();
        if distance(&end) > distance(&state.end) {
            state.restart(end);
        }
        state.exit = Some(exit);
        drop(state);
        self.wake();
    }

    /// The live attempt is over; readers look elsewhere if there was no exit.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake();
    }

    /// For the archiver: the pieces from `index` on, about `max` bytes, and the index after them.
    pub(super) fn unkept(&self, index: u64, max: usize) -> (Vec<Placed>, u64) {
        let mut state = self.lock();
        state.seal();
        let found = state.from(index, max);
        let next = index + found.len() as u64;
        (found.into_iter().map(|framed| framed.placed).collect(), next)
    }

    /// Waits for a reason to store something.
    pub(super) async fn due(&self) {
        self.archiver.notified().await;
    }

    /// Everything below `index` is durable.
    pub(super) fn keep(&self, index: u64) {
        let mut state = self.lock();
        state.seal();
        while state.kept < index {
            let at = usize::try_from(state.kept - state.first).unwrap_or(usize::MAX);
            let cost = state.pieces.get(at).map_or(0, |framed| framed.placed.piece.cost());
            state.unkept_cost = state.unkept_cost.saturating_sub(cost);
            state.kept += 1;
        }
        state.trim();
        drop(state);
        self.room.notify_one();
    }

    /// Everything so far is durable, or another home makes it durable.
    pub(super) fn keep_all(&self) {
        let mut state = self.lock();
        state.kept = state.head();
        state.unkept_cost = 0;
        state.trim();
    }

    /// Releases what need not be held, if memory is short.
    pub(super) fn ease(&self) {
        self.lock().trim();
    }

    pub(super) fn end(&self) -> Cursor {
        self.lock().end
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        self.lock().exit.clone()
    }

    /// Where the ring begins; `None` before the archive is open.
    pub(super) fn front(&self) -> Option<Cursor> {
        let state = self.lock();
        state.begun.then(|| state.front())
    }

    /// The pieces in the ring, for a search from the end.
    pub(super) fn snapshot(&self) -> Vec<Placed> {
        let mut state = self.lock();
        state.seal();
        state.pieces.iter().map(|framed| framed.placed.clone()).collect()
    }

    /// The next pieces for a reader, about `max` bytes; moves its position.
    pub(super) fn read(&self, place: &mut Place, max: usize) -> Next {
        let mut state = self.lock();
        state.seal();
        if !state.begun {
            return if state.closed { Next::Closed } else { Next::Wait };
        }
        let Some(index) = state.locate(place) else {
            place.index = None;
            return Next::Behind;
        };
        let mut found = state.from(index, max);
        // A reader that comes from the archive may be ahead of a ring that mirrors another home.
        place.index = (distance(&place.at) <= distance(&state.end)).then_some(index + found.len() as u64);
        let Some(last) = found.last() else {
            return match &state.exit {
                Some(exit) => Next::End(Box::new(exit.clone())),
                None if state.closed => Next::Closed,
                None => Next::Wait,
            };
        };
        let at = std::mem::replace(&mut place.at, last.placed.end());
        trim_front(&mut found, at);
        Next::Pieces(found)
    }

    /// Fires when there may be more to read.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Counts a reader: while there is one, the ring keeps durable pieces, too.
    pub(super) fn join(&self) {
        self.lock().readers += 1;
    }

    /// Whether there is a reader.
    pub(super) fn is_read(&self) -> bool {
        self.lock().readers > 0
    }

    /// A reader is gone.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.readers = state.readers.saturating_sub(1);
        state.trim();
    }

    fn wake(&self) {
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader that came from the archive may be inside the first piece.
fn trim_front(found: &mut [Framed], at: Cursor) {
    if let Some(first) = found.first_mut() {
        let reached = at.of(first.placed.piece.stream());
        if first.placed.piece.from() < reached
            && let Some(piece) = first.placed.piece.clone().beyond(reached)
        {
            *first = Framed::new(Placed { start: at, piece });
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.budget.give(self.cost);
    }
}

impl State {
    fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            begun: false,
            pieces: VecDeque::new(),
            open: None,
            first: 0,
            kept: 0,
            cost: 0,
            unkept_cost: 0,
            end: Cursor::default(),
            readers: 0,
            ended: false,
            exit: None,
            closed: false,
        }
    }

    fn head(&self) -> u64 {
        self.first + self.pieces.len() as u64
    }

    fn front(&self) -> Cursor {
        let open = || self.open.as_ref().map_or(self.end, Open::start);
        self.pieces.front().map_or_else(open, |framed| framed.placed.start)
    }

    /// Empties the ring and continues at `at`. Every position so far is behind it.
    fn restart(&mut self, at: Cursor) {
        self.seal();
        self.first = self.head() + 1;
        self.kept = self.first;
        self.pieces.clear();
        self.budget.give(std::mem::take(&mut self.cost));
        self.unkept_cost = 0;
        self.end = at;
    }

    fn append(&mut self, piece: Piece, wire: Option<Bytes>) {
        let start = self.end;
        self.end.set(piece.stream(), piece.to());
        let cost = match (&piece, &mut self.open) {
            (Piece::Data(data), Some(open)) if open.takes(data) => {
                open.add(data);
                data.bytes.len()
            }
            _ => {
                self.seal();
                let cost = piece.cost();
                let placed = Placed { start, piece };
                let adopted = wire.and_then(|wire| Framed::adopt(&placed, &wire));
                match (&placed.piece, adopted) {
                    (_, Some(framed)) => self.pieces.push_back(framed),
                    (Piece::Data(data), None) => self.open = Some(Open::new(start, data)),
                    (Piece::Gap(_), None) => self.pieces.push_back(Framed::new(placed)),
                }
                cost
            }
        };
        self.cost += cost;
        self.budget.take(cost);
        self.unkept_cost += cost;
        self.trim();
    }

    /// Makes the open message a piece like the others, before it is read: until then small pieces are combined.
    fn seal(&mut self) {
        self.pieces.extend(self.open.take().map(Open::seal));
    }

    /// Drops durable pieces from the front: all of them if there is no reader, otherwise what exceeds the capacity.
    fn trim(&mut self) {
        let limit = if self.readers == 0 || self.budget.is_tight() {
            0
        } else {
            CAPACITY
        };
        while self.first < self.kept && self.cost > limit {
            let Some(dropped) = self.pieces.pop_front() else { return };
            self.cost -= dropped.placed.piece.cost();
            self.budget.give(dropped.placed.piece.cost());
            self.first += 1;
        }
    }

    fn locate(&self, place: &Place) -> Option<u64> {
        if let Some(index) = place.index.filter(|index| *index >= self.first) {
            return Some(index);
        }
        if distance(&place.at) < distance(&self.front()) {
            return None;
        }
        let at = distance(&place.at);
        // An endless gap at this position is not passed: it has no length.
        let passed = self.pieces.partition_point(|Framed { placed, .. }| {
            distance(&placed.end()) <= at && !(placed.piece.is_endless() && distance(&placed.start) == at)
        });
        Some(self.first + passed as u64)
    }

    fn from(&self, index: u64, max: usize) -> Vec<Framed> {
        let skip = usize::try_from(index.saturating_sub(self.first))
            .unwrap_or(usize::MAX)
            .min(self.pieces.len());
        let mut cost = 0;
        let fits = |framed: &&Framed| {
            let fits = cost < max;
            cost += framed.placed.piece.cost();
            fits
        };
        self.pieces.range(skip..).take_while(fits).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::piece::data;

    fn ring() -> Ring {
        Ring::new(Arc::new(Budget::new(1 << 30)))
    }

    fn chunk(offset: u64, length: usize) -> Piece {
        data(Stream::Stdout, offset, 0, Bytes::from(vec![1; length]))
    }

    fn pieces(read: Next) -> Vec<Piece> {
        let Next::Pieces(found) = read else { panic!("{read:?}") };
        found.into_iter().map(|framed| framed.placed.piece).collect()
    }

    #[test]
    fn a_reader_ahead_of_the_ring_gets_nothing_again() {
        let ring = ring();
        ring.begin(Cursor::default());
        ring.push(chunk(0, 10));
        let mut place = Place::new(Cursor { stdout: 25, stderr: 0 });
        assert_eq!(ring.read(&mut place, 100), Next::Wait);
        ring.push(chunk(10, 10));
        assert_eq!(ring.read(&mut place, 100), Next::Wait);
        ring.push(chunk(20, 10));
        let found = pieces(ring.read(&mut place, 100));
        assert_eq!(found, vec![data(Stream::Stdout, 25, 0, Bytes::from(vec![1; 5]))]);
    }

    #[test]
    fn what_another_home_has_archived_is_read_there_before_the_end() {
        let ring = ring();
        ring.begin(Cursor::default());
        ring.push(chunk(0, 10));
        let (mut reader, mut late) = (Place::default(), Place::default());
        assert_eq!(pieces(ring.read(&mut reader, 100)).len(), 1);
        let end = Cursor { stdout: 30, stderr: 0 };
        ring.finish(Exit::default(), end);
        assert_eq!(ring.read(&mut reader, 100), Next::Behind);
        assert_eq!(ring.read(&mut late, 100), Next::Behind);
        assert_eq!(ring.read(&mut Place::new(end), 100), Next::End(Box::default()));
        assert_eq!(ring.lock().cost, 0);
    }

    #[test]
    fn repeats_are_dropped_and_holes_become_gaps() {
        let ring = ring();
        ring.begin(Cursor { stdout: 10, stderr: 0 });
        ring.push(chunk(5, 10));
        ring.push(chunk(0, 15));
        ring.push(chunk(20, 1));
        let mut place = Place::new(Cursor { stdout: 10, stderr: 0 });
        assert_eq!(
            pieces(ring.read(&mut place, CAPACITY)),
            vec![
                chunk(10, 5),
                gap(Stream::Stdout, 15, Some(20), GapReason::AgentSkipped),
                chunk(20, 1)
            ]
        );
        assert_eq!(ring.read(&mut place, CAPACITY), Next::Wait);
    }

    #[test]
    fn a_reader_behind_the_ring_is_sent_to_the_archive() {
        let ring = ring();
        ring.begin(Cursor::default());
        ring.push(chunk(0, 50_000));
        ring.push(chunk(50_000, 50_000));
        ring.keep(1);
        let mut place = Place::new(Cursor::default());
        assert_eq!(ring.read(&mut place, CAPACITY), Next::Behind);
        let mut place = Place::new(Cursor {
            stdout: 70_000,
            stderr: 0,
        });
        assert_eq!(pieces(ring.read(&mut place, CAPACITY)), vec![chunk(70_000, 30_000)]);
    }

    #[test]
    fn small_pieces_become_large_ones_before_they_are_read() {
        let ring = ring();
        ring.begin(Cursor::default());
        let mut place = Place::new(Cursor::default());
        ring.push(chunk(0, 100));
        assert_eq!(
            pieces(ring.read(&mut place, CAPACITY)),
            vec![chunk(0, 100)],
            "a lone line does not wait"
        );
        for index in 1..1000 {
            ring.push(chunk(index * 100, 100));
        }
        let lengths = pieces(ring.read(&mut place, CAPACITY));
        let lengths: Vec<usize> = lengths.iter().map(|piece| piece.bytes().len()).collect();
        assert_eq!(lengths, vec![65_500, 99_900 - 65_500]);
        assert_eq!(ring.lock().cost, 100_000 + 3 * chunk(0, 0).cost());
    }

    #[test]
    fn durable_pieces_stay_only_for_readers_and_within_the_capacity() {
        let ring = ring();
        ring.begin(Cursor::default());
        ring.join();
        let piece = 64 * 1024;
        for index in 0..400 {
            ring.push(chunk(index * piece as u64, piece));
            ring.keep(index + 1);
        }
        assert!(ring.lock().cost <= CAPACITY + 2 * piece);
        assert!(ring.lock().cost > CAPACITY / 2);
        ring.leave();
        assert_eq!(ring.lock().cost, 0);
    }

    #[tokio::test]
    async fn the_upstream_waits_only_for_durability() {
        let ring = ring();
        ring.begin(Cursor::default());
        let mut offset = 0;
        while ring.lock().unkept_cost < CAPACITY {
            ring.push(chunk(offset, 64 * 1024));
            offset += 64 * 1024;
        }
        let blocked = tokio::time::timeout(std::time::Duration::from_millis(20), ring.room()).await;
        assert!(blocked.is_err());
        ring.keep(1);
        ring.room().await;
    }

    #[tokio::test]
    async fn where_memory_is_short_each_ring_holds_one_piece_at_a_time() {
        let budget = Arc::new(Budget::new(100_000));
        let (first, second) = (Ring::new(budget.clone()), Ring::new(budget.clone()));
        first.begin(Cursor::default());
        second.begin(Cursor::default());
        first.join();
        first.push(chunk(0, 100_000));
        second.room().await;
        second.push(chunk(0, 1000));
        let blocked = tokio::time::timeout(std::time::Duration::from_millis(20), second.room()).await;
        assert!(blocked.is_err());
        first.keep(1);
        second.room().await;
        drop((first, second));
        assert!(!budget.is_tight());
    }
}
