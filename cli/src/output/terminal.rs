/// Maximum length of a color sequence that passes, in bytes.
const MAX_SEQUENCE: usize = 32;

/// Makes output safe for a terminal: what could move the cursor, rename the window or type answers is shown instead of
/// executed. Line ends, tabs, returns and colors (`ESC [ … m`) pass; so does UTF-8 text.
#[derive(Default)]
pub(super) struct TerminalFilter {
    sequence: Vec<u8>,
    continuation: u8,
    after_c2: bool,
}

impl TerminalFilter {
    /// The bytes to write instead of `bytes`. A color sequence may be split over calls.
    pub(super) fn apply(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.take(*byte, &mut out);
        }
        out
    }

    fn take(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.sequence.is_empty() {
            return self.take_text(byte, out);
        }
        self.sequence.push(byte);
        let is_open = match self.sequence.len() {
            2 => byte == b'[',
            length => length < MAX_SEQUENCE && matches!(byte, b'0'..=b'9' | b';' | b':'),
        };
        if is_open {
            return;
        }
        let sequence = std::mem::take(&mut self.sequence);
        if byte == b'm' && sequence.len() > 2 {
            out.extend_from_slice(&sequence);
        } else {
            show(sequence[0], out);
            for byte in &sequence[1..] {
                self.take(*byte, out);
            }
        }
    }

    fn take_text(&mut self, byte: u8, out: &mut Vec<u8>) {
        let is_after_c2 = std::mem::take(&mut self.after_c2);
        if self.continuation > 0 && (0x80..0xc0).contains(&byte) {
            self.continuation -= 1;
            if is_after_c2 && byte < 0xa0 {
                // U+0080 to U+009F: the control characters of an 8-bit terminal. Remove the lead byte again.
                out.pop();
                return show(byte, out);
            }
            return out.push(byte);
        }
        self.continuation = match byte {
            0xc2..=0xdf => 1,
            0xe0..=0xef => 2,
            0xf0..=0xf4 => 3,
            _ => 0,
        };
        self.after_c2 = byte == 0xc2;
        match byte {
            0x1b => self.sequence.push(byte),
            b'\n' | b'\r' | b'\t' | 0x20..=0x7e | 0xa0.. => out.push(byte),
            _ => show(byte, out),
        }
    }
}

/// `^G` for 0x07, `\x9b` for 0x9b: visible and harmless.
fn show(byte: u8, out: &mut Vec<u8>) {
    match byte {
        0x00..=0x1f => out.extend_from_slice(&[b'^', byte + 0x40]),
        0x7f => out.extend_from_slice(b"^?"),
        _ => out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(bytes: &[u8]) -> String {
        let whole = TerminalFilter::default().apply(bytes);
        let mut filter = TerminalFilter::default();
        let split: Vec<u8> = bytes.iter().flat_map(|byte| filter.apply(&[*byte])).collect();
        // A control character in UTF-8 that comes in pieces has already sent its lead byte to the terminal; nothing
        // else differs.
        if !bytes.contains(&0xc2) {
            assert_eq!(split, whole, "pieces and whole differ");
        }
        String::from_utf8_lossy(&whole).into_owned()
    }

    #[test]
    fn text_and_colors_pass() {
        for text in [
            "plain\r\n\ttext\n",
            "\u{1b}[1;31mred\u{1b}[0m",
            "\u{1b}[38:5:9m",
            "žluťoučký 🐎 \u{a0}",
        ] {
            assert_eq!(filter(text.as_bytes()), text);
        }
    }

    #[test]
    fn what_acts_on_the_terminal_is_shown() {
        for (bytes, shown) in [
            (&b"\x1b[2J"[..], "^[[2J"),
            (b"\x1b]0;title\x07", "^[]0;title^G"),
            (b"\x1b\x1b[31mx", "^[\u{1b}[31mx"),
            (b"\x1b[6n", "^[[6n"),
            (b"a\x08\x7f\x00", "a^H^?^@"),
            (b"\xc2\x9b2J", "\\x9b2J"),
            (b"\x9b2J", "\\x9b2J"),
        ] {
            assert_eq!(filter(bytes), shown);
        }
    }

    #[test]
    fn a_sequence_without_end_does_not_grow() {
        let long = [b"\x1b[".as_slice(), &[b'1'; 100]].concat();
        assert!(filter(&long).starts_with("^[[111"));
    }
}
