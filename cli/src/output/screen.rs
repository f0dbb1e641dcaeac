//! Control sequences of a program: its queries, which a replay leaves out, and the modes that it leaves set.

use std::collections::BTreeSet;

use bytes::Bytes;
use vte::{Params, Parser, Perform};

const ESCAPE: u8 = 0x1b;
/// Asks for the answerback message (ECMA-48, 8.3.44).
const ENQUIRY: u8 = 0x05;
/// Maximum number of bytes of a sequence that are held back until its end is known. No query is as long.
const MAX_HELD: usize = 64 * 1024;

/// The state of a terminal as one program has set it, kept from chunk to chunk.
#[derive(Default)]
pub(super) struct Screen {
    parser: Parser,
    heard: Heard,
    /// A sequence has begun and not ended.
    is_within: bool,
    /// Its bytes that are not passed on yet.
    held: Vec<u8>,
    /// It was longer than that: its first bytes were already sent to the terminal.
    is_long: bool,
    /// Its first three bytes, in the 7-bit form.
    intro: Vec<u8>,
    /// An ESC may have ended a string: whether that string is a query, and where in `held` the ESC is.
    string: Option<(bool, usize)>,
    /// Number of bytes of a UTF-8 character that follow.
    continuation: u8,
    /// 0xC2 was seen: with the next byte it may be a control character of an 8-bit terminal.
    after_c2: bool,
    /// And it is not passed on yet.
    holds_c2: bool,
}

impl Screen {
    /// The bytes without queries. A terminal would answer queries as if the answers were typed. A sequence may be split
    /// over calls: it is held until its end.
    pub(super) fn without_queries(&mut self, bytes: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while let Some((byte, behind)) = rest.split_first() {
            let plain = if self.is_at_rest() { plain(rest) } else { 0 };
            if plain > 0 {
                out.extend_from_slice(&rest[..plain]);
                rest = &rest[plain..];
                continue;
            }
            self.take(*byte, Some(&mut out));
            rest = behind;
        }
        self.holds_c2 = self.after_c2;
        out.into()
    }

    /// The bytes unchanged, after those that are held.
    pub(super) fn with_queries(&mut self, bytes: Bytes) -> Bytes {
        let mut waiting = std::mem::take(&mut self.held);
        if std::mem::take(&mut self.holds_c2) {
            waiting.push(0xc2);
        }
        let mut rest = &bytes[..];
        while let Some((byte, behind)) = rest.split_first() {
            let plain = if self.is_at_rest() { plain(rest) } else { 0 };
            if plain > 0 {
                rest = &rest[plain..];
                continue;
            }
            self.take(*byte, None);
            rest = behind;
        }
        match waiting.is_empty() {
            true => bytes,
            false => [&waiting[..], &bytes].concat().into(),
        }
    }

    /// The sequences that restore the terminal to the state that a shell expects; empty if the program changed nothing.
    /// Afterwards the program counts as having changed nothing.
    pub(super) fn restore(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        // What is held never reached the terminal; the rest has begun a sequence there.
        if self.is_within && (self.held.is_empty() || self.is_long) {
            out.extend_from_slice(b"\x1b\\");
        }
        std::mem::take(self).heard.modes.restore(&mut out);
        out
    }

    fn is_at_rest(&self) -> bool {
        !self.is_within && self.continuation == 0 && !self.after_c2
    }

