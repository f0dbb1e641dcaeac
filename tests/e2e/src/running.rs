//! A running program, its output and its end.

use std::fmt;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::wait::until;

/// What a program wrote and how it ended.
pub struct Finished {
    /// Exit code; 128+n after signal n.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    line: String,
}

/// A program that runs.
pub struct Running {
    child: Child,
    line: String,
    end: Instant,
    stdout: Stream,
    stderr: Stream,
}

pub(crate) struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    closed: Receiver<()>,
}

impl Running {
    /// Takes both streams of a child that was started by `line`.
    pub(crate) fn watch(mut child: Child, line: String, deadline: Duration) -> Result<Self> {
        let stdout = Stream::collect(child.stdout.take().context("no stdout")?);
        let stderr = Stream::collect(child.stderr.take().context("no stderr")?);
        Ok(Self {
            child,
            line,
            end: Instant::now() + deadline,
            stdout,
            stderr,
        })
    }

    /// Waits until its standard output has at least `count` bytes.
    pub fn wait_for_bytes(&mut self, count: usize) -> Result<()> {
        let what = format!("{count} bytes of output of {}", self.line);
        let left = self.end.saturating_duration_since(Instant::now());
        let seen = until(&what, left, || {
            Ok(self.stdout.len() >= count || self.child.try_wait()?.is_some())
        });
        if self.stdout.len() < count {
            bail!(
                "{} ended or stalled after {} bytes: {}",
                self.line,
                self.stdout.len(),
                self.stderr.text()
            );
        }
        seen
    }

    /// Waits until its standard error contains `text`.
    pub fn wait_for_stderr(&mut self, text: &str) -> Result<()> {
        let left = self.end.saturating_duration_since(Instant::now());
        until(&format!("{text:?} on stderr of {}", self.line), left, || {
            if self.stderr.text().contains(text) {
                return Ok(true);
            }
            ensure!(
                self.child.try_wait()?.is_none(),
                "{} ended: {}",
                self.line,
                self.stderr.text()
            );
            Ok(false)
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of standard output so far.
    #[must_use]
    pub fn received(&self) -> usize {
        self.stdout.len()
    }

    /// Standard output so far, as text.
    #[must_use]
    pub fn said(&self) -> String {
        self.stdout.text()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.line))
    }

    /// Waits for its end; after the deadline it is killed and that is an error.
    pub fn finish(mut self) -> Result<Finished> {
        let left = self.end.saturating_duration_since(Instant::now());
        let waited = until("end", left, || Ok(self.child.try_wait()?.is_some()));
        if waited.is_err() {
            self.child.kill()?;
            self.child.wait()?;
            let (bytes, said) = (self.stdout.len(), self.stderr.text());
            bail!(
                "{} did not end in time; it wrote {bytes} bytes, and on stderr: {said}",
                self.line
            );
        }
        let code = exit_code(self.child.wait()?);
        let stdout = self.stdout.finish()?;
        let stderr = self.stderr.finish()?;
        Ok(Finished {
            code,
            stdout,
            stderr,
            line: self.line.clone(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // If all went well, it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stream {
    pub(crate) fn collect(mut source: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (closer, closed) = mpsc::channel();
        let sink = bytes.clone();
        thread::spawn(move || {
            let mut chunk = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = source.read(&mut chunk) {
                sink.lock()
                    .expect("no holder panics")
                    .extend_from_slice(&chunk[..count]);
            }
            drop(closer);
        });
        Self { bytes, closed }
    }

    fn len(&self) -> usize {
        self.bytes.lock().expect("no holder panics").len()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no holder panics")).into_owned()
    }

    pub(crate) fn finish(&self) -> Result<Vec<u8>> {
        // This waits for the disconnect: nothing is ever sent.
        if self.closed.recv_timeout(Duration::from_secs(10)) == Err(mpsc::RecvTimeoutError::Timeout) {
            bail!("the program ended, and its output is still held open");
        }
        Ok(std::mem::take(&mut *self.bytes.lock().expect("no holder panics")))
    }
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard error without our own lines.
    #[must_use]
    pub fn err_of_program(&self) -> Vec<u8> {
        let lines = self.stderr.split_inclusive(|byte| *byte == b'\n');
        lines
            .filter(|line| !line.starts_with(b"rproc:"))
            .flatten()
            .copied()
            .collect()
    }

    /// Fails unless the exit code is this one.
    pub fn expect_code(&self, code: i32) -> Result<&Self> {
        ensure!(self.code == code, "expected exit code {code}: {self}");
        Ok(self)
    }

    /// Fails unless standard error contains each of these.
    pub fn expect_stderr(&self, texts: &[&str]) -> Result<&Self> {
        let said = self.err();
        for text in texts {
            ensure!(said.contains(text), "expected {text:?} on stderr: {self}");
        }
        Ok(self)
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (out, err) = (excerpt(&self.stdout), excerpt(&self.stderr));
        write!(
            formatter,
            "{} ended with {}\nstdout: {out}\nstderr: {err}",
            self.line, self.code
        )
    }
}

pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn excerpt(bytes: &[u8]) -> String {
    const MOST: usize = 2000;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]).into_owned();
    if bytes.len() > MOST {
        format!("{text}… ({} bytes)", bytes.len())
    } else {
        text
    }
}
