//! Text for people and for programs. Pure: no I/O.

use std::fmt::Write;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event;
use remoteprocess_api::sanitize::acts_on_terminal;

pub mod bridged;
pub mod description;
pub mod row;
pub mod sink;
pub mod template;
pub mod trigger;

/// `text` on one line, with everything on which a terminal would act made visible.
pub fn escape(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, character| {
            if acts_on_terminal(character) {
                // Writing to a String cannot fail.
                let _ = write!(out, "{}", character.escape_default());
            } else {
                out.push(character);
            }
            out
        })
}

/// A duration as kubectl prints it: `5s`, `3m20s`, `90m`, `4h5m`, `3d`.
pub fn age(span: SignedDuration) -> String {
    let seconds = span.as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |large: i64, unit: &str, small: i64, smaller: &str| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit}{small}{smaller}")
        }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

/// How long ago `then` was, as [`age`]; empty if there is none.
pub fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map(|then| age(now.duration_since(then))).unwrap_or_default()
}

/// When an Event was seen last: as a series, once, or in the old form.
#[must_use]
pub fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let once = event.event_time.as_ref().map(|time| time.0);
    series.map(|time| time.0).or(last).or(once)
}

/// Columns as kubectl prints them: wide enough for each cell plus three spaces, none after the last.
#[derive(Debug, Default)]
pub struct Table {
    widths: Vec<usize>,
}

impl Table {
    /// Fits the columns to `rows` as well. Columns never get narrower, so that later rows stay in line.
    pub fn fit(&mut self, rows: &[Vec<String>]) {
        for row in rows {
            self.widths.resize(self.widths.len().max(row.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(escape(cell).chars().count());
            }
        }
    }

    /// The rows as lines.
    pub fn lines(&self, rows: &[Vec<String>]) -> String {
        let mut out = String::new();
        for row in rows {
            let cells = row
                .iter()
                .zip(&self.widths)
                .map(|(cell, width)| format!("{:width$}   ", escape(cell)));
            out.push_str(cells.collect::<String>().trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(escape("a\u{1b}[2Jb\nc\u{202e}"), "a\\u{1b}[2Jb\\nc\\u{202e}");
        assert_eq!(escape("žlutý"), "žlutý");
    }

    #[test]
    fn ages_are_those_of_kubectl() {
        for (seconds, text) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (10_800, "3h"),
            (14_700, "4h5m"),
            (30_000, "8h"),
            (180_000, "2d2h"),
            (9_000_000, "104d"),
        ] {
            assert_eq!(age(SignedDuration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn columns_stand_in_line() {
        let rows = vec![
            vec!["NAME".to_owned(), "AGE".into()],
            vec!["long-name".into(), "5s".into()],
        ];
        let mut table = Table::default();
        table.fit(&rows);
        assert_eq!(table.lines(&rows), "NAME        AGE\nlong-name   5s\n");
    }
}
