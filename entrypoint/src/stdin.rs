//! The program's input: taken at its offset, written as fast as the program reads.

use std::io;
use std::os::fd::OwnedFd;

use remoteprocess_entrypoint::input::{InputState, MAX_INPUT_BYTES};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{SpecialCodeIndex, tcgetattr};

/// Ctrl-D, if the terminal does not name another character that ends its input.
const EOT: u8 = 4;

/// The writing end of the program's input.
pub(crate) struct Stdin {
    sink: Option<OwnedFd>,
    is_terminal: bool,
    /// Taken, but not written yet.
    waiting: Vec<u8>,
    offset: u64,
    is_ended: bool,
    is_mid_line: bool,
}

impl Stdin {
    /// A pipe, and the end from which the program reads.
    pub(crate) fn pipe() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // The read end is a separate file description and stays blocking.
        set_nonblocking(&write)?;
        Ok((Self::new(write, false), read))
    }

    /// The input of a terminal, given its other side, which is non-blocking.
    pub(crate) fn terminal(master: OwnedFd) -> Self {
        Self::new(master, true)
    }

    fn new(sink: OwnedFd, is_terminal: bool) -> Self {
        Self {
            sink: Some(sink),
            is_terminal,
            waiting: Vec::new(),
            offset: 0,
            is_ended: false,
            is_mid_line: false,
        }
    }

    /// How far it has come.
    pub(crate) fn state(&self) -> InputState {
        let is_over = self.is_ended || self.sink.is_none();
        let has_room = self.waiting.is_empty() && !is_over;
        InputState {
            offset: self.offset,
            // Fits: 60 KiB.
            room: if has_room { MAX_INPUT_BYTES as u32 } else { 0 },
            is_over,
        }
    }

    /// Applies a change. Returns how far the input has come if that has changed, or if `is_asked`.
    pub(crate) fn changed_by(&mut self, is_asked: bool, change: impl FnOnce(&mut Self)) -> Option<InputState> {
        let before = self.state();
        change(self);
        let state = self.state();
        (is_asked || state != before).then_some(state)
    }

    /// Takes bytes that arrive at the right offset and within the room; others were sent by an agent that knew less.
    pub(crate) fn take(&mut self, offset: u64, bytes: &[u8]) {
        let state = self.state();
        let fits = u32::try_from(bytes.len()).is_ok_and(|length| length <= state.room);
        if offset == state.offset && fits {
            self.waiting.extend_from_slice(bytes);
            self.offset += bytes.len() as u64;
            self.is_mid_line = bytes.last().map_or(self.is_mid_line, |last| *last != b'\n');
            self.write();
        }
    }

    /// Takes the end, if it is at this offset: a pipe is closed once everything is written; at a terminal the character
    /// that ends the input is typed.
    pub(crate) fn end(&mut self, offset: u64) {
        if offset != self.offset || self.is_ended {
            return;
        }
        self.is_ended = true;
        if let Some(master) = self.sink.as_ref().filter(|_| self.is_terminal) {
            let typed = tcgetattr(master).map_or(EOT, |mode| mode.special_codes[SpecialCodeIndex::VEOF]);
            // Within a line the first one only delivers what was typed of it (termios(3)).
            let times = if self.is_mid_line { 2 } else { 1 };
            self.waiting.extend(std::iter::repeat_n(typed, times));
        }
        self.write();
    }

    /// Writes what the program has room for.
    pub(crate) fn write(&mut self) {
        while let Some(sink) = self.sink.as_ref().filter(|_| !self.waiting.is_empty()) {
            match rustix::io::write(sink, &self.waiting) {
                Ok(written) if written > 0 => drop(self.waiting.drain(..written)),
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => return,
                // There is no reader anymore.
                Err(_) => self.close(),
            }
        }
        if self.is_ended {
            self.close();
        }
    }

    /// The program has ended.
    pub(crate) fn close(&mut self) {
        self.sink = None;
        self.waiting.clear();
    }

    /// What to poll while something waits.
    pub(crate) fn poll_fd(&self) -> Option<PollFd<'_>> {
        let sink = self.sink.as_ref().filter(|_| !self.waiting.is_empty())?;
        Some(PollFd::new(sink, PollFlags::OUT))
    }
}

/// Makes reads and writes return at once.
pub(crate) fn set_nonblocking(descriptor: &OwnedFd) -> io::Result<()> {
    let flags = fcntl_getfl(descriptor)?;
    Ok(fcntl_setfl(descriptor, flags | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pipe: &OwnedFd, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let read = rustix::io::read(pipe, &mut bytes[..]).unwrap();
        bytes.truncate(read);
        bytes
    }

    #[test]
    fn bytes_are_taken_once_and_only_in_their_place() {
        let (mut stdin, pipe) = Stdin::pipe().unwrap();
        stdin.take(0, b"abc");
        stdin.take(0, b"abc");
        stdin.take(4, b"e");
        stdin.end(2);
        assert_eq!((stdin.state().offset, stdin.state().is_over), (3, false));
        stdin.take(3, b"d");
        stdin.end(4);
        assert_eq!(read(&pipe, 10), b"abcd");
        assert_eq!(read(&pipe, 10), b"");
        assert!(stdin.state().is_over);
        stdin.take(4, b"e");
        assert_eq!(stdin.state().offset, 4);
    }

    #[test]
    fn a_program_that_does_not_read_gives_no_room_and_the_end_waits() {
        let (mut stdin, pipe) = Stdin::pipe().unwrap();
        let chunk = vec![7; MAX_INPUT_BYTES];
        stdin.take(0, &chunk);
        stdin.take(stdin.state().offset, &chunk);
        let state = stdin.state();
        assert_eq!((state.offset, state.room), (2 * MAX_INPUT_BYTES as u64, 0));
        stdin.take(state.offset, b"x");
        stdin.end(state.offset);
        assert!(stdin.poll_fd().is_some());
        let mut total = 0;
        while let bytes @ 1.. = read(&pipe, 1 << 20).len() {
            total += bytes;
            stdin.write();
        }
        assert_eq!(total, 2 * MAX_INPUT_BYTES);
    }

    #[test]
    fn a_reader_that_has_gone_ends_it() {
        let (mut stdin, pipe) = Stdin::pipe().unwrap();
        drop(pipe);
        stdin.take(0, b"x");
        assert!(stdin.state().is_over && stdin.poll_fd().is_none());
    }
}