    /// Processes a byte. `out`: where it goes unless it belongs to a query.
    fn take(&mut self, byte: u8, out: Option<&mut Vec<u8>>) {
        if std::mem::take(&mut self.after_c2) {
            let raw = [0xc2, byte];
            return match byte {
                // U+0080 to U+009F are the control characters of an 8-bit terminal (ECMA-48, 5.3).
                0x80..=0x9f => self.feed(&[ESCAPE, byte - 0x40], &raw, out),
                0xa0..=0xbf => self.feed(&raw, &raw, out),
                _ => {
                    let mut out = out;
                    self.feed(&raw[..1], &raw[..1], out.as_deref_mut());
                    self.take(byte, out);
                }
            };
        }
        if self.continuation > 0 && (0x80..0xc0).contains(&byte) {
            self.continuation -= 1;
            return self.feed(&[byte], &[byte], out);
        }
        self.continuation = match byte {
            0xc3..=0xdf => 1,
            0xe0..=0xef => 2,
            0xf0..=0xf4 => 3,
            _ => 0,
        };
        match byte {
            0xc2 => self.after_c2 = true,
            0x80..=0x9f => self.feed(&[ESCAPE, byte - 0x40], &[byte], out),
            _ => self.feed(&[byte], &[byte], out),
        }
    }

    /// Passes `raw` to the parser as `units`, which are its 7-bit form.
    fn feed(&mut self, units: &[u8], raw: &[u8], mut out: Option<&mut Vec<u8>>) {
        let mut raw = raw;
        for unit in units {
            self.parser.advance(&mut self.heard, &[*unit]);
            let (ended, executed) = (self.heard.ended.take(), self.heard.executed.take());
            if *unit == ESCAPE {
                if self.is_within {
                    self.settle_string(out.as_deref_mut());
                    let is_query = ended.unwrap_or(self.intro == b"\x1b_G");
                    self.string = Some((is_query, self.held.len()));
                }
                self.is_within = true;
                self.intro.clear();
            } else if executed == Some(ENQUIRY) && ended.is_none() {
                continue;
            } else if self.string.is_some() && *unit != b'\\' {
                self.settle_string(out.as_deref_mut());
            }
            if self.intro.len() < 3 {
                self.intro.push(*unit);
            }
            self.hold(std::mem::take(&mut raw), out.as_deref_mut());
            if *unit != ESCAPE
                && let Some(is_query) = ended
            {
                let is_query = self.string.take().map_or(is_query, |(is_query, _)| is_query);
                self.end(is_query, out.as_deref_mut());
            }
        }
    }

    /// The ESC after a string began something else: the string ends before it.
    fn settle_string(&mut self, out: Option<&mut Vec<u8>>) {
        if let Some((is_query, at)) = self.string.take() {
            let behind = self.held.split_off(at.min(self.held.len()));
            self.end(is_query, out);
            self.held = behind;
            self.is_within = true;
        }
    }

    fn hold(&mut self, raw: &[u8], out: Option<&mut Vec<u8>>) {
        let Some(out) = out else { return };
        if !self.is_within {
            return out.extend_from_slice(raw);
        }
        self.held.extend_from_slice(raw);
        if self.held.len() > MAX_HELD {
            out.append(&mut self.held);
            self.is_long = true;
            self.string = self.string.map(|(is_query, _)| (is_query, 0));
        }
    }

    fn end(&mut self, is_query: bool, out: Option<&mut Vec<u8>>) {
        let held = std::mem::take(&mut self.held);
        let was_long = std::mem::take(&mut self.is_long);
        let is_dropped = is_query && !was_long;
        if let Some(out) = out.filter(|_| !is_dropped) {
            out.extend_from_slice(&held);
        }
        self.is_within = false;
    }
}

/// Number of bytes at the beginning that neither ask for anything nor change anything.
fn plain(bytes: &[u8]) -> usize {
    let is_special = |byte: &u8| !matches!(byte, 0x20..=0x7e | b'\n' | b'\r' | b'\t');
    bytes.iter().position(is_special).unwrap_or(bytes.len())
}

/// What the parser found in the last byte, and all modes so far.
#[derive(Default)]
struct Heard {
    /// A character, or a sequence that is complete; whether it is a query.
    ended: Option<bool>,
    /// A control character.
    executed: Option<u8>,
    /// Whether the open device control string is a query.
    is_query: bool,
    modes: Modes,
}

impl Perform for Heard {
    fn print(&mut self, _: char) {
        self.ended = Some(false);
    }

