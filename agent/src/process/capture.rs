//! The thread that moves bytes from the pipes into the spool.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::fcntl_setpipe_size;

use crate::spool::{Appender, Stall, Stream, Taken};

/// How often a failed write to the volume is retried.
const VOLUME_RETRY: Duration = Duration::from_millis(250);
/// Fewer bytes than this, taken right after the last ones, are less than a frame holds: a quarter of the pipe's size.
const SMALL: usize = PIPE / 4;
/// The same if a pipe holds only what the kernel gives each by default.
const SMALLEST: usize = 16 * 1024;
/// How long the pipes may fill up then: one record and one frame for each line would cost many times more than its
/// bytes.
const GATHER: Duration = Duration::from_micros(500);
/// A shorter pause costs more than it saves.
const SHORTEST: Duration = Duration::from_micros(50);
/// Size of a pipe in bytes, if the system allows it: the program then need not wait for each turn of this thread.
const PIPE: usize = 256 * 1024;
/// Turns on one pipe before the other gets its turn.
const TURNS: usize = 4;

/// Commands for the thread.
#[derive(Debug)]
pub(super) enum Command {
    /// Take over these read ends. stderr is absent when merged.
    Attach {
        /// Read end of stdout, or of both.
        stdout: OwnedFd,
        /// Read end of stderr.
        stderr: Option<OwnedFd>,
    },
    /// The program has ended: take what is left, even into a full spool.
    DrainPipes,
    /// Close the pipes; no byte follows.
    Close,
}

/// The sender's side of the thread. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Capture {
    commands: Sender<Command>,
    wake: OwnedFd,
}

impl Capture {
    /// Starts the thread; it calls `ended` when all pipes have been read to their end.
    pub(super) fn spawn(appender: Appender, ended: impl Fn(()) + Send + 'static) -> io::Result<Self> {
        let wake = appender.wake_fd().try_clone_to_owned()?;
        let (commands, orders) = channel();
        let capturing = Capturing {
            appender,
            orders,
            pipes: [None, None],
            is_attached: false,
            small: SMALLEST,
            ended,
        };
        std::thread::Builder::new()
            .name("capture".into())
            .stack_size(256 * 1024)
            .spawn(move || capturing.run())?;
        Ok(Self { commands, wake })
    }

    /// Sends a command.
    pub(super) fn order(&self, command: Command) {
        // After `Close` the thread is gone, and there is nothing left to command.
        let _ = self.commands.send(command);
        self.wake();
    }

