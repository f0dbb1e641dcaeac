//! Finds where the archive of an attempt ends, whatever happened to its writers.

use std::collections::HashSet;

use remoteprocess_proto::v1::{Cursor, Stream};
use sha2::{Digest as _, Sha256};

use super::checkpoint::{Checkpoint, Tally};
use super::{Archive, Error, Segment, SegmentName};
use crate::relay::attempt::AttemptKey;
use crate::relay::piece::{Piece, distance};

/// The end of the part without a hole, and what is known of everything up to it.
pub(super) async fn resume(archive: &Archive, key: &AttemptKey) -> Result<(Cursor, Tally), Error> {
    let names = archive.segments(key).await?;
    let mut seen = HashSet::new();
    let mut best = (
        Cursor::default(),
        Some(Tally::default().checkpoint(Cursor::default(), Cursor::default())),
    );
    for name in names.iter().rev() {
        if !seen.insert(name.writer()) {
            continue;
        }
        let own = names.iter().filter(|other| other.writer() == name.writer()).rev();
        if let Some((end, checkpoint)) = chain_end(archive, key, own).await?
            && distance(&end) > distance(&best.0)
        {
            best = (end, checkpoint);
        }
    }
    let (end, checkpoint) = best;
    let tally = match checkpoint.as_ref().and_then(Tally::resume) {
        Some(tally) => tally,
        None => reread(archive, key, end).await?,
    };
    Ok((end, tally))
}

/// Where a writer's segments end without a hole. Its puts may have overtaken each other, so its last segment proves
/// only what was durable when that was written; everything after that must follow without a hole.
async fn chain_end(
    archive: &Archive,
    key: &AttemptKey,
    newest_first: impl Iterator<Item = &SegmentName>,
) -> Result<Option<(Cursor, Option<Checkpoint>)>, Error> {
    let mut found: Vec<(Cursor, Segment)> = Vec::new();
    for name in newest_first {
        if let Some(segment) = archive.segment(key, name).await? {
            found.push((name.start(), segment));
        }
        // The newest valid one says how far back to look.
        let proven = found.first().map(|(_, newest)| newest.durable);
        if proven.is_some_and(|proven| distance(&name.start()) <= distance(&proven)) {
            break;
        }
    }
    let Some(proven) = found.first().map(|(_, newest)| newest.durable) else {
        return Ok(None);
    };
    let mut end: Option<(Cursor, Option<Checkpoint>)> = None;
    for (start, segment) in found.into_iter().rev() {
        let joins = match &end {
            Some((end, _)) => *end == start,
            None => false,
        };
        if !joins && distance(&start) > distance(&proven) {
            break;
        }
        end = Some((segment.end, segment.checkpoint));
    }
    Ok(end)
}

/// The tally of segments whose checkpoint cannot be continued from: version 1 wrote none, and later versions stored a SHA-256.
async fn reread(archive: &Archive, key: &AttemptKey, end: Cursor) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    read(archive, key, end, |piece| tally.take(piece)).await?;
    Ok(tally)
}

/// The SHA-256 of what the archive has of stdout and stderr up to `end`.
pub(super) async fn sha256(archive: &Archive, key: &AttemptKey, end: Cursor) -> Result<[[u8; 32]; 2], Error> {
    let mut hashes = [Sha256::new(), Sha256::new()];
    let take = |piece: &Piece| {
        if let Piece::Data(data) = piece {
            hashes[usize::from(data.stream() == Stream::Stderr)].update(&data.bytes);
        }
    };
    read(archive, key, end, take).await?;
    Ok(hashes.map(|hash| hash.finalize().into()))
}

/// Reads the archive from its beginning to `end`.
async fn read(archive: &Archive, key: &AttemptKey, end: Cursor, mut take: impl FnMut(&Piece)) -> Result<(), Error> {
    let mut reader = archive.reader(key);
    let mut at = Cursor::default();
    while distance(&at) < distance(&end) {
        let pieces = reader.next(at).await?;
        let Some(last) = pieces.last() else { break };
        at = last.end();
        for placed in &pieces {
            if distance(&placed.start) < distance(&end) {
                take(&placed.piece);
            }
        }
    }
    Ok(())
}