    fn execute(&mut self, byte: u8) {
        self.executed = Some(byte);
        match byte {
            // CAN and SUB end every sequence.
            0x18 | 0x1a => self.ended = Some(false),
            0x0e => self.modes.is_shifted = true,
            0x0f => self.modes.is_shifted = false,
            _ => {}
        }
    }

    fn hook(&mut self, _: &Params, intermediates: &[u8], _: bool, action: char) {
        self.is_query = matches!(
            (intermediates, action),
            // DECRQSS, XTGETTCAP, XTGETXRES; a command of kitty's remote control.
            (b"$" | b"+", 'q') | (b"+", 'Q') | (b"", '@')
        );
    }

    fn unhook(&mut self) {
        self.ended = Some(self.is_query);
    }

    fn osc_dispatch(&mut self, params: &[&[u8]], _: bool) {
        self.ended = Some(is_osc_query(params));
        self.modes.osc(params);
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], _: bool, action: char) {
        let first = params.iter().next().and_then(|values| values.first()).copied();
        self.ended = Some(is_csi_query(first.unwrap_or_default(), intermediates, action));
        self.modes.csi(params, intermediates, action);
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], _: bool, byte: u8) {
        // DECID.
        self.ended = Some(intermediates.is_empty() && byte == b'Z');
        self.modes.esc(intermediates, byte);
    }
}

/// Whether a terminal answers this control sequence (xterm's ctlseqs, DEC STD 070, kitty's protocol extensions).
fn is_csi_query(first: u16, intermediates: &[u8], action: char) -> bool {
    match (intermediates, action) {
        // DA1, DA2, DA3.
        (b"" | b">" | b"=", 'c')
        // DSR, including the position of the cursor.
        | (b"" | b"?", 'n')
        // XTVERSION; kitty's cursors.
        | (b">", 'q')
        // DECRQM; DECSR, which confirms.
        | (b"$" | b"?$" | b"+", 'p')
        // Kitty's keyboard; DECRQTSR, DECRQUPSS, the type of a key.
        | (b"?" | b"$" | b"&" | b",", 'u')
        // XTSMGRAPHICS; the place on the stack of titles.
        | (b"?" | b"#", 'S')
        // XTREPORTCOLORS.
        | (b"#", 'R')
        // DECREQTPARM.
        | (b"", 'x')
        // DECRQCRA.
        | (b"*", 'y')
        // DECRQPSR.
        | (b"$", 'w')
        // DECRQLP; XTREPORTSGR.
        | (b"'" | b"#", '|')
        // DECRQDE.
        | (b"\"", 'v')
        // XTQMODKEYS; XTQFMTKEYS.
        | (b"?", 'm' | 'g') => true,
        (b"> ", 'q') => matches!(first, 0 | 100 | 101),
        // Reports of the window: its state, place, size, title.
        (b"", 't') => matches!(first, 11 | 13..=16 | 18..=21),
        _ => false,
    }
}

/// Whether a terminal answers this operating system command.
fn is_osc_query(params: &[&[u8]]) -> bool {
    let Some((number, values)) = params.split_first() else {
        return false;
    };
    let asks = |value: &[u8]| value.starts_with(b"?") || value.ends_with(b"=?");
    let mut values = values.iter();
    match *number {
        // Text for people, paths and links: a question mark has no meaning.
        b"0" | b"1" | b"2" | b"l" | b"L" | b"I" | b"7" | b"8" | b"9" | b"133" | b"633" | b"777" => false,
        // What xterm allows and does not allow; kitty's clipboard.
        b"60" | b"61" | b"5522" => true,
        b"1337" => values.any(|value| {
            let names: [&[u8]; 4] = [b"Report", b"Request", b"Capabilities", b"GetValue"];
            names.iter().any(|name| value.starts_with(name))
        }),
        // Kitty's notifications: the question is one of the keys.
        b"99" => values.any(|value| value.split(|byte| *byte == b':').any(asks)),
        _ => values.any(|value| value.split(|byte| *byte == b';').any(asks)),
    }
}

