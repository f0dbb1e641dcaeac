//! The program: real pipes, simulated time.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_agent::spool;
use remoteprocess_proto::v1::Stream;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::plan::{Plan, Write};

/// Writes what the plan says as fast as the pipes take it, and records what it has written.
pub(super) struct Program {
    is_launched: Option<Duration>,
    writes: VecDeque<Write>,
    /// Number of bytes of the first write that the pipe has taken.
    done: usize,
    /// `None`: closed by the program.
    ends: [Option<OwnedFd>; 2],
    pipes: [OwnedFd; 2],
    history: [Vec<u8>; 2],
    launches: u32,
}

impl Program {
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        let pipe = || -> Result<(OwnedFd, OwnedFd)> {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            fcntl_setpipe_size(&write, 16 << 10)?;
            Ok((read, write))
        };
        let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
        Ok(Self {
            is_launched: None,
            writes: plan.writes.iter().copied().collect(),
            done: 0,
            ends: [Some(stdout), Some(stderr)],
            pipes: [out, err],
            history: [Vec::new(), Vec::new()],
            launches: 0,
        })
    }

    /// Starts to write. More than one launch is a fault that is detected at the end.
    pub(super) fn launch(&mut self, now: Duration) {
        self.launches += 1;
        self.is_launched.get_or_insert(now);
    }

    /// The read end of a pipe, as the entrypoint hands it out.
    pub(super) fn pipe(&self, stream: spool::Stream) -> BorrowedFd<'_> {
        self.pipes[stream as usize].as_fd()
    }

    /// Writes what is due.
    pub(super) fn pump(&mut self, now: Duration) -> Result<()> {
        let Some(begun) = self.is_launched else { return Ok(()) };
        while let Some(write) = self.writes.front().filter(|write| begun + write.at <= now) {
            let index = usize::from(write.stream == Stream::Stderr);
            let end = self.ends[index].as_ref().context("the program has ended")?;
            let from = self.history[index].len();
            let bytes: Vec<u8> = (from..from + write.length - self.done)
                .map(|at| byte(index, at))
                .collect();
            match rustix::io::write(end, &bytes) {
                Ok(taken) => {
                    self.history[index].extend_from_slice(&bytes[..taken]);
                    self.done += taken;
                }
                // It is held back, as the real one would be.
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error).context("a write of the program"),
            }
            if self.done == write.length {
                self.done = 0;
                self.writes.pop_front();
            }
        }
        if self.writes.is_empty() {
            self.ends = [None, None];
        }
        Ok(())
    }

    /// Whether it has written everything and ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ends.iter().all(Option::is_none)
    }

    pub(super) fn written(&self) -> u64 {
        self.history.iter().map(|bytes| bytes.len() as u64).sum()
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "the program has written {:?} bytes with {} writes to go",
            self.history.each_ref().map(Vec::len),
            self.writes.len()
        )
    }

    /// What was written to a stream.
    pub(super) fn history(&self, stream: Stream) -> &[u8] {
        &self.history[usize::from(stream == Stream::Stderr)]
    }

    /// Checks that the status is true.
    pub(super) fn check_status(&self, status: &Value, may_lose: bool) -> Result<()> {
        ensure!(self.launches == 1, "launched {} times", self.launches);
        let output = &status["attempts"][0]["output"];
        ensure!(may_lose || output["sealed"] == true, "not sealed: {status:#}");
        for (name, history) in ["stdout", "stderr"].into_iter().zip(&self.history) {
            let told = &output[name];
            // Dropped output is hashed before, and counted.
            ensure!(
                told["bytes"] == history.len() && told["sha256"] == hex::encode(Sha256::digest(history)),
                "{name} is told as {told:#}, and was {} bytes",
                history.len()
            );
        }
        Ok(())
    }
}

/// Every misplaced byte is visible.
fn byte(stream: usize, at: usize) -> u8 {
    let at = at as u64 + (stream as u64) * 7919;
    let mixed = (at ^ (at >> 7)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match mixed.to_be_bytes()[0] {
        // So that a line of `rproc` on standard error can be distinguished from the program's bytes.
        b'\n' => b'.',
        byte => byte,
    }
}
