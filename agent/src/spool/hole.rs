//! Blocks of a file that are returned to the volume.

use std::fs::File;

use rustix::fs::{FallocateFlags, fallocate};

use super::Error;

/// Only whole blocks of this size are returned.
pub(super) const BLOCK: u64 = 4096;

/// Frees the blocks of `[from, to)` and keeps the size of the file; partial blocks stay.
pub(super) fn punch(file: &File, from: u64, to: u64) -> Result<(), Error> {
    let (from, to) = (from / BLOCK * BLOCK, to / BLOCK * BLOCK);
    if to <= from {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, flags, from, to - from).map_err(Error::errno("punch a hole"))
}
