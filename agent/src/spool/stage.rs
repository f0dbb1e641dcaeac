//! Where bytes wait for the mask: a file, so that after a kill each byte is in the pipe, here, or masked.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::{Error, Stream, hole, open_file};
use crate::mask::Mask;

/// Maximum number of bytes masked at once.
const WINDOW: u64 = 128 * 1024;
/// When this many bytes are masked, they are punched out.
const PUNCH: u64 = 256 * 1024;

/// One stream as the program wrote it. Offsets here are those of the raw stream.
#[derive(Debug)]
pub(super) struct Stage {
    pub file: File,
    mask: Arc<Mask>,
    /// Everything below this is masked and journalled.
    begin: u64,
    /// Bytes taken from the pipe.
    pub end: u64,
    /// The value of `end` when the mask held back what is left.
    seen: u64,
    punched: u64,
}

/// The masked form of the raw bytes up to `raw_end`.
pub(super) struct Masked {
    pub bytes: Vec<u8>,
    pub raw_end: u64,
}

impl Stage {
    /// Continues from `begin`, where the journal ends.
    pub(super) fn open(directory: &Path, stream: Stream, begin: u64, mask: Arc<Mask>) -> Result<Self, Error> {
        let file = open_file(directory, &format!("{}.raw", stream.file_name()))?;
        let end = file.metadata().map_err(Error::io("size of a raw stream"))?.len();
        if begin > end {
            return Err(Error::Damaged("a raw stream is shorter than the journal says"));
        }
        Ok(Self {
            file,
            mask,
            begin,
            end,
            seen: begin,
            punched: 0,
        })
    }

    /// The next masked bytes; `None` if all that is left may be the beginning of a value and the stream is not at its
    /// end.
    pub(super) fn next(&mut self, is_end: bool) -> Result<Option<Masked>, Error> {
        if self.begin == self.end || (self.seen == self.end && !is_end) {
            return Ok(None);
        }
        let from = self.begin.saturating_sub(self.mask.context() as u64);
        let to = self.end.min(self.begin + WINDOW);
        // At most the window and the context.
        let mut raw = vec![0; usize::try_from(to - from).unwrap_or_default()];
        self.file
            .read_exact_at(&mut raw, from)
            .map_err(Error::io("read a raw stream"))?;
        let begin = usize::try_from(self.begin - from).unwrap_or_default();
        let mut bytes = Vec::with_capacity(raw.len());
        let upto = self.mask.apply(&raw, begin, is_end && to == self.end, &mut bytes);
        if upto == begin {
            self.seen = self.end;
            return Ok(None);
        }
        let raw_end = from + upto as u64;
        Ok(Some(Masked { bytes, raw_end }))
    }

    /// The journal has everything below `raw_end`.
    pub(super) fn done(&mut self, raw_end: u64) -> Result<(), Error> {
        self.begin = raw_end;
        let free = raw_end.saturating_sub(self.mask.context() as u64);
        if free - self.punched >= PUNCH {
            hole::punch(&self.file, self.punched, free)?;
            self.punched = free;
        }
        Ok(())
    }
}
