//! Signals by name and number: the numbers of Linux on x86-64, arm64 and riscv64 (signal(7), "Standard signals").

/// Name and number of each signal that a user can send.
pub const SIGNALS: [(&str, i32); 31] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGILL", 4),
    ("SIGTRAP", 5),
    ("SIGABRT", 6),
    ("SIGBUS", 7),
    ("SIGFPE", 8),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGSEGV", 11),
    ("SIGUSR2", 12),
    ("SIGPIPE", 13),
    ("SIGALRM", 14),
    ("SIGTERM", 15),
    ("SIGSTKFLT", 16),
    ("SIGCHLD", 17),
    ("SIGCONT", 18),
    ("SIGSTOP", 19),
    ("SIGTSTP", 20),
    ("SIGTTIN", 21),
    ("SIGTTOU", 22),
    ("SIGURG", 23),
    ("SIGXCPU", 24),
    ("SIGXFSZ", 25),
    ("SIGVTALRM", 26),
    ("SIGPROF", 27),
    ("SIGWINCH", 28),
    ("SIGIO", 29),
    ("SIGPWR", 30),
    ("SIGSYS", 31),
];

/// Highest number of a signal, the last real-time one.
pub const MAX_SIGNAL: i32 = 64;

/// The number of a signal given as `TERM`, `SIGTERM`, `sigterm` or `15`; `None` if there is no such signal.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=MAX_SIGNAL).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS
        .iter()
        .find(|(name, _)| &name[3..] == bare)
        .map(|(_, number)| *number)
}

/// The name of a signal, `SIGTERM` for 15; `SIG40` for one without a name; `SIG?` for a number that no signal has.
pub fn name(number: i32) -> String {
    let known = SIGNALS.iter().find(|(_, known)| *known == number);
    match known {
        Some((name, _)) => (*name).to_owned(),
        None if (1..=MAX_SIGNAL).contains(&number) => format!("SIG{number}"),
        None => "SIG?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for spelling in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(parse(spelling), Some(15), "{spelling}");
        }
        for wrong in ["", "SIG", "NOPE", "0", "65", "-9"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert!(
            SIGNALS
                .iter()
                .enumerate()
                .all(|(index, (_, number))| index + 1 == usize::try_from(*number).unwrap())
        );
        assert_eq!((name(9).as_str(), name(40).as_str()), ("SIGKILL", "SIG40"));
        for number in [i32::MIN, -9, 0, 65, i32::MAX] {
            assert_eq!(name(number), "SIG?", "an agent may say anything");
        }
    }
}
