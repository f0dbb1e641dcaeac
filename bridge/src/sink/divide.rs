//! Divides output into the parts that become events. Pure. The boundaries follow from the bytes and their offsets alone,
//! so that a repetition gives the same parts.

use remoteprocess_api::sink::{MAX_OUTPUT_BYTES, OutputFormat};

/// A part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Offset of its first byte in the stream.
    pub offset: u64,
    /// Its bytes: 1 to [`MAX_OUTPUT_BYTES`].
    pub bytes: Vec<u8>,
}

impl Part {
    /// Offset of the byte after it.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// Divides one stream of an attempt. It holds at most one part and what was added last.
#[derive(Debug)]
pub struct Divider {
    format: OutputFormat,
    /// Offset of the first byte in `buffer`.
    offset: u64,
    buffer: Vec<u8>,
    /// Nothing follows what is in `buffer`.
    is_cut: bool,
}

/// The bytes do not follow what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("output came from byte {offset} on where byte {expected} is next")]
pub struct Misplaced {
    offset: u64,
    expected: u64,
}

impl Divider {
    /// Begins at an offset at which a part ended before, or at 0.
    pub fn new(format: OutputFormat, offset: u64) -> Self {
        Self {
            format,
            offset,
            buffer: Vec::new(),
            is_cut: false,
        }
    }

