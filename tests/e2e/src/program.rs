//! Runs programs with deadlines and keeps their two streams apart.

use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::environment::{context, program};
use crate::wait::until;

/// How long a program may run where the test says nothing else.
const DEADLINE: Duration = Duration::from_secs(120);

/// A program to run.
pub struct Program {
    command: Command,
    deadline: Duration,
    input: Vec<u8>,
}

/// `rproc` with these arguments, for whoever `KUBECONFIG` says.
pub fn rproc<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Program {
    Program::new(&program("RPROC_BIN", "rproc"), arguments)
}

/// `kubectl` with these arguments, for whoever `KUBECONFIG` says.
pub fn kubectl<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Program {
    kubectl_alone()
        .args(context().map(|name| format!("--context={name}")))
        .args(arguments)
}

/// `kubectl` without any argument: plugins allow no flag before their name.
pub(crate) fn kubectl_alone() -> Program {
    Program::new::<&str>(&program("KUBECTL", "kubectl"), [])
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

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

/// What a program wrote to standard output, too much to be kept.
pub struct Digested {
    /// Exit code; 128+n after signal n.
    pub code: i32,
    /// Bytes of standard output.
    pub bytes: u64,
    /// Their SHA-256 in hexadecimal.
    pub sha256: String,
    /// Standard error.
    pub stderr: String,
}

/// A program that runs.
pub struct Running {
    child: Child,
    line: String,
    end: Instant,
    stdout: Stream,
    stderr: Stream,
}

struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    closed: Receiver<()>,
}

impl Program {
    /// A program by its name or path.
    pub fn new<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Self {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self {
            command,
            deadline: DEADLINE,
            input: Vec::new(),
        }
    }

    /// A further argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Further arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Bytes for its standard input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Another deadline than two minutes.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command itself, without deadline and input, for whoever reads its output in another way.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Starts it.
    pub fn start(mut self) -> Result<Running> {
        let line = line(&self.command);
        let mut child = self.command.spawn().with_context(|| format!("cannot start {line}"))?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        let input = self.input;
        // It may end without reading: that is its business.
        thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = Stream::collect(child.stdout.take().context("no stdout")?);
        let stderr = Stream::collect(child.stderr.take().context("no stderr")?);
        Ok(Running {
            child,
            line,
            end: Instant::now() + self.deadline,
            stdout,
            stderr,
        })
    }

    /// Runs it to its end, whatever its exit code, and keeps the digest of its standard output alone.
    ///
    /// The deadline is not kept: who needs one ends what it waits for.
    pub fn digest(mut self) -> Result<Digested> {
        let line = line(&self.command);
        let mut child = self
            .command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {line}"))?;
        let stderr = Stream::collect(child.stderr.take().context("no stderr")?);
        let mut stdout = child.stdout.take().context("no stdout")?;
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let mut chunk = vec![0; 256 * 1024];
        while let count @ 1.. = stdout.read(&mut chunk)? {
            hash.update(&chunk[..count]);
            bytes += count as u64;
        }
        let code = exit_code(child.wait()?);
        Ok(Digested {
            code,
            bytes,
            sha256: hex::encode(hash.finalize()),
            stderr: String::from_utf8_lossy(&stderr.finish()?).into_owned(),
        })
    }

    /// Runs it to its end, whatever its exit code.
    pub fn finish(self) -> Result<Finished> {
        self.start()?.finish()
    }

    /// Runs it to its end, which must be a success, and returns its standard output as text.
    pub fn succeed(self) -> Result<String> {
        let finished = self.finish()?;
        ensure!(finished.code == 0, "{finished}");
        Ok(String::from_utf8_lossy(&finished.stdout).into_owned())
    }

    /// Like [`Program::succeed`], with the output as JSON.
    pub fn json(self) -> Result<serde_json::Value> {
        let text = self.succeed()?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }
}

impl Running {
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

    /// Waits for its end; past the deadline it is killed and that is an error.
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
        // Ended already, in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stream {
    fn collect(mut source: impl Read + Send + 'static) -> Self {
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

    fn finish(&self) -> Result<Vec<u8>> {
        // A disconnect is what we wait for: nothing is ever sent.
        if self.closed.recv_timeout(Duration::from_secs(10)) == Err(mpsc::RecvTimeoutError::Timeout) {
            bail!("the program ended and somebody still holds its output open");
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

fn exit_code(status: ExitStatus) -> i32 {
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

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
