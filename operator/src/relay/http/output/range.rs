//! Byte ranges and validators of complete output (RFC 9110, 13 and 14).

use http::HeaderMap;
use http::header::{HeaderName, IF_NONE_MATCH, IF_RANGE, RANGE};

/// A part of something of a known length: from `from` to before `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub from: u64,
    pub to: u64,
    of: u64,
}

/// What the headers ask for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This part, or all of it.
    Part(Part),
    /// The range begins behind the end.
    Unsatisfiable,
    /// The client has it.
    NotModified,
}

impl Part {
    pub(super) fn new(from: u64, to: u64, of: u64) -> Self {
        Self { from, to, of }
    }

    pub(super) fn length(&self) -> u64 {
        self.to - self.from
    }

    /// The header `Content-Range`; `None` for all of it.
    pub(super) fn content_range(&self) -> Option<String> {
        let is_all = self.length() == self.of;
        (!is_all).then(|| format!("bytes {}-{}/{}", self.from, self.to.saturating_sub(1), self.of))
    }
}

/// What a client gets of something with this tag and length. A range that we do not understand, or several of them, ask
/// for all of it; so does a range of another version.
pub(super) fn choose(headers: &HeaderMap, tag: &str, length: u64) -> Choice {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let is_ours = |given: &str| given.trim() == format!("\"{tag}\"");
    let has_it = |given: &str| given.split(',').any(|one| one.trim() == "*" || is_ours(one));
    if text(IF_NONE_MATCH).is_some_and(has_it) {
        return Choice::NotModified;
    }
    let all = Choice::Part(Part::new(0, length, length));
    if headers.contains_key(IF_RANGE) && !text(IF_RANGE).is_some_and(is_ours) {
        return all;
    }
    let Some((first, last)) = text(RANGE).and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return all;
    };
    match (number(first), number(last)) {
        (Some(None), Some(Some(suffix))) if suffix > 0 && length > 0 => {
            Choice::Part(Part::new(length.saturating_sub(suffix), length, length))
        }
        (Some(None), Some(Some(_))) => Choice::Unsatisfiable,
        (Some(Some(first)), Some(last)) if last.is_none_or(|last| last >= first) => {
            if first >= length {
                return Choice::Unsatisfiable;
            }
            let to = last.map_or(length, |last| last.saturating_add(1).min(length));
            Choice::Part(Part::new(first, to, length))
        }
        _ => all,
    }
}

/// A number, or nothing; `None` for anything else.
fn number(text: &str) -> Option<Option<u64>> {
    match text.trim() {
        "" => Some(None),
        digits if digits.bytes().all(|c| c.is_ascii_digit()) => digits.parse().ok().map(Some),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("bytes=0-", Some((0, 10)))]
    #[case("bytes=3-", Some((3, 10)))]
    #[case("bytes=3-5", Some((3, 6)))]
    #[case("bytes=3-99", Some((3, 10)))]
    #[case("bytes=-4", Some((6, 10)))]
    #[case("bytes=-99", Some((0, 10)))]
    #[case("bytes=10-", None)]
    #[case("bytes=-0", None)]
    #[case("bytes=5-3", Some((0, 10)))]
    #[case("bytes=0-1,3-4", Some((0, 10)))]
    #[case("lines=1-2", Some((0, 10)))]
    #[case("bytes=+1-2", Some((0, 10)))]
    fn a_range_is_a_part(#[case] range: &str, #[case] part: Option<(u64, u64)>) {
        let headers = [(RANGE, range.parse().unwrap())].into_iter().collect();
        let expected = match part {
            Some((from, to)) => Choice::Part(Part::new(from, to, 10)),
            None => Choice::Unsatisfiable,
        };
        assert_eq!(choose(&headers, "tag", 10), expected);
    }

    #[test]
    fn a_part_of_another_version_is_never_mixed_in() {
        let choice = |name: HeaderName, value: &str| {
            let headers = [(RANGE, "bytes=4-"), (name, value)];
            let headers = headers.map(|(name, value)| (name, value.parse().unwrap()));
            choose(&headers.into_iter().collect(), "tag", 10)
        };
        assert_eq!(choice(IF_RANGE, "\"tag\""), Choice::Part(Part::new(4, 10, 10)));
        for other in ["\"old\"", "W/\"tag\"", "Sun, 29 Nov 2026 00:00:00 GMT"] {
            assert_eq!(choice(IF_RANGE, other), Choice::Part(Part::new(0, 10, 10)), "{other}");
        }
        assert_eq!(choice(IF_NONE_MATCH, "\"old\", \"tag\""), Choice::NotModified);
    }
}