    fn wake(&self) {
        // Fails only when a wake is pending already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// How long the pipes may fill up now: not at all after a single line, and never so long that they might be full.
fn gather(taken: usize, small: usize, since_last: Duration) -> Duration {
    if taken >= small || since_last >= 2 * GATHER {
        return Duration::ZERO;
    }
    let share = small / taken.max(1);
    GATHER.min(since_last.saturating_mul(u32::try_from(share).unwrap_or(u32::MAX)))
}

struct Capturing<F> {
    appender: Appender,
    orders: Receiver<Command>,
    pipes: [Option<OwnedFd>; 2],
    is_attached: bool,
    /// A turn that takes fewer bytes than this is followed by a pause.
    small: usize,
    ended: F,
}

impl<F: Fn(())> Capturing<F> {
    fn run(mut self) {
        let mut readable = [false; 2];
        let mut last_taken = Instant::now();
        while self.obey() {
            let outcome = self.take(readable);
            let taken = *outcome.as_ref().unwrap_or(&0);
            let has_room = self.appender.has_room();
            let is_refused = outcome.is_err();
            let stall = match outcome {
                Ok(_) => (!has_room && self.is_attached).then_some(Stall::SpoolFull),
                Err(error) => {
                    if !error.is_no_space() {
                        tracing::warn!(%error, "output cannot be taken; trying again");
                    }
                    Some(Stall::VolumeFull)
                }
            };
            let again = self.appender.set_stalled(stall);
            if taken > 0 {
                let pause = gather(taken, self.small, last_taken.elapsed());
                last_taken = Instant::now();
                if pause > SHORTEST {
                    std::thread::sleep(pause);
                }
            }
            let timeout = if is_refused { Some(VOLUME_RETRY) } else { again };
            readable = self.wait(has_room && !is_refused, timeout);
        }
    }

    /// Carries out the pending commands. Returns false when the thread is done.
    fn obey(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Command::Attach { stdout, stderr }) => {
                    // As far as the user's limits allow.
                    let enlarged = stderr
                        .iter()
                        .chain([&stdout])
                        .all(|pipe| fcntl_setpipe_size(pipe, PIPE).is_ok());
                    self.small = if enlarged { SMALL } else { SMALLEST };
                    self.pipes = [Some(stdout), stderr];
                    self.is_attached = true;
                }
                Ok(Command::DrainPipes) => self.appender.set_ending(),
                Ok(Command::Close) => {
                    self.settle_for_good();
                    self.appender.close();
                    return false;
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Bytes that were taken must be journalled before the end is announced, however long the volume refuses.
    fn settle_for_good(&mut self) {
        while let Err(error) = self.appender.finish() {
            tracing::warn!(%error, "the last output waits for room on the volume");
            std::thread::sleep(VOLUME_RETRY);
        }
    }

    /// Takes what the readable pipes hold, and returns how many bytes that were.
    fn take(&mut self, readable: [bool; 2]) -> Result<usize, crate::spool::Error> {
        self.appender.settle()?;
        let mut taken = 0;
        for stream in Stream::ALL {
            let index = stream as usize;
            for _ in 0..TURNS {
                let Some(pipe) = self.pipes[index].as_ref().filter(|_| readable[index]) else {
                    break;
                };
                if !self.appender.has_room() {
                    return Ok(taken);
                }
                match self.appender.take(stream, pipe.as_fd())? {
                    Taken::Bytes(length) => {
                        taken += length;
                        if self.appender.may_block() {
                            break;
                        }
                    }
                    Taken::Nothing => break,
                    Taken::End => self.end(index),
                }
            }
        }
        Ok(taken)
    }

    fn end(&mut self, index: usize) {
        self.pipes[index] = None;
        if self.pipes.iter().all(Option::is_none) {
            self.is_attached = false;
            (self.ended)(());
        }
    }

    /// Waits for a command, for room, or (with `with_pipes`) for bytes; returns which pipes have some.
    fn wait(&self, with_pipes: bool, timeout: Option<Duration>) -> [bool; 2] {
        let wake = self.appender.wake_fd();
        let mut waiting = vec![PollFd::from_borrowed_fd(wake, PollFlags::IN)];
        let mut streams = Vec::with_capacity(2);
        for (index, pipe) in self.pipes.iter().enumerate() {
            if let Some(pipe) = pipe.as_ref().filter(|_| with_pipes) {
                waiting.push(PollFd::new(pipe, PollFlags::IN));
                streams.push(index);
            }
        }
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut waiting, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => tracing::warn!(%error, "poll"),
        }
        if !waiting[0].revents().is_empty() {
            // Only resets the counter; its value carries no information.
            let _ = rustix::io::read(wake, &mut [0; 8]);
        }
        let mut readable = [false; 2];
        for (waited, index) in waiting[1..].iter().zip(streams) {
            readable[index] = !waited.revents().is_empty();
        }
        readable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_line_is_not_delayed_and_a_pipe_does_not_fill_up() {
        let gather = |taken, since| gather(taken, SMALLEST, since);
        assert_eq!(gather(100, Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(gather(SMALLEST, Duration::ZERO), Duration::ZERO);
        assert_eq!(gather(100, GATHER), GATHER, "line by line");
        // 8 KiB in 100 µs: 16 KiB more come in the next 200.
        assert_eq!(
            gather(SMALLEST / 2, Duration::from_micros(100)),
            Duration::from_micros(200)
        );
    }
}
