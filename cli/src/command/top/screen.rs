//! A table that is redrawn in place.

use std::fmt::Write;

use remoteprocess_proto::v1::WindowSize;

use crate::render::escape;

/// What a terminal shows at the moment.
#[derive(Default)]
pub(super) struct Screen {
    size: Option<WindowSize>,
    lines: usize,
}

impl Screen {
    /// What replaces the last frame: the lines of `table`, and below them `notes`. It has fewer lines than the window, and
    /// none is longer than that is wide, so that the next frame finds the beginning of this one.
    pub(super) fn frame(&mut self, table: &str, notes: &[String], size: WindowSize) -> String {
        let mut out = match self.size.replace(size) {
            // After a change of its size, the terminal may have wrapped lines anew.
            Some(before) if before != size => "\x1b[H\x1b[2J".to_owned(),
            _ if self.lines > 0 => format!("\x1b[{}A\r", self.lines),
            _ => String::new(),
        };
        let (rows, columns) = (size.rows as usize, size.columns as usize);
        let lines = fitted(table, notes, rows.saturating_sub(1));
        for line in &lines {
            let line: String = line.chars().take(columns).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{line}\x1b[K");
        }
        out.push_str("\x1b[J");
        self.lines = lines.len();
        out
    }
}

/// At most `most` lines, of which the notes are the last. What is left out is counted.
fn fitted(table: &str, notes: &[String], most: usize) -> Vec<String> {
    let notes = notes.iter().map(|note| escape(note)).take(most);
    let room = most - notes.len();
    let mut lines: Vec<String> = table.lines().map(str::to_owned).collect();
    if lines.len() > room {
        let left_out = lines.len() - room.saturating_sub(1);
        lines.truncate(room.saturating_sub(1));
        lines.extend((room > 0).then(|| format!("… and {left_out} more")));
    }
    lines.extend(notes);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_replaces_the_last_one_and_fits_the_window() {
        let size = WindowSize { rows: 5, columns: 8 };
        let mut screen = Screen::default();
        let first = screen.frame("NAME\na\nb\n", &[], size);
        assert_eq!(first, "NAME\x1b[K\na\x1b[K\nb\x1b[K\n\x1b[J");
        let note = "no \x1b[2J answer".to_owned();
        let second = screen.frame("NAME\na\nb\nc\n", &[note], size);
        assert_eq!(
            second,
            "\x1b[3A\rNAME\x1b[K\na\x1b[K\n… and 2 \x1b[K\nno \\u{1b\x1b[K\n\x1b[J"
        );
        let wider = WindowSize { rows: 5, columns: 80 };
        let third = screen.frame("NAME\n", &[], wider);
        assert_eq!(third, "\x1b[H\x1b[2JNAME\x1b[K\n\x1b[J");
        for rows in 0..9 {
            let lines = fitted("NAME\na\nb\nc\n", &["one".to_owned(), "two".to_owned()], rows);
            assert!(lines.len() <= rows, "{rows}: {lines:?}");
        }
    }
}
