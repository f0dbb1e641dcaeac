//! The terminal in raw mode, and back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal in raw mode, and how it was before.
static CHANGED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// A terminal that gives each key as it is typed and shows each byte as it comes. Dropping it restores it; so does a
/// panic, which may end the program before anything is dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Sets the terminal so. There is one at a time.
    ///
    /// # Errors
    /// It is no terminal.
    pub fn enter(terminal: &impl AsFd) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let told = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                told(panic);
            }));
        });
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        *lock() = Some((terminal.as_fd().try_clone_to_owned()?, before));
        let entered = Self(());
        // What was typed already is for the process.
        tcsetattr(terminal, OptionalActions::Drain, &raw)?;
        Ok(entered)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether a terminal is in raw mode: then a line has to be told to begin at the left edge.
#[must_use]
pub fn is_raw() -> bool {
    lock().is_some()
}

fn restore() {
    if let Some((terminal, before)) = lock().take() {
        // A terminal that has gone needs nothing any more.
        let _ = tcsetattr(terminal, OptionalActions::Drain, &before);
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<(OwnedFd, Termios)>> {
    CHANGED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::LocalModes;

    use super::*;

    fn is_cooked(terminal: &OwnedFd) -> bool {
        tcgetattr(terminal)
            .unwrap()
            .local_modes
            .contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// One test, because there is one terminal at a time.
    #[test]
    fn it_is_restored_by_a_drop_and_by_a_panic() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let raw = RawTerminal::enter(&slave).unwrap();
        assert!(!is_cooked(&slave) && is_raw());
        drop(raw);
        assert!(is_cooked(&slave) && !is_raw());
        let panicking = std::thread::spawn(move || {
            // As where a panic aborts: nothing is dropped.
            std::mem::forget(RawTerminal::enter(&slave).unwrap());
            assert!(!is_cooked(&slave));
            std::panic::set_hook({
                let told = std::panic::take_hook();
                Box::new(move |panic| {
                    told(panic);
                    assert!(!is_raw());
                })
            });
            let panicked = std::panic::catch_unwind(|| panic!("on purpose"));
            assert!(panicked.is_err() && is_cooked(&slave));
        });
        panicking.join().unwrap();
    }
}
