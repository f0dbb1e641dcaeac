use remoteprocess_proto::v1::Data;

/// Maximum length of a line that is held until its end arrives, in bytes. A longer one is cut.
pub(super) const LONGEST: usize = 64 * 1024;

/// A line with its end, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// Offset of its first byte in the stream.
    pub offset: u64,
    /// When the agent took its first byte.
    pub time_unix_nanos: i64,
    /// With the line feed, where there is one.
    pub bytes: &'a [u8],
    /// Whether it continues a line that was cut before.
    pub is_continued: bool,
}

impl Line<'_> {
    /// Whether it contains the end of the line.
    pub(super) fn is_ended(&self) -> bool {
        self.bytes.last() == Some(&b'\n')
    }
}

/// Makes lines of the chunks of one stream. Holds at most [`LONGEST`] bytes.
#[derive(Debug, Default)]
pub(super) struct Lines {
    held: Vec<u8>,
    offset: u64,
    time_unix_nanos: i64,
    is_continued: bool,
}

impl Lines {
    /// Passes on each line that ends in `data`, and each part of a line that is too long.
    pub(super) fn take(&mut self, data: &Data, mut each: impl FnMut(Line<'_>)) {
        let (mut bytes, mut offset) = (&data.bytes[..], data.offset);
        while !bytes.is_empty() {
            let room = bytes.len().min(LONGEST - self.held.len());
            let end = memchr::memchr(b'\n', &bytes[..room]).map(|at| at + 1);
            let (line, rest) = bytes.split_at(end.unwrap_or(room));
            let is_whole = end.is_some() || self.held.len() + line.len() == LONGEST;
            if self.held.is_empty() {
                (self.offset, self.time_unix_nanos) = (offset, data.time_unix_nanos);
            }
            if is_whole && self.held.is_empty() {
                each(self.line(line));
            } else {
                self.held.extend_from_slice(line);
            }
            if is_whole && !self.held.is_empty() {
                each(self.line(&self.held));
                self.held.clear();
            }
            if is_whole {
                self.is_continued = end.is_none();
            }
            offset += line.len() as u64;
            bytes = rest;
        }
    }

    /// Passes on an unfinished line: nothing more of it comes.
    pub(super) fn finish(&mut self, each: impl FnOnce(Line<'_>)) {
        if !self.held.is_empty() {
            each(self.line(&self.held));
            self.held.clear();
        }
        self.is_continued = false;
    }

    fn line<'a>(&self, bytes: &'a [u8]) -> Line<'a> {
        Line {
            offset: self.offset,
            time_unix_nanos: self.time_unix_nanos,
            bytes,
            is_continued: self.is_continued,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<(u64, i64, Vec<u8>, bool)> {
        let (mut lines, mut out, mut offset) = (Lines::default(), Vec::new(), 100);
        let mut keep = |line: Line<'_>| {
            out.push((
                line.offset,
                line.time_unix_nanos,
                line.bytes.to_vec(),
                line.is_continued,
            ));
        };
        for (time, chunk) in (1..).zip(chunks) {
            let data = Data {
                offset,
                time_unix_nanos: time,
                bytes: chunk.to_vec().into(),
                ..Data::default()
            };
            lines.take(&data, &mut keep);
            offset += chunk.len() as u64;
        }
        lines.finish(&mut keep);
        out
    }

    #[test]
    fn chunks_become_lines_with_the_place_and_time_of_their_first_byte() {
        assert_eq!(
            lines(&[b"a\nb", b"c", b"\n\n", b"end"]),
            [
                (100, 1, b"a\n".to_vec(), false),
                (102, 1, b"bc\n".to_vec(), false),
                (105, 3, b"\n".to_vec(), false),
                (106, 4, b"end".to_vec(), false),
            ]
        );
    }

    #[test]
    fn a_line_without_end_is_cut_and_no_byte_is_lost() {
        let long = [vec![b'x'; LONGEST + 10], b"\nnext\n".to_vec()].concat();
        for chunks in [
            vec![&long[..]],
            long.chunks(1000).collect(),
            long.chunks(LONGEST).collect(),
        ] {
            let parts = lines(&chunks);
            assert_eq!(
                parts.iter().map(|part| (part.2.len(), part.3)).collect::<Vec<_>>(),
                [(LONGEST, false), (11, true), (5, false)]
            );
            let bytes: Vec<u8> = parts.into_iter().flat_map(|part| part.2).collect();
            assert!(bytes == long);
        }
    }
}
