//! Sets the terminal to raw mode, and restores it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal in raw mode, and its original mode.
static CHANGED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// A terminal that delivers each key as it is typed and shows each byte as it comes. Dropping it restores the terminal;
/// so does a panic, which may end the program before anything is dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Sets the terminal to raw mode. There can be one at a time.
    pub fn enter(terminal: &impl AsFd) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let told = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                reset();
                restore();
                told(panic);
            }));
        });
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        *lock() = Some((terminal.as_fd().try_clone_to_owned()?, before));
        let entered = Self(());
        // What was already typed is for the process.
        tcsetattr(terminal, OptionalActions::Drain, &raw)?;
        Ok(entered)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal while this program is stopped.
pub fn suspend() {
    if let Some((terminal, before)) = &*lock() {
        let _ = tcsetattr(terminal, OptionalActions::Drain, before);
    }
}

/// Sets the terminal to raw mode again, if it was: another program has changed it in the meantime.
pub fn resume() {
    if let Some((terminal, before)) = &*lock() {
        let mut raw = before.clone();
        raw.make_raw();
        let _ = tcsetattr(terminal, OptionalActions::Drain, &raw);
    }
}

/// Types of terminals that nearly every image knows (ncurses-base of Debian, ncurses-terminfo-base of Alpine).
const KNOWN: [&str; 13] = [
    "ansi",
    "dumb",
    "linux",
    "rxvt",
    "screen",
    "screen-256color",
    "tmux",
    "tmux-256color",
    "vt100",
    "vt102",
    "vt220",
    "xterm",
    "xterm-256color",
];
/// Terminals with other names that behave like xterm.
const LIKE_XTERM: [&str; 7] = ["xterm-", "alacritty", "contour", "foot", "ghostty", "kitty", "wezterm"];

/// The terminal type for a program in a container if this terminal has the type `local`; `None` if that is unknown.
pub fn term(local: &str) -> Option<&'static str> {
    let known = KNOWN.into_iter().find(|known| *known == local);
    let is_like = LIKE_XTERM.iter().any(|name| local.starts_with(name));
    known.or_else(|| is_like.then_some("xterm-256color"))
}

/// Whether a terminal is in raw mode: then each line must be moved to the left edge.
pub fn is_raw() -> bool {
    lock().is_some()
}

/// Selects the main screen, shows the cursor, and turns off input from mouse, paste and focus. It is not known anymore
/// what the program has changed.
const RESET: &[u8] = b"\x1b\\\x1b[?1047l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l\
    \x1b[?1l\x1b>\x1b[?25h\x1b[0 q\x1b[0m\r\n";

fn reset() {
    if let Some((terminal, _)) = &*lock() {
        // A terminal that is gone needs nothing.
        let _ = rustix::io::write(terminal, RESET);
    }
}

fn restore() {
    if let Some((terminal, before)) = lock().take() {
        // A terminal that is gone needs nothing.
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

    #[test]
    fn the_type_of_terminal_is_the_local_one_where_images_know_it() {
        assert_eq!(term("screen-256color"), Some("screen-256color"));
        assert_eq!(term("xterm-kitty"), Some("xterm-256color"));
        assert_eq!(term("alacritty-direct"), Some("xterm-256color"));
        assert_eq!((term(""), term("/etc/passwd"), term("mine")), (None, None, None));
    }

    /// A single test, because there is one terminal at a time.
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
            // As if a panic aborts: nothing is dropped.
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
