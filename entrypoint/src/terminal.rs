//! The program's terminal: a PTY whose output this process moves into a pipe.
//!
//! The agent reads that pipe as it reads any other. `splice(2)` does not work on a terminal, and what is read from one
//! is gone, so the process that reads it must live as long as the program.

use std::io;
use std::os::fd::OwnedFd;

use remoteprocess_entrypoint::input::WindowSize;
use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::stdin::{Stdin, set_nonblocking};

/// Bytes between terminal and pipe.
const BUFFER: usize = 64 * 1024;
/// A terminal provides a few KiB at a time: number of reads before other work gets its turn.
const READS: usize = 16;

/// Both sides of the terminal, and the pipe behind it.
pub(crate) struct Terminal {
    master: OwnedFd,
    /// Held open until the program has ended; otherwise the terminal would hang up between two processes that use it.
    slave: Option<OwnedFd>,
    /// Closed when the last byte is in the pipe.
    pipe: Option<OwnedFd>,
    waiting: Vec<u8>,
    has_ended: bool,
}

impl Terminal {
    /// A terminal of this size, and the read end of what is written to it.
    pub(crate) fn open(size: WindowSize) -> io::Result<(Self, OwnedFd)> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        set_nonblocking(&master)?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        set_nonblocking(&write)?;
        let terminal = Self {
            master,
            slave: Some(slave),
            pipe: Some(write),
            waiting: Vec::with_capacity(BUFFER),
            has_ended: false,
        };
        terminal.resize(size);
        Ok((terminal, read))
    }

    /// The program's side, until the program has ended.
    pub(crate) fn slave(&self) -> Option<&OwnedFd> {
        self.slave.as_ref()
    }

    /// The input of the terminal.
    pub(crate) fn stdin(&self) -> io::Result<Stdin> {
        Ok(Stdin::terminal(fcntl_dupfd_cloexec(&self.master, 3)?))
    }

    /// Changes its size. The kernel signals the foreground programs if the size differs.
    pub(crate) fn resize(&self, size: WindowSize) {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // Refused only if it is no terminal.
        let _ = tcsetwinsize(&self.master, size);
    }

    /// Everything that could write to it has ended.
    pub(crate) fn close(&mut self) {
        self.slave = None;
        self.pump();
    }

    /// Moves what the terminal holds into the pipe, as far as there is room.
    pub(crate) fn pump(&mut self) {
        for _ in 0..READS {
            self.write();
            if !self.waiting.is_empty() || self.has_ended {
                break;
            }
            self.read();
            if self.waiting.is_empty() && !self.has_ended {
                return;
            }
        }
        self.write();
    }

    fn read(&mut self) {
        match rustix::io::read(&self.master, rustix::buffer::spare_capacity(&mut self.waiting)) {
            Ok(0) => self.has_ended = true,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            // EIO: the last process that had it open is gone, and everything was read (pty(7)).
            Err(_) => self.has_ended = true,
        }
    }

    fn write(&mut self) {
        while let Some(pipe) = self.pipe.as_ref().filter(|_| !self.waiting.is_empty()) {
            match rustix::io::write(pipe, &self.waiting) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // This process holds the other end of the pipe.
                Err(_) => self.waiting.clear(),
            }
        }
        if self.has_ended {
            self.pipe = None;
        }
    }

    /// What to poll: room in the pipe while something waits, else the terminal.
    pub(crate) fn poll_fd(&self) -> Option<PollFd<'_>> {
        let pipe = self.pipe.as_ref()?;
        Some(match self.waiting.is_empty() {
            true => PollFd::new(&self.master, PollFlags::IN),
            false => PollFd::new(pipe, PollFlags::OUT),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pipe_holds_the_terminal_back_and_nothing_is_lost() {
        let (mut terminal, read) = Terminal::open(WindowSize { rows: 24, columns: 80 }).unwrap();
        let slave = fcntl_dupfd_cloexec(terminal.slave().unwrap(), 3).unwrap();
        let writer = std::thread::spawn(move || {
            let line = [b'x'; 99];
            for _ in 0..10_000 {
                rustix::io::write(&slave, &line).unwrap();
            }
        });
        let (mut got, mut buffer) = (0, vec![0; 1 << 16]);
        while got < 990_000 {
            terminal.pump();
            let mut asked = [PollFd::new(&read, PollFlags::IN)];
            let now = rustix::time::Timespec {
                tv_sec: 0,
                tv_nsec: 1_000_000,
            };
            if rustix::event::poll(&mut asked, Some(&now)).unwrap() > 0 {
                got += rustix::io::read(&read, &mut buffer[..]).unwrap();
            }
        }
        writer.join().unwrap();
        terminal.close();
        assert_eq!((got, rustix::io::read(&read, &mut buffer[..]).unwrap()), (990_000, 0));
    }
}
