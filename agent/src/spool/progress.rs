//! The progress of the spool, as observers see it.

use super::journal::Record;
use super::{Offsets, Seals};

/// Why nothing is being taken from the pipes: the program will block when they are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// The spool holds as many unarchived bytes as it may.
    SpoolFull,
    /// The volume refuses to take more.
    VolumeFull,
}

/// The progress of the spool. Published after each step, so that a reader never sees a byte without its record.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Bytes taken and journalled.
    pub written: Offsets,
    /// Bytes that the archive holds durably.
    pub archived: Offsets,
    /// Bytes that have left the spool. Those between `archived` and this offset were dropped because there was no room.
    pub dropped: Offsets,
    /// No byte will follow.
    pub closed: bool,
    /// Why the pipes are not being read.
    pub stalled: Option<Stall>,
    /// Present once the output is closed and completely hashed.
    pub seals: Option<Seals>,
    /// First record that the journal still holds.
    pub(super) first_record: u64,
    /// Number of records that will not change anymore.
    pub(super) fixed_records: u64,
    /// The last record, which may still grow.
    pub(super) open: Option<Record>,
}

impl Progress {
    /// Bytes that occupy the spool.
    pub const fn used(&self) -> u64 {
        self.written.total() - self.dropped.total()
    }

    /// Bytes in the spool that the archive does not hold.
    pub fn unarchived(&self) -> u64 {
        self.written.total() - self.archived.map2(self.dropped, u64::max).total()
    }

    pub(super) fn records(&self) -> u64 {
        self.fixed_records + u64::from(self.open.is_some())
    }
}
