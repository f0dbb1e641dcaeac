//! The shim of a session: another process of this program, between PID 1 and the command.
//!
//! Processes that the command leaves behind become children of the shim, not of PID 1. So everything that a session
//! has started stays below its shim, and is never counted as the program's.
//!
//! Invariant: once the command runs, it holds neither a stream of the session nor one of the program.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use remoteprocess_entrypoint::message::{Outcome, bounded_sentence};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{getpid, set_child_subreaper};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stdin};

use crate::launch::{self, ChildStdio};
use crate::processes::{self, Reaped};

/// First argument of a shim.
const FLAG: &str = "--keep";
/// Its name in process lists.
const NAME: &str = "rproc-session";

/// The arguments of a shim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Program and arguments; never empty.
    pub words: Vec<OsString>,
    /// Working directory; empty: the current one.
    pub directory: OsString,
    /// Whether its standard streams are a terminal.
    pub is_at_terminal: bool,
}

impl Kept {
    /// The shim, which is to be given the session's streams and environment. It writes to `report` how the command
    /// ended, and closes it.
    #[allow(unsafe_code, reason = "descriptors pass from one process to the next by number")]
    pub(crate) fn shim(&self, report: OwnedFd) -> Command {
        // The file from which this process was started, even if another one has its path now.
        let mut shim = Command::new("/proc/self/exe");
        shim.arg0(NAME).arg(FLAG).arg(report.as_raw_fd().to_string());
        shim.arg(if self.is_at_terminal { "terminal" } else { "pipes" });
        shim.arg(&self.directory).args(&self.words);
        let inherit = move || Ok(fcntl_setfd(&report, FdFlags::empty())?);
        // SAFETY: the process has one thread, so after fork the child may do whatever the parent may.
        unsafe { shim.pre_exec(inherit) };
        shim
    }

    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<(i32, Self)> {
        let report = arguments.next()?.to_str()?.parse().ok().filter(|number| *number > 2)?;
        let kept = Self {
            is_at_terminal: arguments.next()? == "terminal",
            directory: arguments.next()?,
            words: arguments.collect(),
        };
        (!kept.words.is_empty()).then_some((report, kept))
    }

    /// Starts the command.
    fn start(&self) -> Result<u32, Outcome> {
        let unstarted = |why: String| Outcome::NotExecutable {
            message: bounded_sentence(format!("cannot start {:?}: {why}", self.words[0])),
        };
        set_child_subreaper(Some(getpid())).map_err(|error| unstarted(error.to_string()))?;
        if !self.directory.is_empty() {
            std::env::set_current_dir(&self.directory)
                .map_err(|error| unstarted(format!("cannot go to {:?}: {error}", self.directory)))?;
        }
        let stdio = match self.is_at_terminal {
            true => {
                ChildStdio::Terminal(fcntl_dupfd_cloexec(stdin(), 3).map_err(|error| unstarted(error.to_string()))?)
            }
            false => ChildStdio::Inherited,
        };
        launch::start(&self.words, stdio)
    }
}

/// Acts as a shim to its end if these are the arguments of one; returns the exit code then.
pub(crate) fn run_if_asked(mut arguments: impl Iterator<Item = OsString>) -> Option<i32> {
    if arguments.next()? != FLAG {
        return None;
    }
    let (report, kept) = Kept::parse(arguments)?;
    let mut report = take(report)?;
    let mut main = match kept.start() {
        Ok(pid) => Some(pid),
        Err(outcome) => {
            tell(&mut report, &outcome);
            None
        }
    };
    let mut report = main.is_some().then_some(report);
    let _ = let_go_of_streams();
    loop {
        match processes::reap_when_one_ends() {
            Reaped::Child(pid, outcome) if Some(pid) == main => {
                main = None;
                if let Some(mut report) = report.take() {
                    tell(&mut report, &outcome);
                }
            }
            Reaped::Child(..) | Reaped::NoneEnded => {}
            Reaped::NoChildren => return Some(0),
        }
    }
}

/// The descriptor with this number, made not inheritable.
#[allow(unsafe_code, reason = "descriptors pass from one process to the next by number")]
fn take(number: i32) -> Option<File> {
    // SAFETY: the parent leaves this descriptor open for the shim, and nothing else in this process owns it.
    let report = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&report, FdFlags::CLOEXEC).ok()?;
    Some(report.into())
}

fn tell(report: &mut File, outcome: &Outcome) {
    if let Ok(bytes) = postcard::to_stdvec(outcome) {
        // PID 1 may be gone.
        let _ = report.write_all(&bytes);
    }
}

/// Decodes a report. A shim that was killed reports nothing, and its command was killed with it.
pub(crate) fn read_report(bytes: &[u8]) -> Outcome {
    postcard::from_bytes(bytes).unwrap_or(Outcome::Signal(libc::SIGKILL))
}

/// Closes this process's copies of the streams; otherwise their readers would wait for it.
fn let_go_of_streams() -> io::Result<()> {
    let (nothing, _) = pipe_with(PipeFlags::CLOEXEC)?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    Ok(dup2_stderr(&nothing)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_gets_all_settings() {
        for (directory, is_at_terminal) in [("", true), ("/tmp", false)] {
            let kept = Kept {
                words: vec!["sh".into(), "--keep".into(), String::new().into()],
                directory: directory.into(),
                is_at_terminal,
            };
            let (report, _) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let number = report.as_raw_fd();
            let shim = kept.shim(report);
            let mut arguments = shim.get_args().map(OsString::from);
            assert_eq!(arguments.next().unwrap(), FLAG);
            assert_eq!(Kept::parse(arguments), Some((number, kept)));
        }
    }

    #[test]
    fn invalid_arguments_start_no_shim() {
        for line in [
            &["--keep"][..],
            &["--keep", "1", "pipes", "", "sh"],
            &["--keep", "7", "pipes", ""],
            &["--", "sh"],
        ] {
            assert_eq!(run_if_asked(line.iter().map(OsString::from)), None, "{line:?}");
        }
    }

    #[test]
    fn a_shim_that_was_killed_tells_of_its_command_s_end() {
        assert_eq!(read_report(&[]), Outcome::Signal(libc::SIGKILL));
        let bytes = postcard::to_stdvec(&Outcome::Code(7)).unwrap();
        assert_eq!(read_report(&bytes), Outcome::Code(7));
    }
}
