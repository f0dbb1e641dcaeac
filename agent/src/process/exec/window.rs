//! Output that the client has not confirmed yet. Without I/O.

use std::collections::VecDeque;

use bytes::Bytes;

/// Bytes kept of one stream: when this many are unconfirmed, the command is held back.
pub(super) const WINDOW: usize = 256 * 1024;

/// The unconfirmed end of one stream.
#[derive(Debug, Default)]
pub struct Window {
    /// Offset of the first byte kept.
    begin: u64,
    bytes: VecDeque<u8>,
    is_ended: bool,
}

impl Window {
    /// Number of bytes for which there is room.
    pub fn room(&self) -> usize {
        WINDOW - self.bytes.len()
    }

    /// Appends bytes, at most as many as there is room for.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Nothing follows.
    pub fn end(&mut self) {
        self.is_ended = true;
    }

    /// Offset of the byte that follows.
    pub fn reached(&self) -> u64 {
        self.begin + self.bytes.len() as u64
    }

    /// Whether a reader at this offset has everything that there will ever be.
    pub fn is_over_at(&self, offset: u64) -> bool {
        self.is_ended && offset == self.reached()
    }

    /// Whether a reader can continue at this offset.
    pub fn holds(&self, offset: u64) -> bool {
        (self.begin..=self.reached()).contains(&offset)
    }

    /// The client has everything before this offset.
    pub fn confirm(&mut self, offset: u64) {
        if self.holds(offset) {
            // No more than what is kept.
            let confirmed = usize::try_from(offset - self.begin).unwrap_or_default();
            self.bytes.drain(..confirmed);
            self.begin = offset;
        }
    }

    /// What follows this offset, at most this many bytes.
    pub fn read(&self, offset: u64, most: usize) -> Bytes {
        let from = usize::try_from(offset.saturating_sub(self.begin)).unwrap_or(usize::MAX);
        let from = from.min(self.bytes.len());
        let to = self.bytes.len().min(from + most);
        self.bytes.range(from..to).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_confirmed_makes_room_and_what_is_not_can_be_read_again() {
        let mut window = Window::default();
        window.push(b"abcdef");
        assert_eq!((window.room(), window.reached()), (WINDOW - 6, 6));
        assert_eq!(window.read(2, 3), "cde");
        window.confirm(4);
        assert_eq!((window.room(), window.read(4, 100)), (WINDOW - 2, "ef".into()));
        assert!(!window.holds(3) && window.holds(4) && window.holds(6) && !window.holds(7));
        window.confirm(9);
        assert_eq!(window.read(4, 1), "e", "nobody has what was never written");
        assert!(!window.is_over_at(6));
        window.end();
        assert!(window.is_over_at(6) && !window.is_over_at(5));
    }
}
