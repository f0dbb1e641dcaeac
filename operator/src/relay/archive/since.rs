//! Finds where the output since a given time begins.

use remoteprocess_proto::v1::Cursor;

use super::{Archive, Error};
use crate::relay::attempt::AttemptKey;
use crate::relay::piece::Placed;

/// Where the first archived piece begins that was taken at or after `since` (nanoseconds since the Unix epoch); `None`
/// if there is none. Times grow along the observed order, so a binary search reads only a few segments.
pub async fn since_start(archive: &Archive, key: &AttemptKey, since: i64) -> Result<Option<Cursor>, Error> {
    let names = archive.segments(key).await?;
    let (mut from, mut to) = (0, names.len());
    let mut found = None;
    while from < to {
        let middle = from + (to - from) / 2;
        // A damaged one has no times; the missing range is reported when it is read.
        let pieces = archive
            .segment(key, &names[middle])
            .await?
            .map(|segment| segment.pieces);
        match pieces.as_deref().and_then(|pieces| first_since(pieces, since)) {
            Some(start) => (found, to) = (Some(start), middle),
            None => from = middle + 1,
        }
    }
    Ok(found)
}

/// Where the first of these pieces begins that was taken at or after `since`.
pub fn first_since(pieces: &[Placed], since: i64) -> Option<Cursor> {
    let found = pieces
        .iter()
        .find(|placed| placed.piece.time().is_some_and(|time| time >= since));
    found.map(|placed| placed.start)
}