/// Private modes of DEC and xterm that are off in a fresh terminal.
const OFF_AT_FIRST: [u16; 23] = [
    1, 5, 6, 9, 45, 47, 66, 69, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 1047, 1049, 2004, 2026, 2031,
    2048,
];
/// Those that are on.
const ON_AT_FIRST: [u16; 2] = [7, 25];
/// The alternate screen.
const ALTERNATE: [u16; 3] = [47, 1047, 1049];

/// What a program has changed in a terminal.
#[derive(Default)]
struct Modes {
    /// Private modes that are not as in a fresh terminal.
    private: BTreeSet<u16>,
    inserts: bool,
    has_keypad: bool,
    has_cursor: bool,
    has_style: bool,
    has_margins: bool,
    has_charset: bool,
    is_shifted: bool,
    has_keys: bool,
    has_link: bool,
    /// Kitty's keyboard: what was pushed on the main and on the alternate screen, and whether it was set.
    pushed: [u16; 2],
    has_flags: [bool; 2],
    /// Colors of the screen, by their command.
    colors: BTreeSet<u16>,
}

impl Modes {
    fn is_alternate(&self) -> bool {
        ALTERNATE.iter().any(|mode| self.private.contains(mode))
    }

    fn csi(&mut self, params: &Params, intermediates: &[u8], action: char) {
        let values = || params.iter().map(|values| values.first().copied().unwrap_or_default());
        let first = values().next().unwrap_or_default();
        let screen = usize::from(self.is_alternate());
        match (intermediates, action) {
            (b"?", 'h' | 'l') => values().for_each(|mode| self.set(mode, action == 'h')),
            (b"", 'h' | 'l') => self.inserts = values().any(|mode| mode == 4) && action == 'h',
            (b" ", 'q') => self.has_cursor = first != 0,
            (b"", 'm') => self.has_style = values().last() != Some(0),
            (b"", 'r') => self.has_margins = values().any(|value| value != 0),
            (b">", 'm') => self.has_keys = values().nth(1).unwrap_or_default() != 0,
            (b">", 'u') => self.pushed[screen] = self.pushed[screen].saturating_add(1),
            (b"<", 'u') => self.pushed[screen] = self.pushed[screen].saturating_sub(first.max(1)),
            (b"=", 'u') => self.has_flags[screen] = first != 0,
            _ => {}
        }
    }

    fn set(&mut self, mode: u16, is_on: bool) {
        let is_changed = match (OFF_AT_FIRST.contains(&mode), ON_AT_FIRST.contains(&mode)) {
            (true, _) => is_on,
            (_, true) => !is_on,
            _ => return,
        };
        if !is_changed && ALTERNATE.contains(&mode) {
            self.private.retain(|mode| !ALTERNATE.contains(mode));
        }
        match is_changed {
            true => _ = self.private.insert(mode),
            false => _ = self.private.remove(&mode),
        }
    }

    fn esc(&mut self, intermediates: &[u8], byte: u8) {
        match (intermediates, byte) {
            (b"", b'=') => self.has_keypad = true,
            (b"", b'>') => self.has_keypad = false,
            (b"", b'c') => *self = Self::default(),
            (b"(", set) => self.has_charset = set != b'B',
            _ => {}
        }
    }

    fn osc(&mut self, params: &[&[u8]]) {
        let number = params.first().and_then(|number| std::str::from_utf8(number).ok());
        match (number.and_then(|number| number.parse().ok()), params.get(1..)) {
            (Some(number @ (4 | 10..=19)), Some(values)) if !values.iter().any(|value| *value == b"?") => {
                self.colors.insert(number);
            }
            (Some(number @ (104 | 110..=119)), _) => _ = self.colors.remove(&(number - 100)),
            (Some(8), Some(values)) => self.has_link = values.last().is_some_and(|link| !link.is_empty()),
            _ => {}
        }
    }

