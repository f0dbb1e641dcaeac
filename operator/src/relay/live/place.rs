//! Where a reader of a ring is, and what it finds there.

use remoteprocess_proto::v1::{Cursor, Exit};

use crate::relay::frame::Framed;

/// Where a reader is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Position of both streams on the history's path.
    pub at: Cursor,
    /// The next piece, where the reader is inside the ring.
    pub(super) index: Option<u64>,
}

/// What a reader finds.
#[derive(Debug, PartialEq)]
pub enum Read {
    /// The next pieces.
    Pieces(Vec<Framed>),
    /// The ring has moved on; the archive has it.
    Behind,
    /// Nothing further yet.
    Wait,
    /// Nothing further ever.
    End(Box<Exit>),
    /// The session is gone without an end: another home has it, or none.
    Closed,
}

impl Place {
    /// A place outside the ring.
    #[must_use]
    pub fn new(at: Cursor) -> Self {
        Self { at, index: None }
    }
}
