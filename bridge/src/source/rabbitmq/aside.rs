//! Messages that were put back and wait until they are delivered again. Pure but for the clock that it is given.

use std::time::Duration;

use tokio::time::Instant;

/// When this many messages wait here, with their payloads, nothing else is taken.
const MAX_ASIDE: usize = 16;
/// How long another message may take to come if it is its turn: the queue may be empty.
const PATIENCE: Duration = Duration::from_millis(100);

/// Messages that were put back. They and those of the queue take turns: what is refused again and again must not keep
/// others from being taken.
#[derive(Debug)]
pub(super) struct Aside<T> {
    /// With the moments from which they are to be delivered. There are no more than were taken.
    waiting: Vec<(Instant, T)>,
    turn: Turn,
}

/// What is to be delivered next, if the time of one that waits here has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It.
    Own,
    /// One of the queue.
    Others,
    /// One of the queue, if it comes before this moment.
    OthersUntil(Instant),
}

impl<T> Default for Aside<T> {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            turn: Turn::Own,
        }
    }
}

impl<T> Aside<T> {
    /// Keeps a message until `due`.
    pub(super) fn add(&mut self, due: Instant, message: T) {
        self.waiting.push((due, message));
    }

    /// Forgets the messages for which `is_kept` is false.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&T) -> bool) {
        self.waiting.retain(|(_, message)| is_kept(message));
    }

    /// The message whose time came first, unless it is the turn of one of the queue.
    pub(super) fn take(&mut self, now: Instant) -> Option<T> {
        let due = self.waiting.iter().enumerate().filter(|(_, (due, _))| *due <= now);
        let (index, _) = due.min_by_key(|(_, (due, _))| *due)?;
        if !self.is_full() {
            if self.turn == Turn::Others {
                self.turn = Turn::OthersUntil(now + PATIENCE);
            }
            if matches!(self.turn, Turn::OthersUntil(until) if now < until) {
                return None;
            }
        }
        self.turn = Turn::Others;
        Some(self.waiting.remove(index).1)
    }

    /// A message of the queue was taken.
    pub(super) fn let_pass(&mut self) {
        self.turn = Turn::Own;
    }

    /// When [`Self::take`] may have one.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let first = self.waiting.iter().map(|(due, _)| *due).min()?;
        match self.turn {
            Turn::OthersUntil(until) if !self.is_full() => Some(first.max(until)),
            _ => Some(first),
        }
    }

    /// Whether nothing else is taken.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_ASIDE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_again_and_again_takes_turns_with_others() {
        let (mut now, mut aside) = (Instant::now(), Aside::default());
        (1..MAX_ASIDE).for_each(|number| aside.add(now, number));
        let mut taken = Vec::new();
        for _ in 1..MAX_ASIDE {
            // After a pause so long that all are due.
            now += Duration::from_secs(60);
            let refused = aside.take(now).unwrap();
            taken.push(refused);
            aside.add(now + Duration::from_secs(1), refused);
            now += Duration::from_secs(60);
            assert_eq!(aside.take(now), None, "it is the turn of another one");
            assert!(!aside.is_full());
            aside.let_pass();
        }
        assert!(taken.into_iter().eq(1..MAX_ASIDE), "each of them is tried");
    }

    #[test]
    fn an_empty_queue_does_not_let_them_wait() {
        let (now, mut aside) = (Instant::now(), Aside::default());
        for message in ["a", "b"] {
            aside.add(now, message);
        }
        assert_eq!((aside.take(now), aside.take(now)), (Some("a"), None));
        let later = now + PATIENCE;
        assert_eq!((aside.next_due(), aside.take(later)), (Some(later), Some("b")));
        assert_eq!((aside.next_due(), aside.take(later)), (None, None));
    }

    #[test]
    fn many_let_no_others_pass() {
        let (now, mut aside) = (Instant::now(), Aside::default());
        (0..=MAX_ASIDE).for_each(|number| aside.add(now, number));
        assert_eq!((aside.take(now), aside.is_full()), (Some(0), true));
        assert_eq!((aside.next_due(), aside.take(now)), (Some(now), Some(1)));
        assert_eq!((aside.is_full(), aside.take(now)), (false, None));
    }
}
