use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use remoteprocess_proto::v1::Cursor;

/// Where to begin, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// In one stream; the other is not printed.
    One(u64),
    /// In each of the two.
    Both(Cursor),
}

impl FromStr for Offset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(offset) = text.parse() {
            return Ok(Self::One(offset));
        }
        let wrong = || "expected a number of bytes, or stdout=N,stderr=M".to_owned();
        let (mut stdout, mut stderr) = (None, None);
        for part in text.split(',') {
            let (name, offset) = part.split_once('=').ok_or_else(wrong)?;
            let place = match name {
                "stdout" => &mut stdout,
                "stderr" => &mut stderr,
                _ => return Err(wrong()),
            };
            if place.replace(offset.parse().map_err(|_| wrong())?).is_some() {
                return Err(wrong());
            }
        }
        Ok(Self::Both(Cursor {
            stdout: stdout.unwrap_or_default(),
            stderr: stderr.unwrap_or_default(),
        }))
    }
}

/// A time on the command line (RFC 3339).
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| "expected a moment like 2026-01-31T12:00:00Z".to_owned())
}

/// The time `span` before `now`; the earliest time if there is none.
pub(super) fn before(now: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span)
        .ok()
        .and_then(|span| now.checked_sub(span).ok())
        .unwrap_or(Timestamp::MIN)
}

/// Nanoseconds since the Unix epoch, as precise as 64 bits allow.
pub(super) fn nanos(moment: Timestamp) -> i64 {
    let nanos = moment.as_nanosecond();
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_as_written() {
        let both = |stdout, stderr| Ok(Offset::Both(Cursor { stdout, stderr }));
        assert_eq!("7".parse(), Ok(Offset::One(7)));
        assert_eq!("stdout=7,stderr=9".parse::<Offset>(), both(7, 9));
        assert_eq!("stderr=9,stdout=7".parse::<Offset>(), both(7, 9));
        assert_eq!("stderr=9".parse::<Offset>(), both(0, 9));
        for text in ["", "-1", "stdin=1", "stdout", "stdout=x", "stdout=1,stdout=2"] {
            assert!(text.parse::<Offset>().is_err(), "{text}");
        }
    }

    #[test]
    fn no_span_is_too_long() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(nanos(before(now, Duration::MAX)), i64::MIN);
        assert_eq!(nanos(before(now, Duration::from_secs(1))), 1_767_225_599_000_000_000);
    }
}