    fn restore(self, out: &mut Vec<u8>) {
        let mut add = |text: &str| out.extend_from_slice(text.as_bytes());
        let keyboard = |screen: usize| {
            let flags = if self.has_flags[screen] { "\x1b[=0u" } else { "" };
            match self.pushed[screen] {
                0 => flags.to_owned(),
                pushed => format!("\x1b[<{pushed}u{flags}"),
            }
        };
        if self.is_alternate() {
            add(&keyboard(1));
        }
        let (screens, modes): (Vec<u16>, Vec<u16>) = self.private.iter().partition(|mode| ALTERNATE.contains(mode));
        for mode in modes.iter().chain(&screens) {
            let letter = if ON_AT_FIRST.contains(mode) { 'h' } else { 'l' };
            add(&format!("\x1b[?{mode}{letter}"));
        }
        add(&keyboard(0));
        for (is_changed, text) in [
            (self.inserts, "\x1b[4l"),
            (self.has_keypad, "\x1b>"),
            (self.has_keys, "\x1b[>4m"),
            // The cursor stays where it is.
            (self.has_margins, "\x1b7\x1b[r\x1b8"),
            (self.has_charset, "\x1b(B"),
            (self.is_shifted, "\x0f"),
            (self.has_cursor, "\x1b[0 q"),
            (self.has_link, "\x1b]8;;\x1b\\"),
            (self.has_style, "\x1b[0m"),
        ] {
            if is_changed {
                add(text);
            }
        }
        for color in &self.colors {
            add(&format!("\x1b]{}\x1b\\", color + 100));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replayed(parts: &[&[u8]]) -> Vec<u8> {
        let mut screen = Screen::default();
        parts.iter().flat_map(|part| screen.without_queries(part)).collect()
    }

    /// With the text around it, in one piece, in two at each place, and byte by byte.
    fn each_split(sequence: &[u8], check: impl Fn(Vec<u8>, &str)) {
        let text = [b"a\r\n", sequence, "\u{e9}b".as_bytes()].concat();
        for at in 0..=text.len() {
            check(
                replayed(&[&text[..at], &text[at..]]),
                &format!("{} at {at}", sequence.escape_ascii()),
            );
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        check(replayed(&bytes), &sequence.escape_ascii().to_string());
    }

    const QUERIES: [&[u8]; 77] = [
        b"\x05",
        b"\x1b[c",
        b"\x1b[0c",
        b"\x1b[>c",
        b"\x1b[>0c",
        b"\x1b[=c",
        b"\x1bZ",
        b"\xc2\x9a",
        b"\x9bc",
        b"\xc2\x9bc",
        b"\xc2\x9b6n",
        b"\x1b[>q",
        b"\x1b[>0q",
        b"\x1b[5n",
        b"\x1b[6n",
        b"\x1b[?6n",
        b"\x1b[?15n",
        b"\x1b[?996n",
        b"\x1b[?2004$p",
        b"\x1b[4$p",
        b"\x1b[?u",
        b"\x1b[1$u",
        b"\x1b[&u",
        b"\x1b[11t",
        b"\x1b[13t",
        b"\x1b[13;2t",
        b"\x1b[14t",
        b"\x1b[14;2t",
        b"\x1b[15t",
        b"\x1b[16t",
        b"\x1b[18t",
        b"\x1b[19t",
        b"\x1b[20t",
        b"\x1b[21t",
        b"\x1b[?1;1;0S",
        b"\x1b[?2;4;0S",
        b"\x1b[#S",
        b"\x1b[#R",
        b"\x1b[x",
        b"\x1b[1x",
        b"\x1b[1;1;1;1;24;80*y",
        b"\x1b[1$w",
        b"\x1b[2$w",
        b"\x1b['|",
        b"\x1b[1;1;2;2#|",
        b"\x1b[\"v",
        b"\x1b[?4m",
        b"\x1b[> q",
        b"\x1b[>100 q",
        b"\x1b]4;1;?\x07",
        b"\x1b]4;1;?\x1b\\",
        b"\x1b]4;0;?;1;?;2;?;3;?;4;?;5;?;6;?;7;?;8;?;9;?;10;?;11;?\x1b\\",
        b"\x1b]4;0;#000000;1;?\x1b\\",
        b"\x1b]5;0;?\x07",
        b"\x1b]10;?\x07",
        b"\x1b]10;?;?\x07",
        b"\x1b]11;?\x1b\\",
        b"\x1b]11;?\xc2\x9c",
        b"\xc2\x9d11;?\xc2\x9c",
        b"\x9d11;?\x9c",
        b"\x1b]12;?\x07",
        b"\x1b]50;?\x07",
        b"\x1b]52;c;?\x07",
        b"\x1b]52;;?\x1b\\",
        b"\x1b]21;foreground=?\x1b\\",
        b"\x1b]22;?__current__\x1b\\",
        b"\x1b]60\x1b\\",
        b"\x1b]99;i=1:p=?;\x1b\\",
        b"\x1b]5522;type=read;Lg==\x1b\\",
        b"\x1b]1337;ReportCellSize\x07",
        b"\x1bP$qm\x1b\\",
        b"\x1bP$q q\xc2\x9c",
        b"\x90$qr\x9c",
        b"\x1bP+q544e;524742\x1b\\",
        b"\x1bP+Q616263\x1b\\",
        b"\x1bP@kitty-cmd{\"cmd\":\"ls\"}\x1b\\",
        b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\",
    ];

    const OTHERS: [&[u8]; 37] = [
        b"",
        b"\x07",
        b"\x1b[31m",
        b"\x1b[38:2::1:2:3m",
        b"\x1b[2J\x1b[H",
        b"\x1b[3\n1m",
        b"\x1b[?1049h",
        b"\x1b[?25l",
        b"\x1b[2 q",
        b"\x1b[1\"q",
        b"\x1b[!p",
        b"\x1b[62;1\"p",
        b"\x1b[u",
        b"\x1b[>1u",
        b"\x1b[<u",
        b"\x1b[=1;1u",
        b"\x1b[8;24;80t",
        b"\x1b[22;0t",
        b"\x1b[>2t",
        b"\x1b[2S",
        b"\x1b[2*x",
        b"\x1b[>4;1m",
        b"\x1b[>4n",
        b"\x1b7\x1b8\x1bM\x1b=",
        b"\x1b(0lqk\x1b(B",
        b"\x1b]0;What is this; ?\x07",
        b"\x1b]2;?\x1b\\",
        b"\x1b]8;;https://example.com/?a=?\x1b\\link\x1b]8;;\x1b\\",
        b"\x1b]52;c;aGVsbG8=\x07",
        b"\x1b]4;1;#ff0000\x1b\\",
        b"\x1b]11;rgb:00/00/00\x07",
        b"\x1bPq#0;2;0;0;0~~\x1b\\",
        b"\x1bP1$tq\x1b\\",
        b"\x1b_other\x1b\\",
        b"\x1b^private\x1b\\",
        b"\x1b[1;2<c",
        b"\xff\xc2\xa0 \xe2\x9b\x84 \xf0\x9f\x90\x8e",
    ];

    #[test]
    fn a_replay_asks_the_terminal_nothing() {
        for query in QUERIES {
            each_split(query, |out, what| {
                assert_eq!(out.escape_ascii().to_string(), "a\\r\\n\\xc3\\xa9b", "{what}");
            });
        }
    }

    #[test]
    fn everything_else_of_a_replay_is_shown() {
        for sequence in OTHERS {
            let whole = [b"a\r\n", sequence, "\u{e9}b".as_bytes()].concat();
            each_split(sequence, |out, what| {
                assert_eq!(
                    out.escape_ascii().to_string(),
                    whole.escape_ascii().to_string(),
                    "{what}"
                );
            });
        }
    }

    #[test]
    fn a_query_within_another_sequence_is_found() {
        for (given, left) in [
            (&b"\x1b[3\x051mx"[..], &b"\x1b[31mx"[..]),
            (b"\x1b]0;t\x1b[6n\x07", b"\x1b]0;t\x07"),
            (b"\x1b[1\x1b[6nx", b"\x1b[1x"),
            (b"\x1b\x1b[6nx", b"\x1bx"),
            (b"\x1b]11;?\x1b[6nx", b"x"),
            // CAN takes it back.
            (b"\x1b]11;?\x18x", b"\x1b]11;?\x18x"),
        ] {
            assert_eq!(
                replayed(&[given]).escape_ascii().to_string(),
                left.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn what_is_live_passes_and_so_does_a_sequence_over_the_border() {
        for sequence in QUERIES.iter().chain(&OTHERS) {
            for at in 0..sequence.len() {
                let mut screen = Screen::default();
                let (old, new) = sequence.split_at(at);
                let out = [screen.without_queries(old), screen.with_queries(new.to_vec().into())].concat();
                assert_eq!(
                    out.escape_ascii().to_string(),
                    sequence.escape_ascii().to_string(),
                    "at {at}"
                );
            }
        }
    }

    #[test]
    fn a_sequence_without_end_does_not_grow() {
        let mut screen = Screen::default();
        let mut out = Vec::new();
        let text = [b"\x1b]52;c;".as_slice(), &[b'A'; 200_000], b"\x07"].concat();
        for part in text.chunks(1000) {
            out.extend(screen.without_queries(part));
            assert!(screen.held.len() <= MAX_HELD + 2);
        }
        assert!(out == text && screen.is_at_rest());
        assert_eq!(screen.without_queries(b"\x1b[6nx"), "x");
    }

    fn left_behind(text: &str) -> String {
        let mut screen = Screen::default();
        screen.with_queries(text.as_bytes().to_vec().into());
        let out = screen.restore();
        assert!(screen.restore().is_empty(), "once");
        String::from_utf8(out).unwrap().replace('\x1b', "^")
    }

    #[test]
    fn what_a_program_changed_is_changed_back_when_you_leave() {
        for (text, restored) in [
            ("plain\r\n", ""),
            ("\x1b[?1049h\x1b[?1002;1006h\x1b[?25l", "^[?25h^[?1002l^[?1006l^[?1049l"),
            ("\x1b[?1049h\x1b[?1049l", ""),
            ("\x1b[?1049h\x1b[?47l", ""),
            ("\x1b[?1h\x1b=\x1b[?2004h\x1b[?1004h", "^[?1l^[?1004l^[?2004l^>"),
            ("\x1b[31mred", "^[0m"),
            ("\x1b[31mred\x1b[m", ""),
            ("\x1b[4 q", "^[0 q"),
            ("\x1b[2;10r", "^7^[r^8"),
            ("\x1b(0\x0e", "^(B\x0f"),
            ("\x1b[4h", "^[4l"),
            ("\x1b[>1u\x1b[?1049h\x1b[>5u\x1b[>5u", "^[<2u^[?1049l^[<1u"),
            ("\x1b[>1u\x1b[<u", ""),
            ("\x1b[=5u", "^[=0u"),
            ("\x1b[>4;2m", "^[>4m"),
            ("\x1b]11;#000000\x07\x1b]10;?\x07", "^]111^\\"),
            ("\x1b]8;;http://x\x1b\\", "^]8;;^\\"),
            ("\x1b[?1049h\x1bc", ""),
            // The program was in the middle of a sequence.
            ("\x1b]0;tit", "^\\"),
        ] {
            assert_eq!(left_behind(text), restored, "{}", text.escape_debug());
        }
    }

    #[test]
    fn what_a_replay_held_back_needs_no_end() {
        let mut screen = Screen::default();
        assert!(screen.without_queries(b"\x1b]0;tit").is_empty());
        assert!(screen.restore().is_empty());
    }
}
