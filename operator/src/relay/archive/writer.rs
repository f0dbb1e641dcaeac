//! Appends one attempt's history and makes it durable.

use std::collections::HashSet;

use bytes::Bytes;
use object_store::{ObjectStoreExt, PutPayload};
use remoteprocess_proto::v1::{Cursor, Exit};
use tracing::warn;

use super::manifest::{StoredExit, StoredGap};
use super::segment::SegmentBuilder;
use super::{Archive, Error, Manifest, SEGMENT_BYTES, SegmentEntry, Subject};
use crate::relay::piece::{Piece, Placed, distance};

/// A segment saved before it is full is grown and put again until it has this size: few objects for a slow stream, few
/// bytes written twice.
const GROW_BELOW: usize = 256 * 1024;

/// The writer of one attempt. Only what `flush` has answered for is safe.
#[derive(Debug)]
pub struct Writer {
    archive: Archive,
    subject: Subject,
    mark: u32,
    open: SegmentBuilder,
    dirty: bool,
    saved: Cursor,
    manifest: Manifest,
    manifest_dirty: bool,
}

impl Writer {
    pub(super) async fn resume(archive: Archive, subject: Subject) -> Result<Self, Error> {
        let saved = last_whole_end(&archive, &subject).await?;
        let manifest = match archive.manifest(&subject.key).await? {
            Some(manifest) => manifest,
            None => {
                let manifest = Manifest::begin(&subject);
                archive.put_manifest(&subject.key, &manifest).await?;
                manifest
            }
        };
        let mark = mark();
        let open = SegmentBuilder::new(saved, mark);
        Ok(Self {
            archive,
            subject,
            mark,
            open,
            dirty: false,
            saved,
            manifest,
            manifest_dirty: false,
        })
    }

    /// Offsets below which everything is durable.
    #[must_use]
    pub fn saved(&self) -> Cursor {
        self.saved
    }

    /// Offsets of both streams after the last appended piece.
    #[must_use]
    pub fn end(&self) -> Cursor {
        self.open.end()
    }

    /// How the attempt ended, where an earlier writer sealed it.
    #[must_use]
    pub fn sealed_exit(&self) -> Option<Exit> {
        self.manifest.exit_frame()
    }

    /// Bytes in the open segment.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.open.raw_bytes()
    }

    /// True when the open segment is full: flush before more is appended.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.open.raw_bytes() >= SEGMENT_BYTES
    }

    /// Adds the next piece, in memory.
    pub fn append(&mut self, placed: &Placed) {
        self.open.push(placed);
        self.dirty = true;
        if let Piece::Gap(gap) = &placed.piece {
            self.manifest_dirty |= self.manifest.note_gap(StoredGap::from_wire(gap));
        }
    }

    /// The ranges that were lost so far, by this writer and those before it.
    #[must_use]
    pub fn gaps(&self) -> &[StoredGap] {
        &self.manifest.gaps
    }

    /// Makes everything appended durable and answers with the offsets reached. May be repeated after an error.
    ///
    /// # Errors
    /// When the store refuses; nothing is lost by it.
    pub async fn flush(&mut self) -> Result<Cursor, Error> {
        if self.manifest_dirty {
            self.archive.put_manifest(&self.subject.key, &self.manifest).await?;
            self.manifest_dirty = false;
        }
        if self.dirty {
            let path = self.subject.key.segment_path(self.open.name())?;
            let payload: PutPayload = self
                .open
                .object()
                .into_iter()
                .collect::<Vec<Bytes>>()
                .into_iter()
                .collect();
            self.archive.store.put(&path, payload).await?;
            self.dirty = false;
            self.saved = self.open.end();
        }
        if self.open.raw_bytes() >= GROW_BELOW {
            self.open = SegmentBuilder::new(self.saved, self.mark);
        }
        Ok(self.saved)
    }

    /// Flushes, then writes the closing manifest. An exit that is there already stays.
    ///
    /// # Errors
    /// When the store refuses; may be repeated.
    pub async fn seal(&mut self, exit: &Exit) -> Result<Manifest, Error> {
        let end = self.flush().await?;
        let mut manifest = self.manifest.clone();
        if manifest.exit.is_none() {
            manifest.exit = Some(StoredExit::from_wire(exit));
        }
        manifest.sealed = exit.sealed;
        manifest.stdout_bytes = end.stdout;
        manifest.stderr_bytes = end.stderr;
        let names = self.archive.segments(&self.subject.key).await?;
        manifest.segments = names
            .iter()
            .map(|name| SegmentEntry {
                name: name.to_string(),
                stdout: name.start().stdout,
                stderr: name.start().stderr,
            })
            .collect();
        self.archive.put_manifest(&self.subject.key, &manifest).await?;
        self.manifest = manifest.clone();
        Ok(manifest)
    }
}

/// The furthest end of a whole segment: each writer's segments are a chain, so its last whole one is enough. A torn one
/// was never committed, so the agent still has what was in it.
async fn last_whole_end(archive: &Archive, subject: &Subject) -> Result<Cursor, Error> {
    let mut seen = HashSet::new();
    let mut end = Cursor::default();
    for name in archive.segments(&subject.key).await?.iter().rev() {
        if seen.contains(&name.writer()) {
            continue;
        }
        match archive.segment(&subject.key, name).await {
            Ok(segment) => {
                seen.insert(name.writer());
                end = if distance(&segment.end) > distance(&end) {
                    segment.end
                } else {
                    end
                };
            }
            Err(Error::Damaged { name, reason }) => {
                warn!(
                    uid = subject.key.uid,
                    attempt = subject.key.attempt,
                    name,
                    reason,
                    "a segment is damaged"
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(end)
}

/// Tells this writer's objects from those of any other.
fn mark() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(std::process::id());
    u32::try_from(random & u64::from(u32::MAX)).unwrap_or_default()
}
