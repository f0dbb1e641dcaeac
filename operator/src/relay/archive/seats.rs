//! The memory for decoded segments, and whose turn it is.
//!
//! A reader needs a seat while it holds a segment. Seats are weighed by size. The next free one goes to the user who
//! holds the least, so a user with many readers waits for the own ones, not the others for that user.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// After this long a reader gives its seat up if another reader waits.
const TURN: Duration = Duration::from_secs(2);

/// The memory, counted in bytes.
#[derive(Debug)]
pub(super) struct Seats {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Debug)]
struct State {
    free: usize,
    held: HashMap<Arc<str>, usize>,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    user: Arc<str>,
    bytes: usize,
    seat: oneshot::Sender<Seat>,
}

/// What one reader holds; dropping it lets the next one in.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    user: Arc<str>,
    bytes: usize,
    since: Instant,
}

impl Seats {
    /// Seats for `limit` bytes.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                free: limit,
                held: HashMap::new(),
                waiting: Vec::new(),
            }),
            limit,
        })
    }

    /// A seat for so many bytes, or for all there are. Dropping the future leaves the queue.
    pub(super) async fn take(self: &Arc<Self>, user: &Arc<str>, bytes: usize) -> Seat {
        loop {
            let (seat, taken) = oneshot::channel();
            self.lock().waiting.push(Waiting {
                user: user.clone(),
                bytes: bytes.min(self.limit),
                seat,
            });
            self.admit();
            // The sender is dropped only with a seat.
            if let Ok(seat) = taken.await {
                return seat;
            }
        }
    }

    /// Lets in those whose turn it is, as far as there is room.
    fn admit(self: &Arc<Self>) {
        let mut left = Vec::new();
        let mut state = self.lock();
        while let Some((waiting, bytes)) = state.next() {
            let seat = Seat {
                seats: self.clone(),
                user: waiting.user,
                bytes,
                since: Instant::now(),
            };
            // One whose reader has gone meanwhile goes back without the lock.
            left.extend(waiting.seat.send(seat).err());
        }
    }

    fn give(self: &Arc<Self>, user: &Arc<str>, bytes: usize) {
        self.lock().give(user, bytes);
        self.admit();
    }

    fn is_wanted(&self) -> bool {
        self.lock().waiting.iter().any(|waiting| !waiting.seat.is_closed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the next one out of the queue, if there is room for it: the first of the user who holds the least.
    fn next(&mut self) -> Option<(Waiting, usize)> {
        self.waiting.retain(|waiting| !waiting.seat.is_closed());
        let held = |waiting: &Waiting| self.held.get(&waiting.user).copied().unwrap_or_default();
        let (at, next) = (self.waiting.iter().enumerate()).min_by_key(|(_, waiting)| held(waiting))?;
        let bytes = next.bytes;
        if bytes > self.free {
            return None;
        }
        let next = self.waiting.remove(at);
        self.free -= bytes;
        *self.held.entry(next.user.clone()).or_default() += bytes;
        Some((next, bytes))
    }

    fn give(&mut self, user: &Arc<str>, bytes: usize) {
        self.free += bytes;
        if let Some(held) = self.held.get_mut(user) {
            *held -= bytes;
            if *held == 0 {
                self.held.remove(user);
            }
        }
    }
}

impl Seat {
    /// Bytes that it is for.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back what is more than `bytes`.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let excess = self.bytes.saturating_sub(bytes);
        self.bytes -= excess;
        self.seats.give(&self.user, excess);
    }

    /// Another reader waits, and this one has had its turn.
    pub(super) fn is_due(&self) -> bool {
        self.since.elapsed() >= TURN && self.seats.is_wanted()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.give(&self.user, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn user(name: &str) -> Arc<str> {
        name.into()
    }

    #[tokio::test]
    async fn seats_are_weighed_and_never_more_than_the_limit() {
        let seats = Seats::new(100);
        let mut first = seats.take(&user("alice"), 80).await;
        let mut second = Box::pin(async { seats.take(&user("bob"), 50).await });
        assert!((&mut second).now_or_never().is_none());
        assert!(!first.is_due(), "it has just begun");
        first.shrink(50);
        let second = second.await;
        assert_eq!(seats.lock().free, 0);
        drop((first, second));
        let all = seats.take(&user("bob"), 1000).await;
        assert_eq!(seats.lock().free, 0, "a segment larger than all has all");
        drop(all);
        let state = seats.lock();
        assert_eq!((state.free, state.held.len()), (100, 0));
    }

    /// Forty readers of one user once kept all others out.
    #[tokio::test]
    async fn a_user_with_many_readers_waits_for_the_own_ones() {
        let seats = Seats::new(100);
        let mut held = Vec::new();
        for _ in 0..10 {
            held.push(seats.take(&user("mallory"), 10).await);
        }
        let mut many: Vec<_> = (0..30)
            .map(|_| Box::pin(async { seats.take(&user("mallory"), 10).await }))
            .collect();
        for waiting in &mut many {
            assert!(waiting.now_or_never().is_none());
        }
        let mut late = Box::pin(async { seats.take(&user("alice"), 10).await });
        assert!((&mut late).now_or_never().is_none());
        held.pop();
        let seat = (&mut late).now_or_never();
        assert!(seat.is_some(), "alice holds the least");
        drop(many);
        drop((held, seat));
        assert_eq!(seats.lock().free, 100, "who has left the queue holds nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_only_while_another_waits() {
        let seats = Seats::new(10);
        let seat = seats.take(&user("alice"), 10).await;
        tokio::time::advance(TURN * 2).await;
        assert!(!seat.is_due());
        let mut next = Box::pin(async { seats.take(&user("alice"), 10).await });
        assert!((&mut next).now_or_never().is_none());
        assert!(seat.is_due());
        drop(next);
        assert!(!seat.is_due(), "nobody waits any more");
    }
}