    /// Adds bytes. Take all parts first.
    ///
    /// # Errors
    /// They do not follow what came before.
    pub fn add(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Misplaced> {
        self.expect(offset)?;
        self.is_cut = false;
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Nothing more comes before `offset`, at which a range begins that is lost, or the stream ends: the rest is a part.
    ///
    /// # Errors
    /// Bytes are missing before it.
    pub fn cut(&mut self, offset: u64) -> Result<(), Misplaced> {
        self.expect(offset)?;
        self.is_cut = true;
        Ok(())
    }

    /// The rest is a part.
    pub fn end(&mut self) {
        self.is_cut = true;
    }

    /// Continues behind a range that is lost. Take all parts first.
    pub fn skip_to(&mut self, offset: u64) {
        self.offset = offset;
        self.buffer.clear();
        self.is_cut = false;
    }

    /// The next part, if it is complete.
    pub fn take(&mut self) -> Option<Part> {
        let length = self.complete().or_else(|| self.is_cut.then_some(self.buffer.len()))?;
        if length == 0 {
            return None;
        }
        let bytes: Vec<u8> = self.buffer.drain(..length).collect();
        let part = Part {
            offset: self.offset,
            bytes,
        };
        self.offset = part.end();
        Some(part)
    }

    /// Length of the next part, if it does not depend on what follows.
    fn complete(&self) -> Option<usize> {
        let longest = match self.format {
            OutputFormat::Chunks => to_boundary(self.offset),
            OutputFormat::Lines => MAX_OUTPUT_BYTES,
        };
        let head = &self.buffer[..longest.min(self.buffer.len())];
        let line = match self.format {
            OutputFormat::Chunks => None,
            OutputFormat::Lines => head.iter().position(|byte| *byte == b'\n').map(|at| at + 1),
        };
        line.or_else(|| (head.len() == longest).then_some(longest))
    }

    fn expect(&self, offset: u64) -> Result<(), Misplaced> {
        let expected = self.offset + self.buffer.len() as u64;
        if offset == expected {
            return Ok(());
        }
        Err(Misplaced { offset, expected })
    }
}

/// Bytes from `offset` to the next multiple of [`MAX_OUTPUT_BYTES`].
fn to_boundary(offset: u64) -> usize {
    let size = MAX_OUTPUT_BYTES as u64;
    usize::try_from(size - offset % size).unwrap_or(MAX_OUTPUT_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = MAX_OUTPUT_BYTES;

    /// The parts of `bytes`, which arrive in pieces of these sizes, from an offset.
    fn parts(format: OutputFormat, from: usize, bytes: &[u8], sizes: &[usize]) -> Vec<Part> {
        let mut divider = Divider::new(format, from as u64);
        let (mut found, mut at, mut sizes) = (Vec::new(), from, sizes.iter().cycle());
        while at < bytes.len() {
            let to = (at + sizes.next().unwrap_or(&SIZE).max(&1)).min(bytes.len());
            divider.add(at as u64, &bytes[at..to]).unwrap();
            found.extend(std::iter::from_fn(|| divider.take()));
            at = to;
        }
        divider.end();
        found.extend(std::iter::from_fn(|| divider.take()));
        found
    }

    fn lengths(parts: &[Part]) -> Vec<usize> {
        parts.iter().map(|part| part.bytes.len()).collect()
    }

    #[test]
    fn chunks_begin_at_multiples_of_their_size() {
        let bytes = vec![7; 2 * SIZE + 5];
        assert_eq!(
            lengths(&parts(OutputFormat::Chunks, 0, &bytes, &[1000])),
            [SIZE, SIZE, 5]
        );
        assert_eq!(
            lengths(&parts(OutputFormat::Chunks, 10, &bytes, &[70_000])),
            [SIZE - 10, SIZE, 5]
        );
        assert!(parts(OutputFormat::Chunks, 0, b"", &[1]).is_empty());
    }

    #[test]
    fn lines_end_with_a_line_feed_or_at_their_longest() {
        let text = b"one\n\ntwo\r\nrest";
        let found = parts(OutputFormat::Lines, 0, text, &[2]);
        let texts: Vec<_> = found.iter().map(|part| String::from_utf8_lossy(&part.bytes)).collect();
        assert_eq!(texts, ["one\n", "\n", "two\r\n", "rest"]);
        let mut long = vec![b'x'; 2 * SIZE + 1];
        long.extend_from_slice(b"\ny\n");
        assert_eq!(
            lengths(&parts(OutputFormat::Lines, 0, &long, &[4096])),
            [SIZE, SIZE, 2, 2]
        );
    }

    #[test]
    fn a_part_does_not_reach_over_a_range_that_is_lost() {
        let mut divider = Divider::new(OutputFormat::Lines, 0);
        divider.add(0, b"ab").unwrap();
        assert_eq!(divider.take(), None, "the line may continue");
        divider.cut(2).unwrap();
        assert_eq!(divider.take().unwrap().bytes, b"ab");
        divider.skip_to(10);
        assert!(divider.add(11, b"c").is_err() && divider.cut(9).is_err());
        divider.add(10, b"c\nd").unwrap();
        assert_eq!(
            divider.take(),
            Some(Part {
                offset: 10,
                bytes: b"c\n".to_vec()
            })
        );
        assert_eq!(divider.take(), None);
    }

    proptest! {
        #[test]
        fn parts_are_the_whole_and_the_same_again_from_each_boundary(
            lines in any::<bool>(),
            seed in proptest::collection::vec((0_usize..70_000, any::<bool>()), 0..6),
            one in proptest::collection::vec(1_usize..66_000, 1..5),
            other in proptest::collection::vec(1_usize..66_000, 1..5),
        ) {
            let format = if lines { OutputFormat::Lines } else { OutputFormat::Chunks };
            let mut bytes = Vec::new();
            for (length, has_end) in seed {
                bytes.extend(std::iter::repeat_n(b'a' + (length % 26) as u8, length));
                if has_end {
                    bytes.push(b'\n');
                }
            }
            let whole = parts(format, 0, &bytes, &one);
            prop_assert_eq!(whole.iter().flat_map(|part| part.bytes.clone()).collect::<Vec<_>>(), bytes.clone());
            prop_assert!(whole.iter().all(|part| (1..=SIZE).contains(&part.bytes.len())));
            prop_assert_eq!(&parts(format, 0, &bytes, &other), &whole, "however it arrives");
            for (index, part) in whole.iter().enumerate() {
                let again = parts(format, usize::try_from(part.end()).unwrap(), &bytes, &other);
                prop_assert_eq!(&again[..], &whole[index + 1..], "wherever it begins again");
            }
        }
    }
}
