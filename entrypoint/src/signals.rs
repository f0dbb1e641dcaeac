//! Signals to the entrypoint itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::processes::Scope;

/// The largest signal number of Linux.
pub(crate) const LAST: i32 = 64;

/// All signals of this process, read instead of delivered.
pub(crate) struct Signals {
    descriptor: SignalFd,
    scope: Scope,
}

/// What a signal to the entrypoint means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Run the stop path.
    Stop,
    /// Forwarded to the program: a process of the container that sends this to PID 1 means the program, as with an init
    /// process. Dropped before the launch and after the end.
    PassOn(i32),
    /// A child may have ended, or the signal is of no interest.
    Nothing,
}

impl Signals {
    /// Resets every disposition, so that the program inherits the defaults, and blocks every signal.
    pub(crate) fn take(scope: Scope) -> io::Result<Self> {
        reset_dispositions();
        let all = SigSet::all();
        all.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            descriptor: SignalFd::with_flags(&all, flags)?,
            scope,
        })
    }

    /// The next signal that has arrived.
    pub(crate) fn next(&self) -> Option<Meaning> {
        let signal = self.descriptor.read_signal().ok().flatten()?;
        let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
        // Without a PID namespace of its own no sender is inside.
        let from_outside =
            self.scope == Scope::Descendants || (signal.ssi_pid == 0 && signal.ssi_code == libc::SI_USER);
        Some(meaning(number, from_outside))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The kubelet sends the stop signal that the image names, which may be any; a sender without a process id here is
/// outside the container's namespace.
fn meaning(number: i32, from_outside: bool) -> Meaning {
    match number {
        libc::SIGCHLD | libc::SIGPIPE => Meaning::Nothing,
        _ if from_outside => Meaning::Stop,
        libc::SIGTERM | libc::SIGINT => Meaning::PassOn(number),
        _ => Meaning::Nothing,
    }
}

/// SIGPIPE stays ignored here and is reset for the program by the standard library.
#[allow(
    unsafe_code,
    reason = "the dispositions of signals are set by a system call without a safe form"
)]
fn reset_dispositions() {
    for number in (1..=LAST).filter(|number| *number != libc::SIGPIPE) {
        // SAFETY: SIG_DFL installs no code; numbers that cannot be changed are refused by the
        // kernel or the C library, and there is one thread.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_stop_signal_of_the_kubelet_is_a_stop_and_none_of_the_program_is() {
        assert_eq!(meaning(libc::SIGTERM, true), Meaning::Stop);
        assert_eq!(meaning(libc::SIGQUIT, true), Meaning::Stop);
        assert_eq!(meaning(libc::SIGCHLD, true), Meaning::Nothing);
        assert_eq!(meaning(libc::SIGTERM, false), Meaning::PassOn(libc::SIGTERM));
        assert_eq!(meaning(libc::SIGINT, false), Meaning::PassOn(libc::SIGINT));
        assert_eq!(meaning(libc::SIGQUIT, false), Meaning::Nothing);
    }
}
