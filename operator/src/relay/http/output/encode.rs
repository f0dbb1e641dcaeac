//! Bytes as the contents of a JSON string, written straight into the buffer of an answer. Most of an answer is this.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Appends a text as the contents of a JSON string, with the escapes of serde_json (RFC 8259, section 7).
pub(super) fn text(text: &str, into: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    // Lines have one escape each.
    into.reserve(rest.len() + rest.len() / 32);
    loop {
        let (plain, special) = rest.split_at(plain(rest));
        into.extend_from_slice(plain);
        let Some((first, behind)) = special.split_first() else {
            return;
        };
        escape(*first, into);
        rest = behind;
    }
}

/// Appends bytes as Base64 with padding, which needs no escape.
pub(super) fn base64(bytes: &[u8], into: &mut Vec<u8>) {
    let from = into.len();
    // Four characters for each three bytes that have begun.
    into.resize(from + bytes.len().div_ceil(3) * 4, 0);
    let written = BASE64_STANDARD.encode_slice(bytes, &mut into[from..]);
    into.truncate(from + written.unwrap_or_default());
}

/// How many bytes come before the first one that needs an escape: a quote, a backslash or a control character.
fn plain(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let found = special(u64::from_le_bytes(*word));
        if found != 0 {
            return 8 * number + found.trailing_zeros() as usize / 8;
        }
    }
    let is_special = |byte: &u8| matches!(byte, 0..0x20 | b'"' | b'\\');
    8 * words.len() + rest.iter().position(is_special).unwrap_or(rest.len())
}

/// Sets the highest bit of the first byte that needs an escape, counted from the least significant one. Bits above it mean
/// nothing; without such a byte, none is set.
fn special(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGH: u64 = ONES * 0x80;
    // A subtraction takes from the next byte only if its own byte is below the limit, so the first one found is right.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH;
    let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    below(word, 0x20) | is(b'"') | is(b'\\')
}

fn escape(byte: u8, into: &mut Vec<u8>) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let letter = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        _ => {
            into.extend_from_slice(b"\\u00");
            into.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
            return;
        }
    };
    into.extend_from_slice(&[b'\\', letter]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The contents of the string that serde_json writes.
    fn expected(text: &str) -> String {
        let whole = serde_json::to_string(text).unwrap();
        whole[1..whole.len() - 1].to_owned()
    }

    fn escaped(part: &str) -> String {
        let mut into = b"before".to_vec();
        text(part, &mut into);
        String::from_utf8(into.split_off(6)).unwrap()
    }

    #[test]
    fn each_character_is_escaped_as_by_serde_json_at_each_place() {
        for code in (0..0x300).chain([0x2028, 0xfffd, 0x1f600]) {
            let character = char::from_u32(code).unwrap();
            for before in 0..18 {
                let text = format!("{}{character}{character}x\"", "a".repeat(before));
                assert_eq!(escaped(&text), expected(&text), "{code:#x} at {before}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_escaped_as_by_serde_json(text in ".{0,40}[\\x00-\\x7f]{0,40}") {
            prop_assert_eq!(escaped(&text), expected(&text));
        }

        #[test]
        fn base64_can_be_decoded(bytes in prop::collection::vec(any::<u8>(), 0..70)) {
            let mut into = b"before".to_vec();
            base64(&bytes, &mut into);
            prop_assert_eq!(into.split_off(6), BASE64_STANDARD.encode(&bytes).into_bytes());
        }
    }
}
