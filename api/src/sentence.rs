//! What others say, before it is passed on.

/// At most `longest` characters of it, control characters left out.
#[must_use]
pub fn plain(text: &str, longest: usize) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(longest)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_neither_endless_nor_moves_the_cursor() {
        assert_eq!(plain("a\u{1b}b\nc\u{e4}d", 4), "abc\u{e4}");
    }
}
