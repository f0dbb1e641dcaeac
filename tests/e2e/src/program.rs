//! Programs to run, with deadlines.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::environment::{context, program};
use crate::running::{Finished, Running, Stream, exit_code};

/// How long a program may run unless the test sets another deadline.
const DEADLINE: Duration = Duration::from_secs(120);

/// A program to run.
pub struct Program {
    command: Command,
    deadline: Duration,
    input: Vec<u8>,
}

/// `rproc` with these arguments, as the user in `KUBECONFIG`.
pub fn rproc<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Program {
    Program::new(&program("RPROC_BIN", "rproc"), arguments)
}

/// `kubectl` with these arguments, as the user in `KUBECONFIG`.
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

/// The result of a program whose standard output is too large to keep.
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

    /// The command itself, without deadline and input, for callers that read its output in another way.
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
        // It may end without reading its input.
        thread::spawn(move || drop(stdin.write_all(&input)));
        Running::watch(child, line, self.deadline)
    }

    /// Runs it to its end, with any exit code, and keeps only the digest of its standard output.
    ///
    /// The deadline is not applied: a caller that needs one ends what the program waits for.
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

    /// Runs it to its end, with any exit code.
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

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
