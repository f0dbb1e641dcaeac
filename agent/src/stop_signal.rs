//! Signals by name or number, as a person writes them.

/// Number of a signal, 1 to 64 (Linux).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSignal(pub i32);

/// Lowest real-time signal that programs get to see.
const RTMIN: i32 = 34;
/// Highest signal.
const RTMAX: i32 = 64;

/// In the order of their numbers, from 1 (signal(7); the same on x86-64 and arm64).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// Reads `SIGTERM`, `term`, `15`, `SIG40`, `SIGRTMIN+3` or `SIGRTMAX-1`.
///
/// # Errors
/// A sentence for anything else.
pub fn parse(text: &str) -> Result<StopSignal, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse() {
        Ok(number) => Some(number),
        Err(_) => by_name(name),
    };
    match number {
        Some(number @ 1..=RTMAX) => Ok(StopSignal(number)),
        _ => Err(format!("{text:?} is no signal: write SIGTERM or 15")),
    }
}

fn by_name(name: &str) -> Option<i32> {
    let shift = |rest: &str| {
        if rest.is_empty() {
            Some(0)
        } else {
            rest.parse::<i32>().ok()
        }
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return shift(rest).map(|shift| RTMIN.saturating_add(shift));
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return shift(rest).map(|shift| RTMAX.saturating_add(shift));
    }
    let index = NAMES.iter().position(|known| *known == name)?;
    i32::try_from(index + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("15", 15),
            ("SIGKILL", 9),
            ("SIGSYS", 31),
            ("SIGUSR2", 12),
            ("sigterm", 15),
            ("SIG40", 40),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(parse(text), Ok(StopSignal(number)), "{text}");
        }
        for text in ["", "SIG", "SIGNOPE", "0", "65", "-1", "SIGRTMAX+1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
