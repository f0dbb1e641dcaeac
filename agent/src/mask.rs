//! Replaces secret values in the output by `***`.
//!
//! The result depends on the whole stream, not on how it is cut into pieces: a byte is masked if an occurrence of a
//! value covers it. Encodings of a value (base64, quoting) are other bytes and are not masked.

use std::fs;
use std::path::Path;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// Replaces a value.
const STARS: &[u8] = b"***";
/// Maximum length of a value, in bytes.
const LONGEST: usize = 4096;
/// Maximum number of values.
const MOST: usize = 32;

/// Why the values cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory, or a file in it, cannot be read.
    #[error("--mask-dir {0}: {1}")]
    Read(String, std::io::Error),
    /// There is nothing to look for.
    #[error("spec.output.mask[{0}]: the value is empty; nothing is run, because nothing could be masked")]
    Empty(String),
    /// Too long to be looked for.
    #[error("spec.output.mask[{0}]: the value has {1} bytes; at most {LONGEST} can be masked")]
    TooLong(String, usize),
    /// Too many.
    #[error("spec.output.mask: {0} values; at most {MOST} can be masked")]
    TooMany(usize),
    /// The automaton could not be built.
    #[error("spec.output.mask: {0}")]
    Build(#[from] aho_corasick::BuildError),
}

/// The values, compiled for the search.
#[derive(Debug)]
pub struct Mask {
    finder: AhoCorasick,
    values: Vec<Vec<u8>>,
    /// Whether some value begins with this byte.
    begins: [bool; 256],
    longest: usize,
}

