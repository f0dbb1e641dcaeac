//! Signals that end or stop this program, unless they were ignored at its start.

use std::io;
use std::mem::MaybeUninit;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives the signal from now on; `None` if it was ignored at the start. `nohup` and `&` in a script (POSIX, XCU
/// 2.11) require that.
pub fn listen(kind: SignalKind) -> io::Result<Option<Signal>> {
    match is_ignored(kind) {
        true => Ok(None),
        false => signal(kind).map(Some),
    }
}

/// Returns when the signal arrives; never for a signal that is ignored.
pub async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether this program ignores a signal now. This asks the system, not /proc, which may be absent.
#[allow(unsafe_code, reason = "`sigaction` has no safe form")]
fn is_ignored(kind: SignalKind) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the current one, to memory that is ours; zeroes are a valid
    // value.
    let action = unsafe {
        let asked = libc::sigaction(kind.as_raw_value(), std::ptr::null(), action.as_mut_ptr());
        (asked == 0).then(|| action.assume_init())
    };
    action.is_some_and(|action| action.sa_sigaction == libc::SIG_IGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_recognized() {
        // Rust's runtime ignores SIGPIPE in every program.
        assert!(is_ignored(SignalKind::pipe()));
        assert!(!is_ignored(SignalKind::terminate()));
    }
}
