//! The command line: `entrypoint -- PROGRAM [ARGUMENT…]`.
//!
//! The flags before `--` are for tests. Nothing is read from the environment, which belongs to the program.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use remoteprocess_entrypoint::{SOCKET_PATH, STDIN_FILE};

use crate::cgroup;

/// How long the entrypoint waits for an agent before it gives up. Nothing is started without one.
const AGENT_WAIT: Duration = Duration::from_secs(120);

/// The checked command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// Program and its arguments; never empty.
    pub command: Vec<OsString>,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// The program's input, if the launch says that it is a file.
    pub stdin_file: PathBuf,
    /// Run as a process other than 1, and manage only own descendants. For tests.
    pub subreaper: bool,
    /// How long to wait for an agent before anything was started.
    pub agent_wait: Duration,
    /// Where the container's own cgroup is mounted; `None` if this is not process 1.
    pub cgroup: Option<PathBuf>,
}

/// Why the command line was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Nothing after `--`, or no `--`.
    #[error("no command: usage is entrypoint -- PROGRAM [ARGUMENT…]")]
    NoCommand,
    /// Something unknown before `--`.
    #[error("unexpected {0:?} before \"--\": usage is entrypoint -- PROGRAM [ARGUMENT…]")]
    Unexpected(OsString),
}

impl Arguments {
    /// Checks the arguments, without the name of this program.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, Error> {
        let mut parsed = Self {
            command: Vec::new(),
            socket: PathBuf::from(SOCKET_PATH),
            stdin_file: PathBuf::from(STDIN_FILE),
            subreaper: false,
            agent_wait: AGENT_WAIT,
            cgroup: None,
        };
        loop {
            let argument = arguments.next().ok_or(Error::NoCommand)?;
            match argument.to_str() {
                Some("--") => break,
                Some("--subreaper") => parsed.subreaper = true,
                Some("--socket") => {
                    parsed.socket = arguments.next().ok_or(Error::Unexpected(argument))?.into();
                }
                Some("--stdin-file") => {
                    parsed.stdin_file = arguments.next().ok_or(Error::Unexpected(argument))?.into();
                }
                Some("--cgroup") => {
                    parsed.cgroup = Some(arguments.next().ok_or(Error::Unexpected(argument))?.into());
                }
                Some("--agent-wait-millis") => {
                    let value = arguments.next().unwrap_or_default();
                    parsed.agent_wait = millis(&value).ok_or(Error::Unexpected(value))?;
                }
                _ => return Err(Error::Unexpected(argument)),
            }
        }
        if !parsed.subreaper {
            parsed.cgroup.get_or_insert_with(|| cgroup::MOUNT.into());
        }
        parsed.command.extend(arguments);
        if parsed.command.is_empty() {
            Err(Error::NoCommand)
        } else {
            Ok(parsed)
        }
    }
}

fn millis(value: &OsStr) -> Option<Duration> {
    value.to_str()?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, Error> {
        Arguments::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn everything_after_the_dashes_is_the_program_s() {
        let parsed = parse(&["--", "sh", "--", "--subreaper", ""]).unwrap();
        assert_eq!(parsed.command, ["sh", "--", "--subreaper", ""]);
        assert_eq!(parsed.socket.to_str(), Some(SOCKET_PATH));
        assert_eq!(parsed.stdin_file.to_str(), Some(STDIN_FILE));
        assert!(!parsed.subreaper);
        assert_eq!(parsed.cgroup.as_deref(), Some(Path::new(cgroup::MOUNT)));
    }

    #[test]
    fn tests_may_say_more() {
        let line = [
            "--socket",
            "/tmp/s",
            "--stdin-file",
            "/tmp/i",
            "--subreaper",
            "--agent-wait-millis",
            "70",
            "--cgroup",
            "/c",
            "--",
            "a",
        ];
        let parsed = parse(&line).unwrap();
        assert_eq!(parsed.socket.to_str(), Some("/tmp/s"));
        assert_eq!(parsed.stdin_file.to_str(), Some("/tmp/i"));
        assert!(parsed.subreaper);
        assert_eq!(parsed.agent_wait, Duration::from_millis(70));
        assert_eq!(parsed.cgroup.as_deref(), Some(Path::new("/c")));
        assert_eq!(parse(&["--subreaper", "--", "a"]).unwrap().cgroup, None);
    }

    #[test]
    fn no_command_is_refused() {
        assert_eq!(parse(&[]), Err(Error::NoCommand));
        assert_eq!(parse(&["--"]), Err(Error::NoCommand));
        assert_eq!(parse(&["sh", "--"]), Err(Error::Unexpected("sh".into())));
        assert_eq!(parse(&["--socket"]), Err(Error::Unexpected("--socket".into())));
        assert_eq!(parse(&["--stdin-file"]), Err(Error::Unexpected("--stdin-file".into())));
        assert_eq!(parse(&["--agent-wait-millis", "x"]), Err(Error::Unexpected("x".into())));
    }
}
