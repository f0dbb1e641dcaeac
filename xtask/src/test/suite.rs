//! Test programs: Cargo builds them; here several run at a time, and their tests are counted and timed.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo::{self, cargo, forget_package};

/// Time limit of a test program; one that runs longer hangs, and is ended.
pub(super) const LIMIT: Duration = Duration::from_mins(20);

/// A program of tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// The target from which it was built: `attach` for `tests/attach.rs`, the crate's name for its unit tests.
    pub name: String,
    path: PathBuf,
    /// The folder of its crate, in which its tests run.
    folder: PathBuf,
}

/// How test programs are run.
pub(super) struct Runner<'a> {
    /// How many programs run at the same time.
    pub programs: usize,
    /// How many tests each of them runs at the same time.
    pub tests: usize,
    /// Time limit of each.
    pub limit: Duration,
    /// Sets the environment of each.
    pub prepare: &'a (dyn Fn(&mut Command) + Sync),
}

/// Results of tests.
#[derive(Default)]
pub(super) struct Tally {
    /// How many passed.
    pub passed: usize,
    /// Those that failed, and programs that ended without a result.
    pub failed: Vec<String>,
    /// How long each took.
    pub times: Vec<(Duration, String)>,
}

/// Builds the test programs that `cargo test` with these arguments would run.
pub(super) fn build(arguments: &[&str]) -> Result<Vec<Program>> {
    let mut cargo = cargo("test")?;
    cargo.args(["--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    cargo.args(arguments).stderr(Stdio::inherit());
    let output = cargo.output().context("cannot start cargo test")?;
    anyhow::ensure!(
        output.status.success(),
        "cargo test --no-run ended with {}",
        output.status
    );
    Ok(programs(&String::from_utf8_lossy(&output.stdout)))
}

/// Runs the examples in the documentation of the crates that have a library.
pub(super) fn documentation(arguments: &[&str]) -> Result<Tally> {
    let mut command = limited("cargo", LIMIT);
    command
        .args(["test", "--locked", "--no-fail-fast", "--doc"])
        .args(arguments);
    cargo::prepare(&mut command)?;
    let mut tally = Tally::default();
    let (said, ended) = collect(&mut command);
    print!("{said}");
    tally.add("documentation", &said, ended);
    Ok(tally)
}

/// The test programs in Cargo's messages.
fn programs(messages: &str) -> Vec<Program> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tests = messages.filter(|message| message["profile"]["test"] == true);
    tests.filter_map(|message| program(&message)).collect()
}

fn program(message: &Value) -> Option<Program> {
    Some(Program {
        name: message["target"]["name"].as_str()?.to_owned(),
        path: PathBuf::from(message["executable"].as_str()?),
        folder: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
    })
}

impl Runner<'_> {
    /// Runs the programs to their ends; the output of each is printed in one piece when it has ended.
    pub(super) fn run(&self, programs: &[Program]) -> Tally {
        let next = Mutex::new(programs.iter());
        let tally = Mutex::new(Tally::default());
        thread::scope(|scope| {
            for _ in 0..self.programs {
                scope.spawn(|| {
                    loop {
                        let program = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(program) = program else { return };
                        let (said, ended) = collect(&mut self.command(program));
                        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                        println!("     Running {} ({})\n{said}", program.name, program.path.display());
                        tally.add(&program.name, &said, ended);
                    }
                });
            }
        });
        tally.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, program: &Program) -> Command {
        let mut command = limited(&program.path, self.limit);
        command.arg(format!("--test-threads={}", self.tests));
        // Test times are an unstable option of stable test programs.
        command
            .args(["-Zunstable-options", "--report-time"])
            .env("RUSTC_BOOTSTRAP", "1");
        command.current_dir(&program.folder);
        forget_package(&mut command);
        command.env("CARGO_MANIFEST_DIR", &program.folder);
        (self.prepare)(&mut command);
        command
    }
}

fn limited(program: impl AsRef<std::ffi::OsStr>, limit: Duration) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=10", &limit.as_secs().to_string()])
        .arg(program);
    command
}

