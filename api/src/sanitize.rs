//! Cleans text from outside before it is passed on.

/// At most `longest` characters of it, without those on which a terminal acts.
pub fn plain(text: &str, longest: usize) -> String {
    text.chars()
        .filter(|character| !acts_on_terminal(*character))
        .take(longest)
        .collect()
}

/// Whether a terminal acts on this character instead of showing it: control characters, those that change the display
/// order of the rest of the line, and those that end a line or are invisible.
pub fn acts_on_terminal(character: char) -> bool {
    let is_hidden = matches!(
        character,
        '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    character.is_control() || is_hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_neither_endless_nor_moves_the_cursor() {
        assert_eq!(plain("a\u{1b}b\nc\u{e4}d", 4), "abc\u{e4}");
        assert_eq!(
            plain("stopped by \u{202e}nimda\u{2066}\u{200b}", 64),
            "stopped by nimda"
        );
    }
}