impl Mask {
    /// Reads the values, one from each file. A line end at the end of a value is not part of it.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        let unreadable = |error| Error::Read(directory.display().to_string(), error);
        let mut values = Vec::new();
        for entry in fs::read_dir(directory).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // The kubelet's own: directories by time, and a link to the latest.
            if name.starts_with("..") {
                continue;
            }
            values.push((name, fs::read(entry.path()).map_err(unreadable)?));
        }
        Self::new(values)
    }

    /// From values with their names.
    pub fn new(named: Vec<(String, Vec<u8>)>) -> Result<Self, Error> {
        if named.len() > MOST {
            return Err(Error::TooMany(named.len()));
        }
        let mut values = Vec::with_capacity(named.len());
        for (name, mut value) in named {
            while value.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
                value.pop();
            }
            match value.len() {
                0 => return Err(Error::Empty(name)),
                length if length > LONGEST => return Err(Error::TooLong(name, length)),
                _ => values.push(value),
            }
        }
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            // A DFA for long values would take more memory than the agent has.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(&values)?;
        let mut begins = [false; 256];
        for value in &values {
            begins[usize::from(value[0])] = true;
        }
        let longest = values.iter().map(Vec::len).max().unwrap_or(1);
        Ok(Self {
            finder,
            values,
            begins,
            longest,
        })
    }

    /// How many bytes before `begin` to pass to [`Self::apply`], if there are that many.
    pub const fn context(&self) -> usize {
        self.longest - 1
    }

    /// Masks `bytes` from `begin` on, and returns up to where: the bytes after that may be the beginning of a value,
    /// unless the stream ends here. The bytes before `begin` were masked already; they are searched for values that
    /// extend past `begin`.
    pub fn apply(&self, bytes: &[u8], begin: usize, is_end: bool, out: &mut Vec<u8>) -> usize {
        let certain = if is_end { bytes.len() } else { self.first_prefix(bytes) };
        let mut found: Vec<_> = self
            .finder
            .find_overlapping_iter(bytes)
            .map(|found| found.range())
            .collect();
        found.retain(|range| range.start < certain && range.end > begin);
        found.sort_unstable_by_key(|range| (range.start, usize::MAX - range.end));
        let mut at = begin;
        for range in found {
            if range.end <= at {
                continue;
            }
            out.extend_from_slice(&bytes[at.min(range.start)..range.start]);
            out.extend_from_slice(STARS);
            at = range.end;
        }
        if at < certain {
            out.extend_from_slice(&bytes[at..certain]);
            at = certain;
        }
        at
    }

    /// The first position from which on `bytes` are the beginning of a value, but not a whole one.
    fn first_prefix(&self, bytes: &[u8]) -> usize {
        let first = bytes.len().saturating_sub(self.context());
        let is_prefix = |at: &usize| {
            let rest = &bytes[*at..];
            self.begins[usize::from(rest[0])]
                && self
                    .values
                    .iter()
                    .any(|value| value.len() > rest.len() && value.starts_with(rest))
        };
        (first..bytes.len()).find(is_prefix).unwrap_or(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(values: &[&[u8]]) -> Mask {
        let named = values.iter().enumerate();
        Mask::new(
            named
                .map(|(index, value)| (index.to_string(), value.to_vec()))
                .collect(),
        )
        .unwrap()
    }

    /// Masks a stream that arrives in these pieces, as the spool does.
    fn masked(mask: &Mask, pieces: &[&[u8]]) -> Vec<u8> {
        let (mut raw, mut begin, mut out) = (Vec::new(), 0, Vec::new());
        for (index, piece) in pieces.iter().enumerate() {
            raw.extend_from_slice(piece);
            let from = begin - mask.context().min(begin);
            let is_end = index + 1 == pieces.len();
            begin = from + mask.apply(&raw[from..], begin - from, is_end, &mut out);
        }
        assert_eq!(begin, raw.len());
        out
    }

    #[test]
    fn a_value_is_found_across_pieces_and_a_false_beginning_is_not() {
        let mask = mask(&[b"s3cret\n"]);
        assert_eq!(masked(&mask, &[b"a s3", b"cr", b"et b s3cr", b"ow"]), b"a *** b s3crow");
        assert_eq!(masked(&mask, &[b"s3cre"]), b"s3cre", "the end of the stream");
    }

    #[test]
    fn a_value_within_another_and_values_that_overlap_leave_nothing() {
        assert_eq!(
            masked(&mask(&[b"password123", b"word"]), &[b"password12", b"3 word"]),
            b"*** ***"
        );
        assert_eq!(masked(&mask(&[b"abc", b"bcd"]), &[b"xab", b"cdx"]), b"x******x");
        assert_eq!(masked(&mask(&[b"aa"]), &[b"aa", b"a"]), b"******");
    }

    #[test]
    fn what_cannot_be_masked_is_refused() {
        let refuse = |value: &[u8]| {
            Mask::new(vec![("3".to_owned(), value.to_vec())])
                .unwrap_err()
                .to_string()
        };
        assert!(refuse(b"\n").contains("mask[3]: the value is empty"));
        assert!(refuse(&[b'x'; 4097]).contains("4097 bytes"));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing_and_every_covered_byte_is_gone(
            values in proptest::collection::vec("[ab]{1,5}", 1..4),
            pieces in proptest::collection::vec("[abc]{0,8}", 1..12),
        ) {
            let mask = mask(&values.iter().map(|value| value.as_bytes()).collect::<Vec<_>>());
            let pieces: Vec<_> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            let whole = pieces.concat();
            let out = masked(&mask, &pieces);
            prop_assert_eq!(&out, &masked(&mask, &[&whole]));
            let mut is_covered = vec![false; whole.len()];
            for value in &values {
                for at in 0..=whole.len().saturating_sub(value.len()) {
                    if whole[at..].starts_with(value.as_bytes()) {
                        is_covered[at..at + value.len()].fill(true);
                    }
                }
            }
            let left: Vec<u8> = whole.iter().zip(&is_covered).filter(|(_, covered)| !**covered).map(|(b, _)| *b).collect();
            let plain: Vec<u8> = out.iter().copied().filter(|byte| *byte != b'*').collect();
            prop_assert_eq!(plain, left);
        }
    }
}
