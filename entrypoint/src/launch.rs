//! Finding the program and starting it.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::SigSet;
use nix::unistd::execv;
use remoteprocess_entrypoint::message::{Outcome, bounded_sentence};
use rustix::fs::{Access, access};
use rustix::process::{ioctl_tiocsctty, setsid};

use crate::diagnosis;

/// Where programs are searched if the container's environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The type of a terminal about which nothing is known, as container runtimes set it.
const TERM: &str = "xterm";

/// What the program's standard descriptors are.
pub(crate) enum ChildStdio {
    /// This process's own.
    Inherited,
    /// This pipe or file for input, this process's own for output.
    Input(OwnedFd),
    /// The terminal, of which the program becomes the session leader.
    Terminal(OwnedFd),
}

/// Starts the command in a process group of its own, with this process's standard descriptors, environment and working
/// directory, no signal blocked and every disposition the default. Returns its process id once it has been executed.
///
/// It is a group, not a session: its parent stays in its session, so the kernel does not treat it as an orphaned group,
/// and SIGTSTP works. At a terminal it is a session of its own, and TERM is set if the environment has none.
///
/// # Errors
/// The outcome to report if it cannot be found or executed.
pub(crate) fn start(command: &[OsString], stdio: ChildStdio) -> Result<u32, Outcome> {
    let program = &command[0];
    let file = find(program, std::env::var_os("PATH").as_deref())?;
    spawn(&file, command, stdio).map_err(|error| diagnosis::of_exec(program, &file, &error))
}

/// Calls `execve` in the child directly: of the two standard ways, one leaves signals blocked, and the other lets some
/// C libraries pass files of unknown format to a shell.
#[allow(unsafe_code, reason = "`fork`, `exec` and the environment have no safe form")]
fn spawn(file: &Path, command: &[OsString], stdio: ChildStdio) -> io::Result<u32> {
    let path = CString::new(file.as_os_str().as_bytes())?;
    let arguments: Vec<CString> = command
        .iter()
        .map(|argument| CString::new(argument.as_bytes()))
        .collect::<Result<_, _>>()?;
    let mut child = Command::new(file);
    let is_at_terminal = connect(&mut child, stdio)?;
    let execute = move || -> io::Result<()> {
        if is_at_terminal {
            setsid()?;
            ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        SigSet::empty().thread_set_mask()?;
        match execv(&path, &arguments)? {}
    };
    // SAFETY: the process has one thread, so after fork the child may do whatever the parent may.
    unsafe { child.pre_exec(execute) };
    Ok(child.spawn()?.id())
}

/// Gives the child its descriptors; returns true if they are a terminal.
fn connect(child: &mut Command, stdio: ChildStdio) -> io::Result<bool> {
    match stdio {
        ChildStdio::Inherited => child.process_group(0),
        ChildStdio::Input(input) => child.process_group(0).stdin(input),
        ChildStdio::Terminal(slave) => {
            let duplicate = || slave.as_fd().try_clone_to_owned().map(Stdio::from);
            child.stdin(duplicate()?).stdout(duplicate()?).stderr(duplicate()?);
            set_term();
            return Ok(true);
        }
    };
    Ok(false)
}

/// Changes this process's own environment, which nothing else reads: the child inherits it.
#[allow(unsafe_code, reason = "`fork`, `exec` and the environment have no safe form")]
#[allow(clippy::disallowed_methods, reason = "the process has one thread")]
fn set_term() {
    if std::env::var_os("TERM").is_none() {
        // SAFETY: the process has one thread.
        unsafe { std::env::set_var("TERM", TERM) };
    }
}

/// The outcome for pipes that could not be made.
pub(crate) fn no_pipes(command: &[OsString], error: &io::Error) -> Outcome {
    let message = format!(
        "cannot start {:?}: no pipe or terminal for its input and output: {error}",
        command[0]
    );
    Outcome::NotExecutable {
        message: bounded_sentence(message),
    }
}

/// The outcome for an input that is a file and cannot be opened.
pub(crate) fn no_input(command: &[OsString], file: &Path, error: &io::Error) -> Outcome {
    let message = format!(
        "cannot start {:?}: its standard input, {} (spec.stdinFrom), cannot be opened: {error}",
        command[0],
        file.display()
    );
    Outcome::NotExecutable {
        message: bounded_sentence(message),
    }
}

/// The file that `execvp(3)` would execute.
fn find(program: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, Outcome> {
    if program.is_empty() {
        return Err(Outcome::NotFound {
            message: "cannot start \"\": its name is empty".into(),
        });
    }
    if program.as_bytes().contains(&b'/') {
        return Ok(program.into());
    }
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    let mut refused = None;
    for directory in std::env::split_paths(path) {
        let candidate = candidate(&directory, program);
        match candidate.metadata() {
            Ok(found) if found.is_file() && access(&candidate, Access::EXEC_OK).is_ok() => {
                return Ok(candidate);
            }
            Ok(found) if found.is_file() => refused = refused.or(Some(candidate)),
            _ => {}
        }
    }
    Err(match refused {
        Some(file) => {
            let error = io::Error::from(io::ErrorKind::PermissionDenied);
            diagnosis::of_exec(program, &file, &error)
        }
        None => diagnosis::not_in_path(program, path),
    })
}

/// An empty element of PATH is the working directory; the slash prevents another search of PATH.
fn candidate(directory: &Path, program: &OsStr) -> PathBuf {
    match directory.as_os_str().is_empty() {
        true => Path::new(".").join(program),
        false => directory.join(program),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn message(outcome: Outcome) -> String {
        match outcome {
            Outcome::NotFound { message } | Outcome::NotExecutable { message } => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_executable_file_in_path_is_found() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for directory in [&first, &second] {
            fs::write(directory.path().join("tool"), "").unwrap();
        }
        fs::create_dir(first.path().join("folder")).unwrap();
        let path = std::env::join_paths([Path::new("/none"), first.path(), second.path()]).unwrap();
        let refused = find(OsStr::new("tool"), Some(&path)).unwrap_err();
        assert!(matches!(refused, Outcome::NotExecutable { .. }));
        assert!(message(refused).contains("not executable"));
        let tool = second.path().join("tool");
        fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(OsStr::new("tool"), Some(&path)).unwrap(), tool);
        assert!(matches!(
            find(OsStr::new("folder"), Some(&path)),
            Err(Outcome::NotFound { .. })
        ));
    }

    #[test]
    fn names_with_a_slash_are_not_looked_up() {
        assert_eq!(find(OsStr::new("./x"), None).unwrap(), Path::new("./x"));
        assert_eq!(candidate(Path::new(""), OsStr::new("x")), Path::new("./x"));
    }

    #[test]
    fn what_is_nowhere_names_program_and_path() {
        let said = message(find(OsStr::new("no-such-tool"), Some(OsStr::new("/bin"))).unwrap_err());
        assert_eq!(said, "cannot start \"no-such-tool\": not found in PATH (/bin)");
        assert!(matches!(find(OsStr::new(""), None), Err(Outcome::NotFound { .. })));
    }
}
