use jiff::Timestamp;

/// Puts the time at which the agent took a line's first byte before each line of one stream.
#[derive(Default)]
pub(super) struct Stamp {
    is_mid_line: bool,
}

impl Stamp {
    /// `bytes` with a time (RFC 3339, UTC, nanoseconds) and a space before each line that begins in them.
    pub(super) fn apply(&mut self, bytes: &[u8], time_unix_nanos: i64) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let time = Timestamp::from_nanosecond(time_unix_nanos.into()).unwrap_or_default();
        let prefix = format!("{time:.9} ");
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.is_mid_line {
                out.extend_from_slice(prefix.as_bytes());
            }
            out.extend_from_slice(line);
            self.is_mid_line = line.last() != Some(&b'\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_gets_one_time_also_where_it_comes_in_pieces() {
        let mut stamp = Stamp::default();
        let mut out = stamp.apply(b"a\nb", 1_000_000_000);
        out.extend(stamp.apply(b"c\n", 2_000_000_000));
        out.extend(stamp.apply(b"\n", 3_500_000_000));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "1970-01-01T00:00:01.000000000Z a\n1970-01-01T00:00:01.000000000Z bc\n1970-01-01T00:00:03.500000000Z \n"
        );
    }
}
