//! Standard output and error: the container's own, and the pipes that replace them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use remoteprocess_entrypoint::message::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, fchmod};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::{dup2_stderr, dup2_stdout, stderr, stdout};
use rustix::time::Timespec;

/// Above the numbers that programs and tests expect to be in use.
const HIGH: i32 = 200;
/// A pipe that polls as writable takes this many bytes without blocking.
const ATOMIC_WRITE: usize = 4096;

/// The container's own stdout and stderr. They never leave this process: a copy elsewhere would hide the container's
/// end from the kubelet.
#[derive(Debug)]
pub(crate) struct Stdio {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Stdio {
    /// Moves the current stdout and stderr to high descriptors that are closed on exec.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(Self {
            stdout: duplicate(stdout())?,
            stderr: duplicate(stderr())?,
        })
    }

    /// Creates pipes, puts their write ends at 1 and 2 and returns the read ends: stdout and stderr, or one for both.
    pub(crate) fn redirect(&self, merge: bool) -> io::Result<Vec<OwnedFd>> {
        let (out_read, out_write) = pipe()?;
        if merge {
            dup2_stdout(&out_write)?;
            dup2_stderr(&out_write)?;
            return Ok(vec![out_read]);
        }
        let (error_read, error_write) = pipe()?;
        dup2_stdout(&out_write)?;
        dup2_stderr(&error_write)?;
        Ok(vec![out_read, error_read])
    }

    /// Puts the container's own streams back at 1 and 2, which closes this process's write ends.
    pub(crate) fn restore(&self) {
        let _ = dup2_stdout(&self.stdout);
        let _ = dup2_stderr(&self.stderr);
    }

    /// Writes to the container's own stream and drops what does not fit at once.
    ///
    /// The descriptor stays blocking (its flags may be shared with other processes). Polling before each small write is
    /// enough, because nothing else writes to it.
    pub(crate) fn echo(&self, stream: Stream, mut bytes: &[u8]) {
        let descriptor = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        while !bytes.is_empty() && is_writable(descriptor) {
            let part = &bytes[..bytes.len().min(ATOMIC_WRITE)];
            match rustix::io::write(descriptor, part) {
                Ok(written) => bytes = &bytes[written..],
                Err(_) => return,
            }
        }
    }
}

fn duplicate(descriptor: impl AsFd) -> io::Result<OwnedFd> {
    // A low limit of open files refuses high numbers.
    let duplicate = fcntl_dupfd_cloexec(&descriptor, HIGH).or_else(|_| fcntl_dupfd_cloexec(&descriptor, 3))?;
    Ok(duplicate)
}

/// A pipe for output: the read end, the write end.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // A program that drops its privileges must still be able to open /dev/stdout.
    let _ = fchmod(&write, Mode::RUSR | Mode::WUSR | Mode::WGRP | Mode::WOTH);
    Ok((read, write))
}

fn is_writable(descriptor: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(descriptor, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&now)).is_ok() && asked[0].revents() == PollFlags::OUT
}
