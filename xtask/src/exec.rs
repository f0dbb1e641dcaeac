//! Runs other programs, with errors that contain the command line.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::{paths, steps};

/// Number of log lines that are shown if the program fails.
const LAST_LINES: usize = 30;

/// Runs to the end with our own stdin, stdout and stderr; any failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = steps::undisturbed(|| command.status());
    let status = status.with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", line(command));
    }
    Ok(())
}

/// Runs to the end with its output in the log `name`; the error names the log and shows its last lines.
pub(crate) fn logged(command: &mut Command, name: &str) -> Result<()> {
    let log = log_file(name)?;
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!(
            "{} ended with {status}; the whole output is in {}, and ends with:\n{}",
            line(command),
            log.display(),
            last_lines(&log)
        );
    }
    Ok(())
}

fn log_file(name: &str) -> Result<PathBuf> {
    let folder = paths::cache()?.join("logs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join(format!("{name}.log")))
}

fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// Runs to the end and returns its stdout; the error contains its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", line(command)))?;
    text_of(command, &output)
}

/// Whether it runs and succeeds; its output is discarded.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn text_of(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_names_its_log_and_shows_its_end() {
        let script = "seq 1 100; echo the reason >&2; exit 3";
        let error = logged(Command::new("sh").args(["-c", script]), "test-of-exec")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("logs/test-of-exec.log"),
            "{error}"
        );
        assert!(error.ends_with("100\nthe reason"), "{error}");
        assert!(!error.contains("\n10\n"), "only the end: {error}");
        logged(Command::new("sh").args(["-c", "echo fine"]), "test-of-exec").unwrap();
        fs::remove_file(log_file("test-of-exec").unwrap()).unwrap();
    }
}
