use crate::v1::{Cursor, Stream};

impl Cursor {
    /// The offset wanted of `stream`; 0 for an unspecified stream.
    pub fn of(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
            Stream::Unspecified => 0,
        }
    }

    /// Moves the offset of `stream` to `offset`; an unspecified stream moves nothing.
    pub fn set(&mut self, stream: Stream, offset: u64) {
        match stream {
            Stream::Stdout => self.stdout = offset,
            Stream::Stderr => self.stderr = offset,
            Stream::Unspecified => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_has_its_own_offset() {
        let mut cursor = Cursor::default();
        cursor.set(Stream::Stdout, 7);
        cursor.set(Stream::Stderr, 9);
        cursor.set(Stream::Unspecified, 11);
        assert_eq!((cursor.of(Stream::Stdout), cursor.of(Stream::Stderr)), (7, 9));
    }
}