/// Runs a command to its end and returns what it wrote to stdout and stderr, in order.
fn collect(command: &mut Command) -> (String, io::Result<ExitStatus>) {
    let mut bytes = Vec::new();
    let ended = (|| {
        let (mut reader, writer) = io::pipe()?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()?;
        // The command holds the other end of the pipe, which would otherwise never end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        reader.read_to_end(&mut bytes)?;
        child.wait()
    })();
    (String::from_utf8_lossy(&bytes).into_owned(), ended)
}

impl Tally {
    /// Adds the tests of another run.
    pub(super) fn extend(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.times.extend(other.times);
    }

    /// Adds the output and the end of one program.
    fn add(&mut self, program: &str, said: &str, ended: io::Result<ExitStatus>) {
        let failures = self.failed.len();
        for line in said.lines() {
            if let Some(passed) = passed(line) {
                self.passed += passed;
            }
            let Some(test) = Test::read(line) else { continue };
            let name = format!("{program}: {}", test.name);
            if test.has_failed {
                self.failed.push(name.clone());
            }
            self.times.extend(test.took.map(|took| (took, name)));
        }
        let fault = match ended {
            Ok(status) if status.success() => return,
            Ok(status) => format!("{program}: it ended with {status} (124: it ran into its time limit)"),
            Err(error) => format!("{program}: it did not run: {error}"),
        };
        if self.failed.len() == failures {
            println!("FAILED: {fault}");
            self.failed.push(fault);
        }
    }
}

/// One line of a test program.
#[derive(Debug, PartialEq)]
struct Test<'a> {
    name: &'a str,
    has_failed: bool,
    took: Option<Duration>,
}

impl<'a> Test<'a> {
    /// `test NAME ... ok <1.234s>`
    fn read(line: &'a str) -> Option<Self> {
        let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        let (result, took) = result.split_once(" <").unwrap_or((result, ""));
        let took = took.strip_suffix("s>").and_then(|seconds| seconds.parse().ok());
        Some(Self {
            name,
            has_failed: match result {
                "ok" => false,
                "FAILED" => true,
                _ => return None,
            },
            took: took.map(Duration::from_secs_f64),
        })
    }
}

/// `test result: ok. 3 passed; 0 failed; …`
fn passed(line: &str) -> Option<usize> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    rest.split_once(" passed")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn what_a_test_program_says_is_counted_and_timed() {
        let said = "running 3 tests\ntest a::b ... ok <1.500s>\ntest c - should panic ... FAILED <0.250s>\n\
                    test d ... ignored\ntest result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured\n";
        let mut tally = Tally::default();
        tally.add("p", said, Ok(ExitStatus::from_raw(101 << 8)));
        assert_eq!(tally.passed, 1);
        assert_eq!(tally.failed, ["p: c - should panic"]);
        assert_eq!(tally.times[0], (Duration::from_millis(1500), "p: a::b".to_owned()));
        assert_eq!(tally.times.len(), 2);
    }

    #[test]
    fn a_program_that_dies_without_a_word_has_failed() {
        let mut tally = Tally::default();
        tally.add("p", "test a ... ok <1.0s>\n", Ok(ExitStatus::from_raw(9)));
        tally.add("q", "", Err(io::Error::other("no such program")));
        assert_eq!(tally.failed.len(), 2, "{:?}", tally.failed);
    }

    #[test]
    fn the_test_programs_among_cargos_messages_are_found() {
        let messages = [
            r#"{"reason":"compiler-artifact","manifest_path":"/c/cli/Cargo.toml","target":{"name":"rproc"},"profile":{"test":false},"executable":"/t/rproc"}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/c/cli/Cargo.toml","target":{"name":"login"},"profile":{"test":true},"executable":"/t/login-1"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ];
        let found = programs(&messages.join("\n"));
        let expected = Program {
            name: "login".to_owned(),
            path: "/t/login-1".into(),
            folder: "/c/cli".into(),
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn both_streams_are_collected_in_order() {
        let (said, ended) = collect(Command::new("sh").args(["-c", "echo a; echo b >&2; echo c; exit 3"]));
        assert_eq!(said, "a\nb\nc\n");
        assert_eq!(ended.unwrap().code(), Some(3));
    }
}
