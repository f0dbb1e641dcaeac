//! The last lines of the output, in a form that fits into a status.

use remoteprocess_api::sanitize::acts_on_terminal;

/// Maximum length of a tail, in bytes of UTF-8.
const LONGEST: usize = 1024;

/// The end of `bytes` as text of at most 1 KiB: whole lines if one fits, control bytes and invalid UTF-8 escaped,
/// newlines and tabs kept. Of a line that was overwritten, as progress bars do, only what a terminal shows in the end
/// is kept: what follows the last carriage return.
pub(super) fn render_tail(bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes
        .split(|byte| *byte == b'\n')
        .map(|line| escape(last_written(line)))
        .collect();
    let text = lines.join("\n");
    let text = text.trim_end_matches('\n');
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let mut from = text.len() - LONGEST;
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let cut = &text[from..];
    let is_whole = text[..from].ends_with('\n');
    match cut.split_once('\n') {
        Some((_, whole)) if !is_whole && !whole.is_empty() => whole.to_owned(),
        _ => cut.to_owned(),
    }
}

/// What follows the last carriage return, except for those at the end of the line.
fn last_written(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1);
    let line = &line[..end];
    let begin = line.iter().rposition(|byte| *byte == b'\r').map_or(0, |last| last + 1);
    &line[begin..]
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' | '\t' => text.push(c),
                c if acts_on_terminal(c) => text.extend(c.escape_unicode().filter(|c| !matches!(c, '{' | '}'))),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_output_stays_as_it_is_without_its_last_newline() {
        assert_eq!(render_tail(b"line 1\nline 2\n"), "line 1\nline 2");
        assert_eq!(render_tail(b""), "");
    }

    #[test]
    fn control_bytes_and_broken_utf8_are_escaped() {
        assert_eq!(
            render_tail(b"\x1b[31mred\0\xff\xc3\xa4\t."),
            "\\u1b[31mred\\u0\\xffä\t."
        );
        assert_eq!(render_tail("ok \u{202e}liaf".as_bytes()), "ok \\u202eliaf");
    }

    #[test]
    fn a_progress_bar_is_shown_once_and_windows_lines_have_no_odd_end() {
        assert_eq!(
            render_tail(b"begin\r\n10 %\r50 %\r100 %\r\ndone\r"),
            "begin\n100 %\ndone"
        );
        assert_eq!(render_tail(b"\r\r\r"), "");
    }

    #[test]
    fn long_output_is_cut_to_whole_lines() {
        let text: String = (0..200).map(|line| format!("line {line}\n")).collect();
        let tail = render_tail(text.as_bytes());
        assert!(
            tail.len() <= LONGEST && tail.starts_with("line ") && tail.ends_with("line 199"),
            "{tail}"
        );
    }

    #[test]
    fn one_endless_line_is_cut_between_characters() {
        let tail = render_tail("ä".repeat(2000).as_bytes());
        assert!(tail.len() <= LONGEST && tail.chars().all(|c| c == 'ä'));
    }
}
