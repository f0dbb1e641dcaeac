use std::fmt;
use std::str::FromStr;

/// The default of docker.
pub const DEFAULT_DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// A sequence of keys that detaches from a process; may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let keys = text.split(',').filter(|_| !text.is_empty()).map(key);
        keys.collect::<Option<_>>().map(Self).ok_or_else(|| {
            "expected keys with commas between them, each a character or ctrl- and a letter, @, [, \\, ], ^ or _; \
             or nothing for no keys"
                .to_owned()
        })
    }
}

impl DetachKeys {
    /// Whether there is no such sequence.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for DetachKeys {
    /// As on a keyboard: `Ctrl-P Ctrl-Q`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, key) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            match key {
                0..=31 => write!(f, "{space}Ctrl-{}", char::from(key + 64))?,
                _ => write!(f, "{space}{}", char::from(*key))?,
            }
        }
        Ok(())
    }
}

fn key(text: &str) -> Option<u8> {
    let single = |text: &str| match text.as_bytes() {
        [byte] if byte.is_ascii_graphic() => Some(*byte),
        _ => None,
    };
    match text.strip_prefix("ctrl-") {
        // Control characters are 64 below their letters (ASCII).
        Some(rest) => match single(rest)?.to_ascii_uppercase() {
            byte @ b'@'..=b'_' => Some(byte - 64),
            _ => None,
        },
        None => single(text),
    }
}

/// Searches what is typed for the detach keys.
#[derive(Debug)]
pub(super) struct Keys {
    keys: DetachKeys,
    /// How many of them were typed last, and are held back.
    matched: usize,
}

impl Keys {
    pub(super) const fn new(keys: DetachKeys) -> Self {
        Self { keys, matched: 0 }
    }

    /// Whether some of the keys were typed and wait for the next one.
    pub(super) const fn is_waiting(&self) -> bool {
        self.matched > 0
    }

    /// The keys that are held back, because the next one did not come.
    pub(super) fn release(&mut self) -> Vec<u8> {
        self.keys.0[..std::mem::take(&mut self.matched)].to_vec()
    }

    /// The part of `typed` to send, and whether the whole sequence was typed.
    pub(super) fn apply(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let keys = &self.keys.0;
        let mut out = Vec::with_capacity(typed.len());
        for byte in typed {
            if keys.get(self.matched) != Some(byte) {
                out.extend_from_slice(&keys[..std::mem::take(&mut self.matched)]);
            }
            if keys.get(self.matched) != Some(byte) {
                out.push(*byte);
                continue;
            }
            self.matched += 1;
            if self.matched == keys.len() {
                return (out, true);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Keys {
        Keys::new(text.parse().unwrap())
    }

    #[test]
    fn keys_have_names() {
        assert_eq!(DEFAULT_DETACH_KEYS.parse(), Ok(DetachKeys(vec![16, 17])));
        assert_eq!("ctrl-@,ctrl-],~,.".parse(), Ok(DetachKeys(vec![0, 29, b'~', b'.'])));
        assert_eq!("".parse(), Ok(DetachKeys(vec![])));
        for text in ["ctrl-", "ctrl-ab", "ab", ",", "ctrl-1", "ü"] {
            assert!(text.parse::<DetachKeys>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_sequence_leaves_and_everything_else_is_sent() {
        let mut keys = keys(DEFAULT_DETACH_KEYS);
        assert_eq!(keys.apply(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.apply(b"c"), (b"\x10c".to_vec(), false), "it was none");
        assert_eq!(keys.apply(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.apply(b"\x11rest"), (vec![], true));
    }

    #[test]
    fn a_single_ctrl_p_is_sent_after_a_short_time() {
        let mut keys = keys(DEFAULT_DETACH_KEYS);
        assert_eq!(keys.apply(b"\x10"), (vec![], false));
        assert!(keys.is_waiting());
        assert_eq!(keys.release(), b"\x10");
        assert!(!keys.is_waiting() && keys.release().is_empty());
        assert_eq!(keys.apply(b"\x11"), (b"\x11".to_vec(), false));
    }

    #[test]
    fn keys_are_shown_as_on_a_keyboard() {
        let shown = |text: &str| text.parse::<DetachKeys>().unwrap().to_string();
        assert_eq!(shown(DEFAULT_DETACH_KEYS), "Ctrl-P Ctrl-Q");
        assert_eq!(shown("~,."), "~ .");
    }

    #[test]
    fn without_keys_nothing_leaves() {
        assert_eq!(keys("").apply(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
